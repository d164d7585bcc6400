#include <lambda_attention/storage/bf16.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "stored.hpp"

namespace la = lambda_attention;

TEST(Bf16, KeepsBfloat16s) {
  const std::vector<float> row = {0, -0.0f, 1, -0.5f, 0x1p127f, 0x1p-126f, 0x1p-133f, 1.0078125f, -HUGE_VALF};
  EXPECT_TRUE(same_bits(stored<la::bf16>(row), row));
  EXPECT_TRUE(std::isnan(stored<la::bf16>({std::nanf("")})[0]));
  EXPECT_EQ(la::bf16::row_bytes(24), 48);
}

TEST(Bf16, RelativeErrorIsAtMostTwoToTheMinus8) {
  double largest = 0;
  for (const float scale : {1e-30f, 1.0f, 1e30f}) {
    std::vector<float> row = normal<float>(1, 1, 20000, 3).elements;
    for (float& x : row) x *= scale;
    const std::vector<float> kept = stored<la::bf16>(row);
    for (std::size_t i = 0; i < row.size(); ++i)
      largest = std::fmax(largest, static_cast<double>(std::fabs(kept[i] - row[i]) / std::fabs(row[i])));
  }
  EXPECT_LE(largest, 0x1p-8);
  EXPECT_GE(largest, 0x1p-9);
}

TEST(Bf16, AttentionReadsStoredRows) { expect_attention_to_stored_rows<la::bf16>(); }
