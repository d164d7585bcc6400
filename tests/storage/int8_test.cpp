#include <lambda_attention/storage/int8.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "stored.hpp"

namespace la = lambda_attention;

TEST(Int8, KeepsWholeMultiplesOfTheScale) {
  std::vector<float> row;
  for (int i = -127; i <= 127; ++i) row.push_back(static_cast<float>(i) / 4);
  std::vector<std::int8_t> bytes(row.size());
  EXPECT_EQ(la::int8::encode(row.data(), 255, bytes.data()), 0.25f);
  for (int i = -127; i <= 127; ++i) EXPECT_EQ(bytes[static_cast<std::size_t>(i + 127)], i);
  EXPECT_EQ(stored<la::int8>(row), row);
  EXPECT_EQ(la::int8::row_bytes(24), 24);
}

TEST(Int8, ErrorIsAtMostHalfTheScale) {
  for (const float size : {1e-30f, 1e-3f, 1.0f, 1e3f, 1e37f}) {
    std::vector<float> row = normal<float>(1, 1, 4096, 9).elements;
    for (float& x : row) x *= size;
    std::vector<std::int8_t> bytes(row.size());
    const float scale = la::int8::encode(row.data(), 4096, bytes.data());
    float largest = 0;
    for (const float x : row) largest = std::fmax(largest, std::fabs(x));
    EXPECT_FLOAT_EQ(scale, largest / 127);
    const std::vector<float> kept = stored<la::int8>(row);
    for (std::size_t i = 0; i < row.size(); ++i) ASSERT_LE(std::fabs(kept[i] - row[i]), 0.5001f * scale);
  }
}

TEST(Int8, ZerosStayZeros) {
  const std::vector<float> zeros(20);
  EXPECT_EQ(stored<la::int8>(zeros), zeros);
  EXPECT_EQ(stored<la::int8>(std::vector<float>(20, -0.0f)), zeros);
  // As good as zero: a scale this small could not be divided by.
  const float least = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(stored<la::int8>(std::vector<float>(20, least)), zeros);
  EXPECT_EQ(stored<la::int8>(std::vector<float>(20, 0x1p-114f)), zeros);
  EXPECT_NE(stored<la::int8>(std::vector<float>(20, 0x1p-112f)), zeros);
}

TEST(Int8, OneGiantIsKeptAndTheRestIsSmallBesideIt) {
  std::vector<float> row = normal<float>(1, 1, 64, 9).elements;
  for (const float giant : {1000.0f, -1000.0f, 1e38f, std::numeric_limits<float>::max()}) {
    row[17] = giant;
    const std::vector<float> kept = stored<la::int8>(row);
    EXPECT_FLOAT_EQ(kept[17], giant);
    for (std::size_t i = 0; i < row.size(); ++i) {
      EXPECT_TRUE(std::isfinite(kept[i]));
      EXPECT_LE(std::fabs(kept[i] - row[i]), std::fabs(giant) * (0.5001f / 127));
    }
  }
}

TEST(Int8, ARowThatIsNotFiniteBecomesNaN) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (const std::size_t place : {0u, 7u, 19u}) {
      std::vector<float> row(20, 1);
      row[place] = bad;
      for (const float x : stored<la::int8>(row)) EXPECT_TRUE(std::isnan(x));
    }
    std::vector<float> zeros(20);
    zeros[3] = bad;
    for (const float x : stored<la::int8>(zeros)) EXPECT_TRUE(std::isnan(x));
  }
}

TEST(Int8, AttentionReadsStoredRows) { expect_attention_to_stored_rows<la::int8>(); }
