// Attention over keys and values that the caller keeps: pages of a paged cache, a ring, slices of a sequence; as they were
// projected, or rotated by the caller already.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/key_runs.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/partial.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Consecutive keys and their values, from that of the token with index `first` on, and what rotation the keys have been
/// through: k [n, kv_heads, head_dim], v [n, kv_heads, v_head_dim], in any layout.
template <class K, class V>
struct key_run {
  index_t first;
  tensor_view<K> k;
  tensor_view<V> v;
  row_rotation rotation = row_rotation::none;
};
template <class K, class V>
key_run(index_t, tensor_view<K>, tensor_view<V>) -> key_run<K, V>;
template <class K, class V>
key_run(index_t, tensor_view<K>, tensor_view<V>, row_rotation) -> key_run<K, V>;

/// The same of queries, q [n, heads, head_dim]; rotation none or to_position.
template <class Q>
struct query_run {
  index_t first;
  tensor_view<Q> q;
  row_rotation rotation = row_rotation::none;
};
template <class Q>
query_run(index_t, tensor_view<Q>) -> query_run<Q>;
template <class Q>
query_run(index_t, tensor_view<Q>, row_rotation) -> query_run<Q>;

/// Attention of some queries over runs of keys, which are read where they lie: the formula is that of attend(q, k, v, shape,
/// position, out). Runs come in any order and hold every key that a query sees, its own included; others that they hold are
/// not read. A run may have no tokens.
///
/// Rows that have been rotated have been so by the caller's form of `position`, factor and all. What is needed and not given,
/// R(0)k of sinks that count as nearer than they are, or R(distance_limit)q, is turned back from what is: as exact as the
/// caller's angles, see README. options.first_position is the position of index 0.
///
/// A few queries, at most 16 over the heads of a group (32 of bfloat16 with AMX) or 4 of each, read keys and values where they
/// lie if both are float, half or bfloat16 (where the call computes in double: double), in rows that begin at multiples of 4 bytes; head_dim and v_head_dim are
/// multiples of 16; and all keys that they see of the window, or of the sinks, are as wanted: rotated to_position while they
/// are within distance_limit, R(0)k beyond. A factor of 1 leaves R(0)k = k; an encoding without rotation wants none. Sinks, or
/// the window, that are not are copied and turned first, for each call, as all rows are for more queries.
///
/// q [n, heads, head_dim], out [n, heads, v_head_dim].
/// Errors: std::invalid_argument, before anything is written: as for attend(); a key that a query sees and no run holds; a
/// key in two runs; runs that differ in heads or dimensions; rotated rows where the encoding turns rows by a function;
/// indices of 2^62 or more.
/// Law: equals attend(q, k, v, shape, position, out), however the keys are cut; the same bits for any executor.
/// Cost: as for attend(); R log R for R runs, so hand over those of the sinks and of the window.
template <class Q, class K, class V, class Position, class Out, class Executor = serial_executor>
void attend(const query_run<Q>& queries, const key_run<K, V>* runs, index_t num_runs, const lambda_shape& shape,
            const Position& position, const tensor_view<Out>& out, const attention_options& options = {},
            Executor&& executor = {}) {
  static_assert(
      std::is_base_of_v<position_encoding, Position>,
      "lambda_attention: attend(queries, runs, num_runs, shape, position, out): `position` must be a position "
      "encoding, a class that derives from position_encoding (rope, alibi, t5_bias, none, or your own)");
  static_assert(!std::is_const_v<Out>,
                "lambda_attention: attend(): `out` must be a view of elements that are not const");
  using real = detail::compute_type_of<Q, K, V, Out>;
  const detail::runs_call call{"attend",
                               detail::erase_queries(queries),
                               num_runs,
                               detail::runs_at(runs, "attend"),
                               detail::erase(out),
                               detail::erase(options.lse),
                               index_range{0, unlimited}};
  detail::check_runs(call, shape, detail::limits_of(position), options);
  detail::check_lse_of_runs(call, "options.lse");
  detail::attend_runs<real>(call, shape, position.data(), options, detail::pairs_of<real, K, V>(), executor);
}

/// Attention over those of the keys whose index is in `keys`; the runs need to hold no others. See attend_partial(q, k, v,
/// shape, position, keys, result).
template <class Q, class K, class V, class Position, class Out, class Lse, class Executor = serial_executor>
void attend_partial(const query_run<Q>& queries, const key_run<K, V>* runs, index_t num_runs, const lambda_shape& shape,
                    const Position& position, const index_range& keys, const partial_result<Out, Lse>& result,
                    const attention_options& options = {}, Executor&& executor = {}) {
  static_assert(std::is_base_of_v<position_encoding, Position>,
                "lambda_attention: attend_partial(): `position` must be a position encoding, a class that derives from "
                "position_encoding (rope, alibi, t5_bias, none, or your own)");
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: attend_partial(): `result` must have views of elements that are not const");
  using real = detail::compute_type_of<Q, K, V, Out>;
  const detail::runs_call call{
      "attend_partial",          detail::erase_queries(queries), num_runs, detail::runs_at(runs, "attend_partial"),
      detail::erase(result.out), detail::erase(result.lse),      keys};
  detail::check_part(keys, options, "attend_partial");
  detail::check_runs(call, shape, detail::limits_of(position), options);
  detail::check_lse_of_part(call.lse, call.out, {call.queries.q, call.out}, "attend_partial");
  detail::check_lse_of_runs(call, "result.lse");
  detail::attend_runs<real>(call, shape, position.data(), options, detail::pairs_of<real, K, V>(), executor);
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
