// The umbrella alone is enough for a program: a stream of tokens through one layer, without end and in constant memory.
#include <lambda_attention/lambda_attention.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace la = lambda_attention;

TEST(Umbrella, IsEnoughForAProgram) {
  const la::index_t heads = 8, kv_heads = 2, dim = 16;
  la::kv_cache<la::bf16, la::rope> cache(la::lm_infinite(4, 64), la::rope(dim), kv_heads, dim, dim);
  la::workspace scratch(la::scratch_bytes(cache, heads, 1));
  la::attention_options options;
  options.workspace = &scratch;

  std::vector<float> q(heads * dim), k(kv_heads * dim), v(kv_heads * dim), out(heads * dim);
  const la::index_t bytes = cache.bytes();
  for (int token = 0; token < 1000; ++token) {
    for (float& x : q) x = std::sin(static_cast<float>(&x - q.data() + token));
    for (float& x : k) x = std::cos(static_cast<float>(&x - k.data() + token));
    for (float& x : v) x = token < 500 ? 1.0f : 3.0f;
    la::attend(la::token_major(q.data(), 1, heads, dim), la::token_major(k.data(), 1, kv_heads, dim),
               la::token_major(v.data(), 1, kv_heads, dim), cache, la::token_major(out.data(), 1, heads, dim), options);
  }
  EXPECT_EQ(cache.num_tokens(), 1000);
  EXPECT_EQ(cache.bytes(), bytes);
  for (const float x : out) {
    EXPECT_GT(x, 1);  // the sinks are still there,
    EXPECT_LT(x, 3);  // beside the window
  }
}

TEST(Umbrella, HasEveryPart) {
  const float weights[] = {0, 1};
  EXPECT_EQ(la::t5_bias(weights, 2, 1, 2).num_heads(), 1);
  EXPECT_EQ(la::alibi(4).num_heads(), 4);
  EXPECT_FALSE(la::none().data().rotates());
  EXPECT_EQ(la::f64::row_bytes(1) + la::f32::row_bytes(1) + la::f16::row_bytes(1) + la::int8::row_bytes(1), 15);
  EXPECT_EQ(la::serial_executor().num_workers(), 1);
  EXPECT_NE(la::isa(), la::isa_level::automatic);
  EXPECT_EQ(static_cast<float>(la::half(1.0f)), 1);
  EXPECT_EQ(la::streaming_llm(1, 2).window, la::sliding_window(2).window);
}
