#include <lambda_attention/storage/f32.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "stored.hpp"

namespace la = lambda_attention;

TEST(F32, KeepsEveryBit) {
  using limits = std::numeric_limits<float>;
  std::vector<float> row = {0, -0.0f, 1, -1.5f, limits::max(), limits::lowest(), limits::min(), limits::denorm_min()};
  row.insert(row.end(), {limits::infinity(), -limits::infinity(), limits::quiet_NaN()});
  EXPECT_TRUE(same_bits(stored<la::f32>(row), row));
  EXPECT_EQ(la::f32::row_bytes(24), 24 * 4);
}

TEST(F32, AttentionReadsStoredRows) { expect_attention_to_stored_rows<la::f32>(); }
