// attend(): Λ-attention of a whole sequence, of a stream, and of many streams at once.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/run.hpp>
#include <lambda_attention/detail/streams.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/executor.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/tensor_view.hpp>
#include <lambda_attention/workspace.hpp>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

namespace detail {
// What a call on these element types computes in.
template <class... T>
using compute_type_of =
    std::conditional_t<((element_traits<std::remove_const_t<T>>::kind == element_kind::f64) || ...), double, float>;

// Where kernels for keys and values of these element types come from; null where they are not taken in pairs.
template <class Real, class K, class V>
constexpr auto pairs_of() -> const pair_kernels<Real>* (*)(isa_level) {
  constexpr auto kind_of_k = element_traits<std::remove_const_t<K>>::kind;
  constexpr auto kind_of_v = element_traits<std::remove_const_t<V>>::kind;
  if constexpr (kind_of_k == element_kind::bf16 && kind_of_v == element_kind::bf16) return pair_kernels_for<Real>;
  return nullptr;
}

template <class Real, class Executor>
void run_one(attention_job<Real> job, const attention_options& options, Executor&& executor, const char* where) {
  workspace own;
  workspace& memory = options.workspace != nullptr ? *options.workspace : own;
  const kernel_table<Real>& kernels = kernels_for<Real>(options.isa);
  const job_list<Real> list(&job, 1, detail::checked_workers(executor, where));
  memory.reserve(call_scratch<Real>(kernels, list).bytes());
  detail::run_jobs(kernels, list, memory, 0, executor);
}
}  // namespace detail

/// Attention over a whole sequence; keys and values are read where they lie.
///
///     out_i = sum_j e^logit(i, j) v_j / sum_j e^logit(i, j)    over the keys j that query i sees, see lambda_shape
///     logit = scale * score(q_i, k_j, d) + bias(head, d),      d = shape.distance(i, j)
///
/// q [n, heads, head_dim], k [n, kv_heads, head_dim], v [n, kv_heads, v_head_dim], out [n, heads, v_head_dim], each of
/// float, double, half, bfloat16 or a type that joined by element_traits, in any layout; heads is a multiple of kv_heads,
/// query head h reads key/value head h / (heads / kv_heads). Computes in double where one of them is double, else in float.
/// out may be exactly q; no other overlap. A row that sees no key becomes zeros.
///
/// Keys and values that are both bfloat16 are multiplied in pairs where the ISA does that, isa_level::avx512_bf16, or
/// isa_level::amx_bf16 for head_dim and v_head_dim that are multiples of 32: queries, turned keys and weights are then rounded
/// to bfloat16, which adds at most 5e-6 (1 + 2 sigma^2 (1 + 12 sigma^2 / head_dim)) to the NMSE for head_dim >= 16 and up
/// to 2^18 keys, sigma^2 the variance of the scaled scores.
/// options.isa = isa_level::avx512 computes in float.
///
/// Errors: std::invalid_argument on extents, strides, aliases or options that do not fit, before anything is written.
/// Law: equals full causal attention while n <= min(window, distance_limit + 1); the same bits for any executor.
/// NaN or infinity in a row that no query sees changes nothing; in a row that some see, it may reach the other queries of
/// their tile.
/// Cost: O(n * (num_sinks + window)) time; scratch O(num_sinks + window) for each worker.
/// Source: Han et al., LM-Infinite, section 3.
template <class Q, class K, class V, class Position, class Out, class Executor = serial_executor>
void attend(const tensor_view<Q>& q, const tensor_view<K>& k, const tensor_view<V>& v, const lambda_shape& shape,
            const Position& position, const tensor_view<Out>& out, const attention_options& options = {},
            Executor&& executor = {}) {
  static_assert(
      std::is_base_of_v<position_encoding, Position>,
      "lambda_attention: attend(q, k, v, shape, position, out): `position` must be a position encoding, a class "
      "that derives from position_encoding (rope, alibi, t5_bias, none, or your own)");
  static_assert(!std::is_const_v<Out>,
                "lambda_attention: attend(): `out` must be a view of elements that are not const");
  using real = detail::compute_type_of<Q, K, V, Out>;
  const detail::attention_job<real> job = detail::checked_sequence_job<real>(
      detail::erase(q), detail::erase(k), detail::erase(v), detail::erase(out), shape, detail::limits_of(position),
      options, detail::pairs_of<real, K, V>(), "attend");
  detail::run_one(job, options, executor, "attend");
}

/// Takes in new tokens of a stream: k [n, kv_heads, head_dim] and v [n, kv_heads, v_head_dim], as the projections leave
/// them, any n. Errors: as for attend(); a refused call leaves the cache as it was. Cost: O(n).
template <class K, class V, class Storage, class Position>
void append(const tensor_view<K>& k, const tensor_view<V>& v, kv_cache<Storage, Position>& cache,
            isa_level isa = isa_level::automatic) {
  using real = typename kv_cache<Storage, Position>::compute_type;
  detail::check_isa(isa, "append");
  detail::check_stream_keys(detail::erase(k), detail::erase(v), cache.core(), "append");
  cache.core().write(detail::kernels_for<real>(isa), cache.position().data(), detail::erase(k), detail::erase(v));
  cache.core().commit(k.tokens);
}

/// Attention of the newest tokens of a stream over what its cache holds: q and out [n, heads, ...] belong to the last n
/// tokens taken in, n <= max_append and n <= cache.num_rewindable(). For layers that share keys, and prefixes that are shared.
template <class Q, class Storage, class Position, class Out, class Executor = serial_executor>
void attend(const tensor_view<Q>& q, const kv_cache<Storage, Position>& cache, const tensor_view<Out>& out,
            const attention_options& options = {}, Executor&& executor = {}) {
  static_assert(!std::is_const_v<Out>,
                "lambda_attention: attend(): `out` must be a view of elements that are not const");
  const detail::tensor queries = detail::erase(q), outputs = detail::erase(out);
  detail::check_stream_queries(queries, outputs, cache.core(), cache.num_tokens(), detail::limits_of(cache.position()),
                               options, "attend");
  detail::check_newest(queries.tokens, cache.core(), "attend");
  const auto job =
      detail::stream_job(queries, outputs, cache.core(), cache.num_tokens(), cache.position().data(), options);
  detail::run_one(job, options, executor, "attend");
}

/// One stream's part of a call on many.
template <class Q, class K, class V, class Storage, class Position, class Out>
struct stream_step {
  tensor_view<Q> q;
  tensor_view<K> k;
  tensor_view<V> v;
  kv_cache<Storage, Position>* cache;
  tensor_view<Out> out;
};
template <class Q, class K, class V, class Storage, class Position, class Out>
stream_step(tensor_view<Q>, tensor_view<K>, tensor_view<V>, kv_cache<Storage, Position>*, tensor_view<Out>)
    -> stream_step<const Q, const K, const V, Storage, Position, Out>;

/// Many streams of any lengths in one call: for each, append(k, v, cache), then attention of the new tokens. The streams
/// may differ in everything but their types; their tasks run side by side. options.lse is of one stream, and refused when
/// there are more.
///
/// More than max_append new tokens are taken in in steps of that many. Errors: as for attend(), and a cache that is null
/// or given twice, outputs that overlap another stream's tensors; a refused call, or one that finds no memory,
/// changes no cache and no output. When the executor throws, `out` is unspecified and every cache has the tokens it had before
/// the step that failed; only asking again for outputs of those tokens, by attend(q, cache, out), and taking more than
/// max_rewind of them back, may then be refused.
/// Cost: that of the streams, and num_streams log(num_streams) small steps; without a workspace, two allocations.
template <class Q, class K, class V, class Storage, class Position, class Out, class Executor = serial_executor>
void attend(const stream_step<Q, K, V, Storage, Position, Out>* streams, index_t num_streams,
            const attention_options& options = {}, Executor&& executor = {}) {
  static_assert(!std::is_const_v<Out>,
                "lambda_attention: attend(): `out` must be a view of elements that are not const");
  const detail::stream_list<typename Storage::compute_type> list(streams, num_streams);
  workspace own;
  workspace& memory = options.workspace != nullptr ? *options.workspace : own;
  detail::check_streams(list, options, memory);
  detail::stream_runner(list, options, memory).run(executor);
}

/// New tokens of a stream, any number of them; 1 is decoding. append(k, v, cache), then attention of these tokens.
///
/// q [n, heads, head_dim], k [n, kv_heads, head_dim], v [n, kv_heads, v_head_dim], out [n, heads, v_head_dim], before any
/// rotation; element types and layouts as for a whole sequence. Every query reads keys and values as the cache stores
/// them, its own included. int8 rows (isa_level::avx512_vnni), and bf16 rows that several queries of a KV head read
/// (isa_level::avx512_bf16; five with amx_bf16) may be multiplied as they are: queries and weights are then rounded too, in bf16
/// to bfloat16, in int8 far less than the rows.
///
/// Errors: as for a whole sequence; a refused call leaves cache and out as they were.
/// Law: any split of a stream into calls gives the same rows, within rounding, whatever the ring has overwritten.
/// Cost: O(n * (num_sinks + window)); with a workspace that is large enough, see scratch_bytes, no allocation.
template <class Q, class K, class V, class Storage, class Position, class Out, class Executor = serial_executor>
void attend(const tensor_view<Q>& q, const tensor_view<K>& k, const tensor_view<V>& v,
            kv_cache<Storage, Position>& cache, const tensor_view<Out>& out, const attention_options& options = {},
            Executor&& executor = {}) {
  const stream_step<Q, K, V, Storage, Position, Out> stream{q, k, v, &cache, out};
  lambda_attention::attend(&stream, 1, options, executor);
}

/// Bytes that attend(q, k, v, cache, out) takes of its workspace, when q, k and v have at most the tokens given and the
/// cache has seen any number of them: reserve this once, and no call allocates.
template <class Storage, class Position>
index_t scratch_bytes(const kv_cache<Storage, Position>& cache, index_t num_heads, index_t num_tokens,
                      index_t num_workers = 1, isa_level isa = isa_level::automatic) {
  detail::check_isa(isa, "scratch_bytes");
  return detail::stream_scratch_bytes(isa, cache.core(), cache.position().data(), num_heads, num_tokens, num_workers);
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
