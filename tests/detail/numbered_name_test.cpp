#include <lambda_attention/detail/numbered_name.hpp>

#include <gtest/gtest.h>

#include <string>

namespace la = lambda_attention;
using la::index_t;

TEST(NumberedName, IsTheNumberBetweenTwoTexts) {
  const auto name = [](index_t number) { return std::string(la::detail::numbered_name("runs[", number, "].k")); };
  EXPECT_EQ(name(0), "runs[0].k");
  EXPECT_EQ(name(9), "runs[9].k");
  EXPECT_EQ(name(10), "runs[10].k");
  EXPECT_EQ(name(1203), "runs[1203].k");
}

TEST(NumberedName, NothingNeedsToFollow) {
  EXPECT_EQ(std::string(la::detail::numbered_name("attend: stream ", 64)), "attend: stream 64");
}

// As long as a name may be: 24 characters and the largest index.
TEST(NumberedName, HasRoomForTheLargestIndex) {
  EXPECT_EQ(std::string(la::detail::numbered_name("twelve chars", la::unlimited, "twelve chars")),
            "twelve chars9223372036854775807twelve chars");
}
