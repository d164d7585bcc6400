#include <lambda_attention/config.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>

#include "refusal.hpp"

namespace la = lambda_attention;
using la::detail::printable;

TEST(Config, IndicesHave64Bits) {
  EXPECT_TRUE((std::is_same_v<la::index_t, std::int64_t>));
  EXPECT_EQ(la::unlimited, std::numeric_limits<std::int64_t>::max());
}

TEST(Refuse, FormatsLikePrintf) {
  EXPECT_EQ(refusal([] { la::detail::refuse("%s: expected x %% 2 == 0, got %lld", "f", printable(-7)); }),
            "f: expected x % 2 == 0, got -7");
  EXPECT_EQ(refusal([] { la::detail::refuse("%g", 0.5); }), "0.5");
  EXPECT_EQ(refusal([] { la::detail::refuse("%lld", printable(la::unlimited)); }), "9223372036854775807");
}

TEST(Refuse, CutsWhatIsTooLong) {
  const std::string longer(1000, 'x');
  EXPECT_EQ(refusal([&] { la::detail::refuse("%s", longer.c_str()); }), std::string(511, 'x'));
}

TEST(Config, SaturatingAddStopsAtUnlimited) {
  using la::detail::saturating_add;
  EXPECT_EQ(saturating_add(2, 3), 5);
  EXPECT_EQ(saturating_add(-5, 3), -2);
  EXPECT_EQ(saturating_add(la::unlimited - 3, 3), la::unlimited);
  EXPECT_EQ(saturating_add(la::unlimited - 3, 2), la::unlimited - 1);
  EXPECT_EQ(saturating_add(la::unlimited - 3, 4), la::unlimited);
  EXPECT_EQ(saturating_add(la::unlimited, la::unlimited), la::unlimited);
}

TEST(Config, MultiplySaysWhetherTheProductFits) {
  using la::detail::multiply;
  la::index_t product = 0;
  EXPECT_TRUE(multiply(-6, 7, &product));
  EXPECT_EQ(product, -42);
  EXPECT_TRUE(multiply(la::index_t{1} << 31, la::index_t{1} << 31, &product));
  EXPECT_EQ(product, la::index_t{1} << 62);
  EXPECT_FALSE(multiply(la::index_t{1} << 32, la::index_t{1} << 31, &product));
  EXPECT_FALSE(multiply(la::unlimited, -2, &product));
}

TEST(Config, RoundUp) {
  using la::detail::round_up;
  EXPECT_EQ(round_up(0, 16), 0);
  EXPECT_EQ(round_up(1, 16), 16);
  EXPECT_EQ(round_up(16, 16), 16);
  EXPECT_EQ(round_up(17, 16), 32);
  EXPECT_EQ(round_up(7, 3), 9);
}

TEST(Config, IsFinite) {
  using la::detail::is_finite;
  EXPECT_TRUE(is_finite(0));
  EXPECT_TRUE(is_finite(std::numeric_limits<double>::denorm_min()));
  EXPECT_TRUE(is_finite(-std::numeric_limits<double>::max()));
  EXPECT_FALSE(is_finite(HUGE_VAL));
  EXPECT_FALSE(is_finite(-HUGE_VAL));
  EXPECT_FALSE(is_finite(std::nan("")));
}

TEST(Config, MinAndMax) {
  EXPECT_EQ(la::detail::min(-1, 2), -1);
  EXPECT_EQ(la::detail::min(2, -1), -1);
  EXPECT_EQ(la::detail::max(-1, 2), 2);
  EXPECT_EQ(la::detail::max(2, -1), 2);
}
