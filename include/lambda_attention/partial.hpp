// Attention over a part of the keys, and what makes one result of several: Λ-attention beside other branches, keys that lie
// on several machines, retrieval.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/merging.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// What attention over some keys gives: for each query and head the weighted mean of their values, and how much weight they
/// have together.
///
///     out [n, heads, v_head_dim]    sum_j e^logit(j) v_j / sum_j e^logit(j)     over these keys j; zeros where there are none
///     lse [n, heads, 1]             ln sum_j e^logit(j)                         -infinity where there are none
///
/// lse is float, or double where the result is to be as exact as a computation in double.
template <class Out, class Lse = float>
struct partial_result {
  static_assert(std::is_same_v<std::remove_const_t<Lse>, float> || std::is_same_v<std::remove_const_t<Lse>, double>,
                "lambda_attention: the lse of a partial_result is float or double");
  tensor_view<Out> out;
  tensor_view<Lse> lse;
};
template <class Out, class Lse>
partial_result(tensor_view<Out>, tensor_view<Lse>) -> partial_result<Out, Lse>;

/// Attention over those keys of a whole sequence that a query sees and whose index is in `keys`. All else as for attend(); rows
/// of k and v outside are not read. options.lse and options.sink_logits are refused: `result` has an lse, and learned sinks
/// belong to merge(), for they count once.
///
/// Law: the results of any ranges that have every key once, merged, equal attend(). Cost: that of the pairs in the part.
template <class Q, class K, class V, class Position, class Out, class Lse, class Executor = serial_executor>
void attend_partial(const tensor_view<Q>& q, const tensor_view<K>& k, const tensor_view<V>& v,
                    const lambda_shape& shape, const Position& position, const index_range& keys,
                    const partial_result<Out, Lse>& result, const attention_options& options = {},
                    Executor&& executor = {}) {
  static_assert(std::is_base_of_v<position_encoding, Position>,
                "lambda_attention: attend_partial(): `position` must be a position encoding, a class that derives from "
                "position_encoding (rope, alibi, t5_bias, none, or your own)");
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: attend_partial(): `result` must have views of elements that are not const");
  using real = detail::compute_type_of<Q, K, V, Out>;
  const detail::tensor queries = detail::erase(q), lse = detail::erase(result.lse), out = detail::erase(result.out);
  detail::check_part(keys, options, "attend_partial");
  detail::attention_job<real> job = detail::checked_sequence_job<real>(
      queries, detail::erase(k), detail::erase(v), out, shape, detail::limits_of(position), options,
      detail::pairs_of<real, K, V>(), "attend_partial");
  detail::check_lse_of_part(lse, out, {queries, out, detail::erase(k), detail::erase(v)}, "attend_partial");
  job.lse = lse;
  job.plan.part = keys;
  detail::run_one(job, options, executor, "attend_partial");
}

/// The same over what a cache holds, for the queries of the newest tokens: see attend(q, cache, out).
template <class Q, class Storage, class Position, class Out, class Lse, class Executor = serial_executor>
void attend_partial(const tensor_view<Q>& q, const kv_cache<Storage, Position>& cache, const index_range& keys,
                    const partial_result<Out, Lse>& result, const attention_options& options = {},
                    Executor&& executor = {}) {
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: attend_partial(): `result` must have views of elements that are not const");
  const detail::tensor queries = detail::erase(q), lse = detail::erase(result.lse), out = detail::erase(result.out);
  detail::check_part(keys, options, "attend_partial");
  detail::check_stream_queries(queries, out, cache.core(), cache.num_tokens(), detail::limits_of(cache.position()),
                               options, "attend_partial");
  detail::check_newest(queries.tokens, cache.core(), "attend_partial");
  detail::check_lse_of_part(lse, out, {queries, out}, "attend_partial");
  auto job = detail::stream_job(queries, out, cache.core(), cache.num_tokens(), cache.position().data(), options);
  job.lse = lse;
  job.plan.part = keys;
  detail::run_one(job, options, executor, "attend_partial");
}

/// One result of several, over the keys of all of them: each key is to be in one.
///
///     lse = ln sum_p e^lse_p          out = sum_p e^lse_p out_p / (sum_p e^lse_p + e^sink_logit(head))
///
/// All have the extents of the result; of two, each may have its own element types. The result may be one of the parts, row
/// for row; no other overlap. result.lse may have no data where it is not wanted. sink_logits, if given, has a number for each
/// head: for the last merge, as it is not in lse. Computes in double where one of the outputs is double, else in float, weights
/// always in double.
///
/// Errors: std::invalid_argument on extents, strides or aliases that do not fit, before anything is written.
/// Law: associative and commutative, within rounding. Cost: reads each part once.
template <class Part, class PartLse, class Out, class Lse>
void merge(const partial_result<Part, PartLse>* parts, index_t num_parts, const partial_result<Out, Lse>& result,
           const sink_logits_view& sink_logits = {}) {
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: merge(): `result` must have views of elements that are not const");
  if (num_parts < 0 || (num_parts > 0 && parts == nullptr))
    detail::refuse("merge: expected num_parts >= 0 parts, got %lld%s", detail::printable(num_parts),
                   parts == nullptr ? " at a null pointer" : "");
  detail::merge_parts<detail::compute_type_of<Part, Out>>(
      num_parts, [&](index_t p) { return detail::erase_part(parts[p]); }, detail::erase_part(result), sink_logits);
}

/// Of two.
template <class A, class ALse, class B, class BLse, class Out, class Lse>
void merge(const partial_result<A, ALse>& a, const partial_result<B, BLse>& b, const partial_result<Out, Lse>& result,
           const sink_logits_view& sink_logits = {}) {
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: merge(): `result` must have views of elements that are not const");
  const detail::erased_part parts[] = {detail::erase_part(a), detail::erase_part(b)};
  detail::merge_parts<detail::compute_type_of<A, B, Out>>(
      2, [&](index_t p) { return parts[p]; }, detail::erase_part(result), sink_logits);
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
