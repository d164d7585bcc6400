#include "report.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using namespace llama;

TEST(PositionBins, AreDoublingRangesFromAQuarterOfTheTrainingLength) {
  std::vector<float> numbers;
  for (int i = 0; i < 100; ++i)
    numbers.push_back(static_cast<float>(i < 4 ? 1 : i < 8 ? 2 : i < 16 ? 3 : i < 32 ? 4 : 5));
  position_bins bins(16);
  bins.add(numbers);
  const std::vector<double> means = bins.means();
  ASSERT_EQ(means.size(), 6u);
  EXPECT_EQ(means, (std::vector<double>{1, 2, 3, 4, 5, 5}));
  EXPECT_DOUBLE_EQ(bins.sum(), 4 * 1 + 4 * 2 + 8 * 3 + 16 * 4 + 68 * 5);
  EXPECT_DOUBLE_EQ(bins.mean(), bins.sum() / 100);
  const json list = bins.as_json();
  EXPECT_EQ(list[3]["to"], 32);
  EXPECT_EQ(list[3]["tokens"], 16);
  EXPECT_EQ(list[5]["tokens"], 36);
}

TEST(PositionBins, AddUpTexts) {
  position_bins bins(4);
  bins.add({1, 1});
  bins.add({3, 5, 7});
  EXPECT_EQ(bins.means(), (std::vector<double>{2, 3, 7}));
}

TEST(ShareOf, HasWilsonsInterval) {
  share_of share;
  for (int i = 0; i < 100; ++i) share.add(i < 97);
  EXPECT_EQ(share.percent(), "97 (92 to 99)");
  EXPECT_EQ(share.text(), "97 of 100 (95 % interval: 92 to 99 %)");
  EXPECT_EQ(share.as_json()["good"], 97);
  EXPECT_NEAR(share.as_json()["interval_95"][0].get<double>(), 0.9155, 1e-4);
  EXPECT_NEAR(share.as_json()["interval_95"][1].get<double>(), 0.9897, 1e-4);
}

TEST(ShareOf, StaysWithinItsBounds) {
  share_of none, all;
  for (int i = 0; i < 10; ++i) {
    none.add(false);
    all.add(true);
  }
  EXPECT_EQ(none.percent(), "0 (0 to 28)");
  EXPECT_EQ(all.percent(), "100 (72 to 100)");
  EXPECT_EQ(share_of().text(), "none of none");
  EXPECT_EQ(share_of().percent(), "–");
}

}  // namespace
