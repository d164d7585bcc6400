// Calls of attend() on random numbers.
#pragma once

#include <lambda_attention/attention.hpp>

#include <support/random_tensor.hpp>

namespace support {

/// Queries, keys and values of one sequence.
template <class T = float>
struct inputs {
  tensor<T> q;
  tensor<T> k;
  tensor<T> v;
};

struct extents {
  index_t tokens;
  index_t kv_heads;
  index_t group;
  index_t head_dim = 12;
  index_t v_head_dim = 20;  // neither is a multiple of a vector

  index_t heads() const { return kv_heads * group; }
};

/// Normal numbers; sigma becomes the standard deviation of the scores.
template <class T = float>
inputs<T> random_inputs(generator& random, const extents& e, layout l = layout::token_major, double sigma = 1) {
  // One after the other: the order of initialisers is the order of their random numbers.
  return {random_tensor<T>(random, e.tokens, e.heads(), e.head_dim, l, sigma),
          random_tensor<T>(random, e.tokens, e.kv_heads, e.head_dim, l),
          random_tensor<T>(random, e.tokens, e.kv_heads, e.v_head_dim, l)};
}

template <class Out, class T>
tensor<Out> output_for(const inputs<T>& in, layout l = layout::token_major) {
  return tensor<Out>(in.q.view().tokens, in.q.view().heads, in.v.view().dim, l);
}

/// The whole sequence, computed in Real.
template <class Real, class T, class Position>
tensor<Real> attend_sequence(const inputs<T>& in, const lambda_attention::lambda_shape& shape, const Position& position,
                             const lambda_attention::attention_options& options = {}) {
  tensor<Real> out = output_for<Real>(in);
  lambda_attention::attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), options);
  return out;
}

template <class Storage, class T, class Position>
lambda_attention::kv_cache<Storage, Position> cache_for(const inputs<T>& in,
                                                        const lambda_attention::lambda_shape& shape,
                                                        const Position& position,
                                                        const lambda_attention::kv_cache_options& options = {}) {
  return {shape, position, in.k.view().heads, in.k.view().dim, in.v.view().dim, options};
}

/// Tokens [first, first + count) of a stream.
template <class T, class Cache, class Out>
void attend_part(const inputs<T>& in, index_t first, index_t count, Cache& cache, tensor<Out>& out,
                 const lambda_attention::attention_options& options = {}) {
  lambda_attention::attend(in.q.view().slice(first, count), in.k.view().slice(first, count),
                           in.v.view().slice(first, count), cache, out.view().slice(first, count), options);
}

/// The whole stream in one call on a new cache.
template <class Storage, class T, class Position>
tensor<typename Storage::compute_type> attend_stream(const inputs<T>& in, const lambda_attention::lambda_shape& shape,
                                                     const Position& position,
                                                     const lambda_attention::kv_cache_options& cache_options = {},
                                                     const lambda_attention::attention_options& options = {}) {
  auto out = output_for<typename Storage::compute_type>(in);
  auto cache = cache_for<Storage>(in, shape, position, cache_options);
  attend_part(in, 0, in.q.view().tokens, cache, out, options);
  return out;
}

}  // namespace support
