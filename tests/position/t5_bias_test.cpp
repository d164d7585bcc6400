#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/t5_bias.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../refusal.hpp"
#include "../tensors.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::t5_bias;

namespace {

t5_bias buckets(index_t num_buckets, index_t max_distance) {
  const std::vector<float> zeros(static_cast<std::size_t>(num_buckets));
  return t5_bias(zeros.data(), num_buckets, 1, max_distance);
}

// The first distance of bucket exact + b is the first whole d with log(d / exact) / log(max / exact) *
// (buckets - exact) >= b, that is, with (d / exact)^(buckets - exact) >= (max / exact)^b. Found without a logarithm.
std::vector<index_t> first_distances(index_t num_buckets, index_t max_distance) {
  const index_t exact = num_buckets / 2;
  std::vector<index_t> first;
  for (index_t d = 0; d < exact; ++d) first.push_back(d);
  index_t d = exact;
  for (index_t b = 0; b < num_buckets - exact; ++b) {
    const auto below = [&] {
      const long double left = std::pow(static_cast<long double>(d) / static_cast<long double>(exact),
                                        static_cast<int>(num_buckets - exact));
      const long double right =
          std::pow(static_cast<long double>(max_distance) / static_cast<long double>(exact), static_cast<int>(b));
      return left < right * (1 - 1e-12L);  // equal up to rounding is equal
    };
    while (below()) ++d;
    first.push_back(d);
  }
  return first;
}

void expect_buckets(index_t num_buckets, index_t max_distance, const std::vector<index_t>& first) {
  const t5_bias position = buckets(num_buckets, max_distance);
  ASSERT_EQ(static_cast<index_t>(first.size()), num_buckets);
  index_t bucket = 0;
  for (index_t d = 0; d <= 2 * max_distance; ++d) {
    while (bucket + 1 < num_buckets && d >= first[static_cast<std::size_t>(bucket + 1)]) ++bucket;
    ASSERT_EQ(position.bucket(d), bucket) << "distance " << d;
  }
  ASSERT_EQ(position.bucket(la::unlimited), num_buckets - 1);
}

}  // namespace

// num_buckets 32, max_distance 128. Distances below 16 have a bucket each. Bucket 16 + b begins at 16 * 8^(b / 16),
// rounded up: 16, 18.2, 20.7, 23.6, 26.9, 30.6, 34.9, 39.7, 45.3, 51.5, 58.7, 66.8, 76.1, 86.7, 98.7, 112.4.
TEST(T5Bias, BucketsOfThePublishedModels) {
  expect_buckets(32, 128, {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                           16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113});
}

// Distances on the very edge of a bucket: it begins at 4 * 2^b.
TEST(T5Bias, BucketsThatBeginAtWholeDistances) {
  expect_buckets(8, 64, {0, 1, 2, 3, 4, 8, 16, 32});
  expect_buckets(2, 2, {0, 1});
}

// So near the largest distance that its logarithm is rounded to that one's.
TEST(T5Bias, ThereIsNoBucketPastTheLast) { EXPECT_EQ(buckets(32, 1 << 21).bucket((1 << 21) - 1), 31); }

TEST(T5Bias, BucketsOfOtherSizes) {
  expect_buckets(32, 128, first_distances(32, 128));
  expect_buckets(32, 256, first_distances(32, 256));
  expect_buckets(64, 1024, first_distances(64, 1024));
  expect_buckets(16, 50, first_distances(16, 50));
  expect_buckets(6, 5, first_distances(6, 5));
}

TEST(T5Bias, WeightsAreBucketsByHeads) {
  std::vector<float> weights;
  for (int b = 0; b < 32; ++b)
    for (int h = 0; h < 3; ++h) weights.push_back(static_cast<float>(100 * h + b));
  const t5_bias position(weights.data(), 32, 3);
  EXPECT_EQ(position.num_heads(), 3);
  for (index_t h = 0; h < 3; ++h) {
    EXPECT_EQ(position.bias(h, 0), 100 * h);
    EXPECT_EQ(position.bias(h, 15), 100 * h + 15);
    EXPECT_EQ(position.bias(h, 18), 100 * h + 16);
    EXPECT_EQ(position.bias(h, 19), 100 * h + 17);
    EXPECT_EQ(position.bias(h, 112), 100 * h + 30);
    EXPECT_EQ(position.bias(h, 113), 100 * h + 31);
    EXPECT_EQ(position.bias(h, 1000000), 100 * h + 31);
  }
}

TEST(T5Bias, TellsTheKernelsATableByDistance) {
  std::vector<float> weights;
  for (int i = 0; i < 32 * 3; ++i) weights.push_back(static_cast<float>(i) / 8);
  const t5_bias position(weights.data(), 32, 3, 40);
  const la::position_data data = position.data();
  EXPECT_FALSE(data.rotates());
  ASSERT_NE(data.biases, nullptr);
  EXPECT_EQ(data.biases->num_heads(), 3);
  EXPECT_EQ(data.biases->num_distances(), 41);
  for (index_t h = 0; h < 3; ++h) {
    for (index_t d = 0; d <= 41; ++d) {
      const double bias = static_cast<double>(position.bias(h, d)) * 1.4426950408889634;
      EXPECT_DOUBLE_EQ(data.biases->row(h, double{})[d], bias) << h << ", " << d;
    }
  }
}

// With queries of zeros the logits are the biases; a query that sees the key 0 alone has that key's logit as its lse.
TEST(T5Bias, KernelsAddTheBias) {
  const index_t n = 150, heads = 3;
  std::vector<float> weights;
  for (int i = 0; i < 32 * 3; ++i) weights.push_back(static_cast<float>(i % 17) / 8 - 1);
  const t5_bias position(weights.data(), 32, heads);
  sequence<float> s(n, heads, 1, 4, 4);
  for (float& x : s.q.elements) x = 0;
  std::vector<float> lse(static_cast<std::size_t>(n * heads));
  la::attention_options options;
  options.lse = la::token_major(lse.data(), n, heads, 1);
  for (const index_t limit : {la::unlimited, index_t{30}}) {
    la::attend(s.q.view(), s.k.view(), s.v.view(), la::lambda_shape{1, 0, limit}, position, s.out.view(), options);
    for (index_t i = 0; i < n; ++i) {
      for (index_t h = 0; h < heads; ++h) {
        const index_t row = position.bucket(std::min(i, limit)) * heads + h;
        EXPECT_NEAR(*options.lse.row(i, h), weights[static_cast<std::size_t>(row)], 1e-6) << i << ", " << h;
      }
    }
  }
}

// The same of a stream, token by token, farther than the table goes.
TEST(T5Bias, KernelsAddTheBiasOfStreams) {
  const index_t n = 300, heads = 3;
  std::vector<float> weights;
  for (int i = 0; i < 32 * 3; ++i) weights.push_back(static_cast<float>(i % 17) / 8 - 1);
  const t5_bias position(weights.data(), 32, heads);
  sequence<float> s(n, heads, 1, 16, 16);
  la::kv_cache<la::f32, t5_bias> cache(la::sliding_window(n), position, 1, 16, 16);
  for (index_t i = 0; i < n; ++i)
    la::attend(s.q.view().slice(i, 1), s.k.view().slice(i, 1), s.v.view().slice(i, 1), cache, s.out.view().slice(i, 1));
  EXPECT_LE(nmse(s.out.elements, expected(s, la::sliding_window(n), position)), 1e-11);
}

TEST(T5Bias, Refusals) {
  std::vector<float> weights(64);
  const auto made = [&](index_t num_buckets, index_t num_heads, index_t max_distance) {
    return refusal([&] { t5_bias(weights.data(), num_buckets, num_heads, max_distance); });
  };
  EXPECT_EQ(made(32, 2, 17), "accepted");
  EXPECT_EQ(made(32, 0, 128), "t5_bias: expected 1 <= num_heads <= 2^20, got 0");
  EXPECT_EQ(made(32, (1 << 20) + 1, 128), "t5_bias: expected 1 <= num_heads <= 2^20, got 1048577");
  EXPECT_EQ(made(0, 2, 128), "t5_bias: expected an even num_buckets from 2 to 2^20, got 0");
  EXPECT_EQ(made(31, 2, 128), "t5_bias: expected an even num_buckets from 2 to 2^20, got 31");
  EXPECT_EQ(made((1 << 20) + 2, 2, 1 << 24), "t5_bias: expected an even num_buckets from 2 to 2^20, got 1048578");
  EXPECT_EQ(made(32, 2, 16), "t5_bias: expected num_buckets / 2 < max_distance <= 2^24, got 16");
  EXPECT_EQ(made(32, 2, (1 << 24) + 1), "t5_bias: expected num_buckets / 2 < max_distance <= 2^24, got 16777217");
  weights[40] = -HUGE_VALF;
  EXPECT_EQ(made(32, 2, 128), "t5_bias: expected weights within +-1e30, got -inf");
  weights[40] = std::nanf("");
  EXPECT_EQ(made(32, 2, 128), "t5_bias: expected weights within +-1e30, got nan");
  weights[40] = 1.1e30f;
  EXPECT_EQ(made(32, 2, 128), "t5_bias: expected weights within +-1e30, got 1.1e+30");
  weights[40] = 0;
  weights[2 * 20] = -HUGE_VALF;  // of a bucket that no distance falls into
  EXPECT_EQ(made(32, 2, 17), "t5_bias: expected weights within +-1e30, got -inf");
}
