#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/alibi.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "../refusal.hpp"
#include "../tensors.hpp"

namespace la = lambda_attention;
using la::alibi;
using la::index_t;

namespace {

// The published slopes as exponents: slope(h) = 2^-exponents[h].
void expect_exponents(const std::vector<double>& exponents) {
  const alibi position(static_cast<index_t>(exponents.size()));
  ASSERT_EQ(position.num_heads(), static_cast<index_t>(exponents.size()));
  for (std::size_t h = 0; h < exponents.size(); ++h)
    EXPECT_DOUBLE_EQ(position.slope(static_cast<index_t>(h)), std::pow(2.0, -exponents[h])) << "head " << h;
}

}  // namespace

// "For 8 heads the slopes are the geometric sequence 1/2, 1/4, ..., 1/256."
TEST(Alibi, SlopesOf8Heads) {
  expect_exponents({1, 2, 3, 4, 5, 6, 7, 8});
  const alibi position(8);
  EXPECT_EQ(position.slope(0), 0.5);
  EXPECT_EQ(position.slope(7), 0.00390625);
}

TEST(Alibi, SlopesOf16Heads) { expect_exponents({0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8}); }

// Those of 8 heads, then every second one of 16 heads.
TEST(Alibi, SlopesOf12Heads) { expect_exponents({1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5}); }

// Those of 16 heads, then every second one of 32 heads.
TEST(Alibi, SlopesOf20Heads) {
  expect_exponents({0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 0.25, 0.75, 1.25, 1.75});
}

TEST(Alibi, SlopesOfFewHeads) {
  expect_exponents({8});
  expect_exponents({4, 8});
  expect_exponents({4, 8, 2});
}

TEST(Alibi, ExplicitSlopes) {
  const double slopes[] = {0.5, 0, -1.25};
  const alibi position(slopes, 3);
  EXPECT_EQ(position.num_heads(), 3);
  for (index_t h = 0; h < 3; ++h) EXPECT_EQ(position.slope(h), slopes[h]);
}

TEST(Alibi, BiasIsMinusSlopeTimesDistance) {
  const alibi position(8);
  EXPECT_EQ(position.bias(0, 0), 0);
  EXPECT_EQ(position.bias(0, 3), -1.5);
  EXPECT_EQ(position.bias(7, 512), -2);
}

TEST(Alibi, TellsTheKernelsItsSlopes) {
  const alibi position(8);
  const la::position_data data = position.data();
  EXPECT_TRUE(data.has_bias());
  EXPECT_FALSE(data.rotates());
  for (index_t h = 0; h < 8; ++h) EXPECT_EQ(data.slopes[h], position.slope(h));
}

// With queries of zeros the logits are the biases. Query i of head h, whose slope is s, sees the keys 0, i - 1 and i,
// at distances min(i, 4), 1 and 0.
TEST(Alibi, KernelsAddTheBias) {
  const index_t n = 40, heads = 12;
  sequence<float> s(n, heads, heads, 4, 4);
  for (float& x : s.q.elements) x = 0;
  std::vector<float> lse(static_cast<std::size_t>(n * heads));
  la::attention_options options;
  options.lse = la::token_major(lse.data(), n, heads, 1);
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lambda_shape{1, 2, 4}, alibi(heads), s.out.view(), options);
  const double exponents[] = {1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5};
  for (index_t i = 2; i < n; ++i) {
    for (index_t h = 0; h < heads; ++h) {
      const double slope = std::pow(2.0, -exponents[h]), distance = i < 4 ? static_cast<double>(i) : 4;
      const double right = std::log(std::exp(-slope * distance) + std::exp(-slope) + 1);
      EXPECT_NEAR(*options.lse.row(i, h), right, 1e-6) << "query " << i << ", head " << h;
    }
  }
}

// The largest: the nearest key has all of the weight.
TEST(Alibi, SlopesOfAnySize) {
  sequence<float> s(9, 2, 2, 4, 4);
  const double slopes[] = {1e30, 1e30};
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(2, 3), alibi(slopes, 2), s.out.view());
  la::kv_cache<la::f32, alibi> cache(la::lm_infinite(2, 3), alibi(slopes, 2), 2, 4, 4);
  std::vector<float> token(8);
  for (index_t i = 0; i < 9; ++i) {
    la::attend(s.q.view().slice(i, 1), s.k.view().slice(i, 1), s.v.view().slice(i, 1), cache,
               la::token_major(token.data(), 1, 2, 4));
    for (index_t h = 0; h < 2; ++h) {
      for (index_t d = 0; d < 4; ++d) {
        EXPECT_FLOAT_EQ(s.out.view().row(i, h)[d], s.v.view().row(i, h)[d]);
        EXPECT_FLOAT_EQ(token[static_cast<std::size_t>(4 * h + d)], s.v.view().row(i, h)[d]);
      }
    }
  }
}

TEST(Alibi, Refusals) {
  EXPECT_EQ(refusal([] { alibi(0); }), "alibi: expected 1 <= num_heads <= 2^30, got 0");
  EXPECT_EQ(refusal([] { alibi(-8); }), "alibi: expected 1 <= num_heads <= 2^30, got -8");
  EXPECT_EQ(refusal([] { alibi((index_t{1} << 30) + 1); }), "alibi: expected 1 <= num_heads <= 2^30, got 1073741825");
  const double slopes[] = {1, std::nan(""), -HUGE_VAL};
  EXPECT_EQ(refusal([&] { alibi(slopes, 0); }), "alibi: expected 1 <= num_heads <= 2^30, got 0");
  EXPECT_EQ(refusal([&] { alibi(slopes, 1); }), "accepted");
  EXPECT_EQ(refusal([&] { alibi(slopes, 3); }), "alibi: expected slopes within +-1e30, got slopes[1] = nan");
  const double large[] = {-1e30, 1e30, 1e31};
  EXPECT_EQ(refusal([&] { alibi(large, 2); }), "accepted");
  EXPECT_EQ(refusal([&] { alibi(large, 3); }), "alibi: expected slopes within +-1e30, got slopes[2] = 1e+31");
  EXPECT_EQ(refusal([&] { alibi(slopes + 2, 1); }), "alibi: expected slopes within +-1e30, got slopes[0] = -inf");
}
