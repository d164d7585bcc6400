#include <lambda_attention/detail/query_rows.hpp>

#include <gtest/gtest.h>

#include <cmath>

namespace la = lambda_attention;
using la::detail::heads_at_once;
using la::detail::log_sum_exp;
using la::detail::normaliser;

// Weights are 2^(score - max): a sum of 3 and a max of 2 stand for 3 * 4 = 12.
TEST(Normaliser, IsOneOverTheSum) {
  EXPECT_EQ(normaliser(4.0f, 7.0f, nullptr), 0.25f);
  EXPECT_EQ(normaliser(4.0, -7000.0, nullptr), 0.25);
  EXPECT_EQ(normaliser(0.0f, 0.0f, nullptr), 0);
}

TEST(Normaliser, CountsALearnedSinkIn) {
  const float logit = std::log(8.0f);
  EXPECT_NEAR(normaliser(3.0, 2.0, &logit) / 4, 1.0 / (12 + 8), 1e-8);   // the sink is above the max
  EXPECT_NEAR(normaliser(3.0, 5.0, &logit) / 32, 1.0 / (96 + 8), 1e-9);  // and below it
  EXPECT_EQ(normaliser(0.0f, 0.0f, &logit), 0);                          // a row that sees nothing stays zeros
}

TEST(Normaliser, NeverOverflows) {
  for (const float logit : {-3e38f, -1000.0f, 1000.0f, 3e38f, -HUGE_VALF, HUGE_VALF}) {
    for (const float max : {-1e30f, -100.0f, 0.0f, 100.0f, 1e30f}) {
      const float scale = normaliser(2.0f, max, &logit);
      EXPECT_TRUE(scale >= 0 && scale <= 0.5f) << logit << ", " << max << " gave " << scale;
    }
  }
}

TEST(LogSumExp, IsInNaturalUnits) {
  EXPECT_NEAR(log_sum_exp(3.0, 2.0), std::log(12.0), 1e-7);
  EXPECT_NEAR(log_sum_exp(3.0f, 2.0f), std::log(12.0), 1e-6);
  EXPECT_NEAR(log_sum_exp(1.0f, 1e6f), 1e6 * std::log(2.0), 1);
  EXPECT_EQ(log_sum_exp(0.0f, 0.0f), -HUGE_VALF);
}

TEST(HeadsAtOnce, IsAPowerOfTwoThatIsLeft) {
  EXPECT_EQ(heads_at_once(8, 4), 4);
  EXPECT_EQ(heads_at_once(4, 4), 4);
  EXPECT_EQ(heads_at_once(3, 4), 2);
  EXPECT_EQ(heads_at_once(1, 4), 1);
  EXPECT_EQ(heads_at_once(8, 2), 2);
  EXPECT_EQ(heads_at_once(5, 1), 1);
}
