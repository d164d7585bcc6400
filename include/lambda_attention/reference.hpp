// The formula, written down plainly in long double: O(n^2), for tests and for trust. It shares no code with the kernels.
// Its std::vectors are of functions that units of different -march share: include it where one is used.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace reference {

/// One element as a number: by the bits that its kind says it has.
template <class T>
long double number(const T& element) {
  const auto with_the_bits = [&element](auto number) {
    static_assert(sizeof number == sizeof element, "lambda_attention: an element is as large as its kind");
    std::memcpy(&number, &element, sizeof number);
    return number;
  };
  constexpr element_kind kind = element_traits<T>::kind;
  if constexpr (kind == element_kind::custom) return element_traits<T>::to_float(element);
  if constexpr (kind == element_kind::f16) return static_cast<float>(with_the_bits(half()));
  if constexpr (kind == element_kind::bf16) return static_cast<float>(with_the_bits(bfloat16()));
  if constexpr (kind == element_kind::f32) return with_the_bits(float());
  if constexpr (kind == element_kind::f64) return with_the_bits(double());
}

template <class T>
std::vector<long double> numbers(const T* row, index_t count) {
  std::vector<long double> result(static_cast<std::size_t>(count > 0 ? count : 0));
  for (long double& r : result) r = reference::number(*row++);
  return result;
}

/// The row of one query: out[v_head_dim], and the natural log of the sum of its exponentials as the return value. `query`
/// is an index of the stream; k and v hold the stream's tokens from index 0 on. Nothing is checked.
template <class Q, class K, class V, class Position>
long double attend_row(const Q* q, index_t query, index_t head, index_t num_heads, const tensor_view<K>& k,
                       const tensor_view<V>& v, const lambda_shape& shape, const Position& position,
                       const attention_options& options, long double* out) {
  using key_element = std::remove_const_t<K>;
  const index_t kv_head = head / (num_heads / k.heads);
  const long double scale =
      options.scale != 0 ? static_cast<long double>(options.scale) : 1 / std::sqrt(static_cast<long double>(k.dim));
  const long double cap = options.soft_cap;
  const std::vector<long double> query_row = reference::numbers<std::remove_const_t<Q>>(q, k.dim);

  std::vector<index_t> keys;
  std::vector<long double> logits;
  for (index_t j = 0; j <= query; ++j) {
    if (!shape.visible(query, j)) continue;
    const std::vector<long double> key_row = reference::numbers<key_element>(k.row(j, kv_head), k.dim);
    const index_t distance = shape.distance(query, j);
    long double score = scale * position.score(query_row.data(), key_row.data(), k.dim, distance);
    if (cap != 0) score = cap * std::tanh(score / cap);
    keys.push_back(j);
    logits.push_back(score + position.bias(head, distance));
  }

  for (index_t d = 0; d < v.dim; ++d) out[d] = 0;
  if (keys.empty()) return -HUGE_VALL;
  long double largest = logits[0];
  for (const long double logit : logits) largest = std::fmax(largest, logit);
  long double sum = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const long double weight = std::exp(logits[i] - largest);
    sum += weight;
    for (index_t d = 0; d < v.dim; ++d)
      out[d] += weight * reference::number<std::remove_const_t<V>>(v.row(keys[i], kv_head)[d]);
  }
  const long double denominator =
      sum + (options.sink_logits.data != nullptr ? std::exp(options.sink_logits.data[head] - largest) : 0.0L);
  for (index_t d = 0; d < v.dim; ++d) out[d] /= denominator;
  return largest + std::log(sum);
}

/// attend() of a whole sequence, by the formula. `out` is a view of double or long double, [n, heads, v_head_dim].
template <class Q, class K, class V, class Position, class Out>
void attend(const tensor_view<Q>& q, const tensor_view<K>& k, const tensor_view<V>& v, const lambda_shape& shape,
            const Position& position, const tensor_view<Out>& out, const attention_options& options = {}) {
  static_assert(std::is_same_v<Out, double> || std::is_same_v<Out, long double>, "reference: out is double or wider");
  std::vector<long double> row(static_cast<std::size_t>(v.dim));
  for (index_t i = 0; i < q.tokens; ++i) {
    for (index_t h = 0; h < q.heads; ++h) {
      reference::attend_row(q.row(i, h), i, h, q.heads, k, v, shape, position, options, row.data());
      for (index_t d = 0; d < v.dim; ++d) out.row(i, h)[d] = static_cast<Out>(row[static_cast<std::size_t>(d)]);
    }
  }
}

}  // namespace reference
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
