// Tensors with memory of their own, filled with random numbers, and what tests ask of results.
#pragma once

#include <lambda_attention/element.hpp>
#include <lambda_attention/reference.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

/// A dense token-major tensor, zeros at first.
template <class T>
struct dense {
  lambda_attention::index_t tokens, heads, dim;
  std::vector<T> elements;

  dense(lambda_attention::index_t tokens_, lambda_attention::index_t heads_, lambda_attention::index_t dim_)
      : tokens(tokens_), heads(heads_), dim(dim_), elements(static_cast<std::size_t>(tokens_ * heads_ * dim_)) {}

  lambda_attention::tensor_view<T> view() { return lambda_attention::token_major(elements.data(), tokens, heads, dim); }
  lambda_attention::tensor_view<const T> view() const {
    return lambda_attention::token_major(elements.data(), tokens, heads, dim);
  }
};

/// Normal numbers; the same seed gives the same numbers, rounded to T.
template <class T>
dense<T> normal(lambda_attention::index_t tokens, lambda_attention::index_t heads, lambda_attention::index_t dim,
                std::uint32_t seed) {
  dense<T> result(tokens, heads, dim);
  std::mt19937 generator(seed);
  std::normal_distribution<float> numbers;
  for (T& element : result.elements) element = static_cast<T>(numbers(generator));
  return result;
}

/// q, k, v of a sequence and memory for its output.
template <class Q = float, class K = Q, class V = K, class Out = Q>
struct sequence {
  dense<Q> q;
  dense<K> k;
  dense<V> v;
  dense<Out> out;

  sequence(lambda_attention::index_t tokens, lambda_attention::index_t heads, lambda_attention::index_t kv_heads,
           lambda_attention::index_t dim, lambda_attention::index_t v_dim, std::uint32_t seed = 1)
      : q(normal<Q>(tokens, heads, dim, 3 * seed)),
        k(normal<K>(tokens, kv_heads, dim, 3 * seed + 1)),
        v(normal<V>(tokens, kv_heads, v_dim, 3 * seed + 2)),
        out(tokens, heads, v_dim) {}
};

/// The reference's output for a sequence.
template <class Sequence, class Position>
std::vector<double> expected(const Sequence& s, const lambda_attention::lambda_shape& shape, const Position& position,
                             const lambda_attention::attention_options& options = {}) {
  dense<double> out(s.out.tokens, s.out.heads, s.out.dim);
  lambda_attention::reference::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, out.view(), options);
  return out.elements;
}

/// Normalised mean squared error: the mean of (actual - expected)^2 over that of expected^2.
template <class T>
double nmse(const std::vector<T>& actual, const std::vector<double>& expected) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(lambda_attention::reference::number(actual[i])) - expected[i];
    error += difference * difference;
    power += expected[i] * expected[i];
  }
  return actual.size() == expected.size() ? error / power : HUGE_VAL;
}

/// Equality of bits: NaNs equal themselves, and -0 is not 0.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
