#include <lambda_attention/tensor_view.hpp>

#include <gtest/gtest.h>

#include <numeric>
#include <type_traits>
#include <vector>

namespace la = lambda_attention;

TEST(TensorView, IsEmptyByDefault) {
  const la::tensor_view<float> view;
  EXPECT_EQ(view.data, nullptr);
  EXPECT_EQ(view.tokens, 0);
  EXPECT_EQ(view.heads, 0);
  EXPECT_EQ(view.dim, 0);
}

TEST(TensorView, TokenMajorIsTokensHeadsDim) {
  std::vector<int> numbers(2 * 3 * 4);
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto view = la::token_major(numbers.data(), 2, 3, 4);
  EXPECT_EQ(view.tokens, 2);
  EXPECT_EQ(view.heads, 3);
  EXPECT_EQ(view.dim, 4);
  int next = 0;
  for (int t = 0; t < 2; ++t)
    for (int h = 0; h < 3; ++h)
      for (int d = 0; d < 4; ++d) EXPECT_EQ(view.row(t, h)[d], next++);
}

// The keys of a buffer that holds queries, keys and values of a token side by side.
TEST(TensorView, TokenMajorWithAnotherDistanceBetweenTokens) {
  std::vector<int> numbers(2 * 50);
  const auto view = la::token_major(numbers.data() + 10, 2, 3, 4, 50);
  EXPECT_EQ(view.tokens, 2);
  EXPECT_EQ(view.heads, 3);
  EXPECT_EQ(view.dim, 4);
  EXPECT_EQ(view.row(0, 2), numbers.data() + 10 + 8);
  EXPECT_EQ(view.row(1, 2), numbers.data() + 10 + 50 + 8);
}

TEST(TensorView, HeadMajorIsHeadsTokensDim) {
  std::vector<int> numbers(2 * 3 * 4);
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto view = la::head_major(numbers.data(), 2, 3, 4);
  EXPECT_EQ(view.tokens, 2);
  EXPECT_EQ(view.heads, 3);
  EXPECT_EQ(view.dim, 4);
  int next = 0;
  for (int h = 0; h < 3; ++h)
    for (int t = 0; t < 2; ++t)
      for (int d = 0; d < 4; ++d) EXPECT_EQ(view.row(t, h)[d], next++);
}

TEST(TensorView, StridesCountElements) {
  std::vector<short> numbers(100);
  const la::tensor_view<short> view(numbers.data(), 3, 2, 4, 30, 7);
  EXPECT_EQ(view.row(0, 0), numbers.data());
  EXPECT_EQ(view.row(2, 1), numbers.data() + 67);
}

TEST(TensorView, SliceIsAViewOfSomeTokens) {
  std::vector<float> numbers(5 * 2 * 3);
  for (const auto& view : {la::token_major(numbers.data(), 5, 2, 3), la::head_major(numbers.data(), 5, 2, 3)}) {
    const auto part = view.slice(1, 3);
    EXPECT_EQ(part.tokens, 3);
    EXPECT_EQ(part.heads, 2);
    EXPECT_EQ(part.dim, 3);
    for (int t = 0; t < 3; ++t)
      for (int h = 0; h < 2; ++h) EXPECT_EQ(part.row(t, h), view.row(t + 1, h));
  }
}

TEST(TensorView, BecomesConstAndNothingElse) {
  EXPECT_TRUE((std::is_convertible_v<la::tensor_view<float>, la::tensor_view<const float>>));
  EXPECT_FALSE((std::is_convertible_v<la::tensor_view<const float>, la::tensor_view<float>>));
  EXPECT_FALSE((std::is_convertible_v<la::tensor_view<float>, la::tensor_view<const double>>));
  EXPECT_FALSE((std::is_convertible_v<la::tensor_view<float>, la::tensor_view<double>>));

  float number = 0;
  const la::tensor_view<float> view(&number, 1, 2, 3, 4, 5);
  const la::tensor_view<const float> constant = view;
  EXPECT_EQ(constant.data, &number);
  EXPECT_EQ(constant.tokens, 1);
  EXPECT_EQ(constant.heads, 2);
  EXPECT_EQ(constant.dim, 3);
  EXPECT_EQ(constant.token_stride, 4);
  EXPECT_EQ(constant.head_stride, 5);
}

// The call that a view is given to refuses extents whose product does not fit; making the view is no overflow.
TEST(TensorView, DenseStridesStopAtTheLargestIndex) {
  constexpr la::index_t many = la::index_t{1} << 40;
  static_assert(la::token_major<float>(nullptr, 1, many, many).token_stride == la::unlimited);
  static_assert(la::head_major<float>(nullptr, many, 1, many).head_stride == la::unlimited);
}
