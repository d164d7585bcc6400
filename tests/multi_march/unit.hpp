// Text of both units. RUN returns 0 when the result is right: a mean of equal rows is that row.
#include <lambda_attention/lambda_attention.hpp>

int RUN();

int RUN() {
  namespace la = lambda_attention;
  constexpr la::index_t n = 100, heads = 4, kv_heads = 2, dim = 16;
  static float q[n * heads * dim], k[n * kv_heads * dim], v[n * kv_heads * dim], out[n * heads * dim];
  for (float& x : q) x = 0.5f;
  for (float& x : k) x = 0.25f;
  for (float& x : v) x = 2.0f;
  la::attend(la::token_major(q, n, heads, dim), la::token_major(k, n, kv_heads, dim),
             la::token_major(v, n, kv_heads, dim), la::lm_infinite(4, 16), la::rope(dim),
             la::token_major(out, n, heads, dim));
  for (const float x : out)
    if (!(x > 1.9999f && x < 2.0001f)) return 1;  // not std::fabs: both units would share it
  return 0;
}
