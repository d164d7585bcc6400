#include <lambda_attention/storage/f64.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "stored.hpp"

namespace la = lambda_attention;

TEST(F64, KeepsEveryBit) {
  using limits = std::numeric_limits<double>;
  std::vector<double> row = {0, -0.0, 1, -1.5, limits::max(), limits::lowest(), limits::min(), limits::denorm_min()};
  row.insert(row.end(), {limits::infinity(), -limits::infinity(), limits::quiet_NaN()});
  EXPECT_TRUE(same_bits(stored<la::f64>(row), row));
  EXPECT_EQ(la::f64::row_bytes(24), 24 * 8);
}

TEST(F64, AttentionReadsStoredRows) { expect_attention_to_stored_rows<la::f64>(); }
