#include <lambda_attention/storage/f16.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "stored.hpp"

namespace la = lambda_attention;

TEST(F16, KeepsHalves) {
  const std::vector<float> row = {0, -0.0f, 1, -0.5f, 65504, -65504, 0x1p-14f, 0x1p-24f, 1.0009765625f, HUGE_VALF};
  EXPECT_TRUE(same_bits(stored<la::f16>(row), row));
  EXPECT_TRUE(std::isnan(stored<la::f16>({std::nanf("")})[0]));
  EXPECT_EQ(la::f16::row_bytes(24), 48);
}

TEST(F16, RelativeErrorIsAtMostTwoToTheMinus11) {
  double largest = 0;
  for (const float scale : {0x1p-12f, 1.0f, 4096.0f}) {
    const std::vector<float> row = normal<float>(1, 1, 20000, 3).elements;
    std::vector<float> scaled;
    for (const float x : row) scaled.push_back(std::fabs(x) < 0.5f ? scale : x * scale);
    const std::vector<float> kept = stored<la::f16>(scaled);
    for (std::size_t i = 0; i < row.size(); ++i)
      largest = std::fmax(largest, static_cast<double>(std::fabs(kept[i] - scaled[i]) / std::fabs(scaled[i])));
  }
  EXPECT_LE(largest, 0x1p-11);
  EXPECT_GE(largest, 0x1p-12);
}

TEST(F16, BelowItsNormalNumbersErrorsAreAbsolute) {
  for (float x = 0x1p-15f; x > 0x1p-30f; x *= 0.7f) EXPECT_LE(std::fabs(stored<la::f16>({x})[0] - x), 0x1p-25f) << x;
}

TEST(F16, AttentionReadsStoredRows) { expect_attention_to_stored_rows<la::f16>(); }
