// One result of several partial ones, and what a partial call is refused for.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>

#include <initializer_list>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

inline void check_part(const index_range& keys, const attention_options& options, const char* where) {
  if (keys.first < 0 || keys.last < keys.first)
    refuse("%s: expected keys with 0 <= first <= last, got first = %lld, last = %lld", where, printable(keys.first),
           printable(keys.last));
  if (options.lse.data != nullptr) refuse("%s: expected no options.lse, for the result has one, got one", where);
  if (options.weights.data != nullptr)
    refuse("%s: expected no options.weights, for they are of all keys, got %lld columns", where,
           printable(options.weights.dim));
  if (options.sink_logits.data != nullptr)
    refuse("%s: expected no options.sink_logits, for they are merge()'s, got %lld", where,
           printable(options.sink_logits.size));
}

inline void check_lse_of_part(const tensor& lse, const tensor& out, std::initializer_list<tensor> others,
                              const char* where) {
  check_lse(lse, out, where, "result.lse");
  for (const tensor& other : others)
    if (overlap(lse, other))
      refuse("%s: expected result.lse not to overlap another tensor, got overlapping memory", where);
}

struct erased_part {
  tensor out;
  tensor lse;
};
template <class Part>
erased_part erase_part(const Part& part) {
  return {detail::erase(part.out), detail::erase(part.lse)};
}

inline void check_merge(const erased_part& part, const erased_part& result) {
  check_tensor(part.out, "merge", "out of a part");
  if (part.out.tokens != result.out.tokens || part.out.heads != result.out.heads || part.out.dim != result.out.dim)
    refuse("merge: expected parts of [%lld, %lld, %lld], as the result, got [%lld, %lld, %lld]",
           printable(result.out.tokens), printable(result.out.heads), printable(result.out.dim),
           printable(part.out.tokens), printable(part.out.heads), printable(part.out.dim));
  check_lse(part.lse, result.out, "merge", "lse of a part");
  const auto in_the_way = [](const tensor& a, const tensor& b) { return overlap(a, b) && !same_rows(a, b); };
  const bool has_lse = result.lse.data != nullptr;
  if (in_the_way(result.out, part.out) || overlap(result.out, part.lse) ||
      (has_lse && (overlap(result.lse, part.out) || in_the_way(result.lse, part.lse))))
    refuse("merge: expected the result to be a part, row for row, or apart from it, got overlapping memory");
}

inline void check_result(const erased_part& result, const sink_logits_view& sink_logits) {
  check_tensor(result.out, "merge", "result.out");
  check_dim(result.out.dim, "merge", "result.out.dim");
  check_distinct_rows(result.out, "merge", "result.out");
  if (result.lse.data != nullptr) check_lse(result.lse, result.out, "merge", "result.lse");
  if ((sink_logits.data != nullptr || sink_logits.size != 0) &&
      (sink_logits.data == nullptr || sink_logits.size != result.out.heads))
    refuse("merge: expected sink_logits for %lld heads, got %lld%s", printable(result.out.heads),
           printable(sink_logits.size), sink_logits.data == nullptr ? " at a null pointer" : "");
  const tensor sinks = erase(tensor_view<const float>(sink_logits.data, 1, 1, sink_logits.size, 0, 0));
  check_tensor(sinks, "merge", "sink_logits");
  const bool has_sinks = sink_logits.data != nullptr, has_lse = result.lse.data != nullptr;
  if ((has_lse && overlap(result.out, result.lse)) || (has_sinks && overlap(sinks, result.out)) ||
      (has_sinks && has_lse && overlap(sinks, result.lse)))
    refuse("merge: expected result.out, result.lse and sink_logits apart from each other, got overlapping memory");
}

// No key at all weighs e^-infinity. A comparison with a number holds under -ffast-math too.
constexpr double lowest_lse = -1e35;

// One row of one head. The largest exponent is taken out, so that no weight overflows, and each is divided by their number, so
// that no sum of rows does.
template <class Real, class PartAt>
void merge_row(const kernel_table<Real>& kernels, index_t num_parts, PartAt&& part_at, const erased_part& result,
               const sink_logits_view& sink_logits, index_t token, index_t head) {
  const index_t dim = result.out.dim, padded_dim = round_up(dim, row_multiple);
  Real sum_of_rows[max_head_dim], row[max_head_dim];
  for (index_t d = 0; d < padded_dim; ++d) sum_of_rows[d] = row[d] = 0;
  double largest = lowest_lse, sum = 0;
  for (index_t p = 0; p < num_parts; ++p) {
    const double lse = read_number(part_at(p).lse, token, head);
    if (!(lse <= largest)) largest = lse;
  }
  for (index_t p = 0; p < num_parts; ++p) {
    const erased_part part = part_at(p);
    const double lse = read_number(part.lse, token, head);
    if (lse <= lowest_lse) continue;
    const double weight = __builtin_exp(lse - largest);
    sum += weight;
    read_tensor_row(kernels, part.out, token, head, row);
    const Real share = static_cast<Real>(weight / static_cast<double>(num_parts));
    for (index_t d = 0; d < padded_dim; ++d) sum_of_rows[d] += share * row[d];
  }
  const float* const sink_logit = sink_logits.data == nullptr ? nullptr : sink_logits.data + head;
  const Real scale = static_cast<Real>(normaliser(sum, largest * log2_e, sink_logit) * static_cast<double>(num_parts));
  for (index_t d = 0; d < padded_dim; ++d) sum_of_rows[d] *= scale;
  write_tensor_row(kernels, result.out, token, head, sum_of_rows);
  if (result.lse.data != nullptr)
    write_number(result.lse, token, head, sum == 0 ? -__builtin_huge_val() : largest + __builtin_log(sum));
}

template <class Real, class PartAt>
void merge_parts(index_t num_parts, PartAt&& part_at, const erased_part& result, const sink_logits_view& sink_logits) {
  check_result(result, sink_logits);
  for (index_t p = 0; p < num_parts; ++p) check_merge(part_at(p), result);
  const kernel_table<Real>& kernels = kernels_for<Real>(isa_level::automatic);
  for (index_t token = 0; token < result.out.tokens; ++token)
    for (index_t head = 0; head < result.out.heads; ++head)
      merge_row(kernels, num_parts, part_at, result, sink_logits, token, head);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
