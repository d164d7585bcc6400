// The program of all three consumer projects: 300 tokens through a window of 16 with 4 sinks.
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  namespace la = lambda_attention;
  const la::index_t n = 300, heads = 4, kv_heads = 2, dim = 32;
  std::vector<float> q(static_cast<std::size_t>(n * heads * dim), 0.5f);
  std::vector<float> k(static_cast<std::size_t>(n * kv_heads * dim), 0.25f);
  const std::vector<float> v(k.size(), 1.0f);
  std::vector<float> out(q.size());
  la::attend(la::token_major(q.data(), n, heads, dim), la::token_major(k.data(), n, kv_heads, dim),
             la::token_major(v.data(), n, kv_heads, dim), la::lm_infinite(4, 16), la::rope(dim),
             la::token_major(out.data(), n, heads, dim));
  // A mean of ones is one, whatever the weights.
  for (const float x : out)
    if (!(std::abs(x - 1.0f) < 1e-5f)) return std::printf("expected 1, got %g\n", static_cast<double>(x)), 1;
  std::puts("ok");
}
