// What the demo measures, shared by its two programs.
#pragma once

#include "../support/random.hpp"

#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <vector>

namespace demo {

using lambda_attention::index_t;

inline constexpr index_t head_dim = 128, num_heads = 8, num_kv_heads = 2;
inline constexpr index_t num_sinks = 16, window = 1024;
inline constexpr index_t smallest_tokens = 1024, largest_tokens = 32768, largest_naive_tokens = 16384;
inline constexpr index_t largest_stream = 65536;

inline lambda_attention::lambda_shape lambda() { return lambda_attention::lm_infinite(num_sinks, window); }
inline lambda_attention::rope position() { return lambda_attention::rope(head_dim); }

/// Normal q, k and v of one layer as its projections leave them, and room for the output, all of it touched.
struct layer {
  explicit layer(index_t tokens_)
      : tokens(tokens_),
        q(bench::normal_values<float>(tokens * num_heads * head_dim, 1)),
        k(bench::normal_values<float>(tokens * num_kv_heads * head_dim, 2)),
        v(bench::normal_values<float>(tokens * num_kv_heads * head_dim, 3)),
        out(q.size(), -1.0f) {}

  lambda_attention::tensor_view<float> queries() { return view(q, num_heads); }
  lambda_attention::tensor_view<float> keys() { return view(k, num_kv_heads); }
  lambda_attention::tensor_view<float> values() { return view(v, num_kv_heads); }
  lambda_attention::tensor_view<float> output() { return view(out, num_heads); }

  index_t tokens;
  std::vector<float> q, k, v, out;

 private:
  lambda_attention::tensor_view<float> view(std::vector<float>& values_, index_t heads) const {
    return lambda_attention::token_major(values_.data(), tokens, heads, head_dim);
  }
};

}  // namespace demo
