#include <lambda_attention/attention.hpp>
#include <lambda_attention/eigen.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::from_eigen;
using la::index_t;
using la::tensor_view;
using la::to_eigen;

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// 0, 1, 2, ... row after row.
matrix counting(index_t rows, index_t cols) {
  matrix m(rows, cols);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
  return m;
}

template <class T, class Matrix>
void expect_view(const tensor_view<T>& view, const Matrix& m, index_t num_heads) {
  ASSERT_EQ(view.tokens, m.rows());
  ASSERT_EQ(view.heads, num_heads);
  ASSERT_EQ(view.dim, m.cols() / num_heads);
  for (index_t t = 0; t < view.tokens; ++t)
    for (index_t h = 0; h < view.heads; ++h)
      for (index_t d = 0; d < view.dim; ++d) ASSERT_EQ(view.row(t, h) + d, &m.coeffRef(t, h * view.dim + d));
}

}  // namespace

TEST(FromEigen, AMatrixIsTokensByFeatures) {
  matrix m = counting(5, 12);
  expect_view(from_eigen(m, 1), m, 1);
  expect_view(from_eigen(m, 3), m, 3);
  expect_view(from_eigen(m, 12), m, 12);
  EXPECT_TRUE((std::is_same_v<decltype(from_eigen(m, 3)), tensor_view<float>>));
  from_eigen(m, 3).row(2, 1)[3] = -1;
  EXPECT_EQ(m(2, 7), -1);
}

TEST(FromEigen, OfConstIsOfConst) {
  const matrix m = counting(5, 12);
  expect_view(from_eigen(m, 3), m, 3);
  EXPECT_TRUE((std::is_same_v<decltype(from_eigen(m, 3)), tensor_view<const float>>));
}

TEST(FromEigen, FixedSizes) {
  Eigen::Matrix<double, 5, 12, Eigen::RowMajor> m;
  expect_view(from_eigen(m, 4), m, 4);
  Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> array(5, 12);
  expect_view(from_eigen(array, 4), array, 4);
}

// q, k and v of one projection.
TEST(FromEigen, BlocksAreTakenAsTheyLie) {
  matrix m = counting(5, 20);
  auto columns = m.middleCols(6, 8);
  expect_view(from_eigen(columns, 2), columns, 2);
  expect_view(from_eigen(m.middleCols(6, 8), 2), m.middleCols(6, 8), 2);
  auto block = m.block(1, 4, 3, 6);
  expect_view(from_eigen(block, 3), block, 3);
  EXPECT_TRUE((std::is_same_v<decltype(from_eigen(m.middleCols(6, 8), 2)), tensor_view<float>>));

  const matrix& constant = m;
  auto constant_columns = constant.middleCols(6, 8);
  expect_view(from_eigen(constant_columns, 2), constant_columns, 2);
  EXPECT_TRUE((std::is_same_v<decltype(from_eigen(constant.middleCols(6, 8), 2)), tensor_view<const float>>));
}

TEST(FromEigen, Maps) {
  matrix m = counting(5, 12);
  Eigen::Map<matrix> map(m.data(), 5, 12);
  expect_view(from_eigen(map, 3), m, 3);
  Eigen::Map<const matrix> constant(m.data(), 5, 12);
  expect_view(from_eigen(constant, 3), m, 3);
  EXPECT_TRUE((std::is_same_v<decltype(from_eigen(constant, 3)), tensor_view<const float>>));
  Eigen::Map<matrix, 0, Eigen::OuterStride<>> strided(m.data(), 3, 6, Eigen::OuterStride<>(24));
  expect_view(from_eigen(strided, 2), strided, 2);
  Eigen::Ref<matrix> reference = m;
  expect_view(from_eigen(reference, 3), m, 3);
}

TEST(FromEigen, Vectors) {
  Eigen::RowVectorXf one_token = Eigen::RowVectorXf::LinSpaced(12, 0, 11);
  expect_view(from_eigen(one_token, 3), one_token, 3);
  Eigen::VectorXf one_feature = Eigen::VectorXf::LinSpaced(12, 0, 11);
  expect_view(from_eigen(one_feature, 1), one_feature, 1);
}

TEST(FromEigen, NoRows) {
  matrix m(0, 12);
  EXPECT_EQ(from_eigen(m, 3).tokens, 0);
  EXPECT_EQ(from_eigen(m, 3).dim, 4);
}

TEST(FromEigen, Refusals) {
  matrix m = counting(5, 12);
  const auto heads = [&](index_t count) { return refusal([&] { from_eigen(m, count); }); };
  EXPECT_EQ(heads(5), "from_eigen: expected matrix.cols() % num_heads == 0, got matrix.cols() = 12, num_heads = 5");
  EXPECT_EQ(heads(0), "from_eigen: expected matrix.cols() % num_heads == 0, got matrix.cols() = 12, num_heads = 0");
  EXPECT_EQ(heads(-3), "from_eigen: expected matrix.cols() % num_heads == 0, got matrix.cols() = 12, num_heads = -3");
  using stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  Eigen::Map<matrix, 0, stride> spread(m.data(), 5, 4, stride(12, 3));
  EXPECT_EQ(refusal([&] { from_eigen(spread, 2); }), "from_eigen: expected contiguous features, got a stride of 3");
}

TEST(ToEigen, IsOneHeadAsAMatrix) {
  std::vector<float> numbers(3 * 2 * 4);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  for (const auto& view : {la::token_major(numbers.data(), 3, 2, 4), la::head_major(numbers.data(), 3, 2, 4)}) {
    for (index_t h = 0; h < 2; ++h) {
      auto map = to_eigen(view, h);
      ASSERT_EQ(map.rows(), 3);
      ASSERT_EQ(map.cols(), 4);
      for (index_t t = 0; t < 3; ++t)
        for (index_t d = 0; d < 4; ++d) ASSERT_EQ(&map(t, d), view.row(t, h) + d);
    }
  }
  to_eigen(la::token_major(numbers.data(), 3, 2, 4), 1)(2, 3) = -5;
  EXPECT_EQ(numbers.back(), -5);
}

TEST(ToEigen, OfConstIsOfConst) {
  const std::vector<float> numbers = {1, 2, 3, 4};
  auto map = to_eigen(la::token_major(numbers.data(), 2, 1, 2), 0);
  EXPECT_EQ(map(1, 0), 3);
  EXPECT_FALSE((std::is_assignable_v<decltype(map(0, 0)), float>));
}

TEST(ToEigen, IsTheWayBack) {
  const matrix m = counting(6, 8);
  const matrix back = to_eigen(from_eigen(m, 2), 1);
  EXPECT_EQ(back, m.rightCols(4));
}

TEST(ToEigen, RefusesAHeadThatIsNotThere) {
  const matrix m = counting(6, 8);
  for (const la::index_t head : {-1, 2})
    EXPECT_EQ(refusal([&] { to_eigen(from_eigen(m, 2), head); }),
              "to_eigen: expected 0 <= head < 2, got " + std::to_string(head));
}

// A layer's fused projection, in place.
TEST(Eigen, AttendOnBlocks) {
  sequence<float> s(30, 4, 2, 8, 8);
  matrix qkv(30, 64);
  qkv << Eigen::Map<matrix>(s.q.elements.data(), 30, 32), Eigen::Map<matrix>(s.k.elements.data(), 30, 16),
      Eigen::Map<matrix>(s.v.elements.data(), 30, 16);
  la::attend(from_eigen(qkv.leftCols(32), 4), from_eigen(qkv.middleCols(32, 16), 2), from_eigen(qkv.rightCols(16), 2),
             la::lm_infinite(2, 9), la::rope(8), from_eigen(qkv.leftCols(32), 4));
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(2, 9), la::rope(8), s.out.view());
  EXPECT_EQ(qkv.leftCols(32), Eigen::Map<matrix>(s.out.elements.data(), 30, 32));
}

// Eigen's 16-bit types have the bits of ours.
template <class Theirs, class Ours>
void expect_same_as_ours(double bound) {
  sequence<Ours> ours(30, 4, 2, 8, 8);
  la::attend(ours.q.view(), ours.k.view(), ours.v.view(), la::lm_infinite(2, 9), la::rope(8), ours.out.view());
  sequence<Theirs> theirs(30, 4, 2, 8, 8);
  la::attend(theirs.q.view(), theirs.k.view(), theirs.v.view(), la::lm_infinite(2, 9), la::rope(8), theirs.out.view());
  for (std::size_t i = 0; i < ours.q.elements.size(); ++i)
    ASSERT_EQ(static_cast<float>(theirs.q.elements[i]), static_cast<float>(ours.q.elements[i]));
  for (std::size_t i = 0; i < ours.out.elements.size(); ++i)
    ASSERT_EQ(static_cast<float>(theirs.out.elements[i]), static_cast<float>(ours.out.elements[i]));
  EXPECT_LE(nmse(theirs.out.elements, expected(theirs, la::lm_infinite(2, 9), la::rope(8))), bound);
}

TEST(Eigen, ElementTypes) {
  // Outputs are rounded; in pairs of bfloat16s so are queries, turned keys and weights.
  expect_same_as_ours<Eigen::half, la::half>(0x1p-22 / 3);
  expect_same_as_ours<Eigen::bfloat16, la::bfloat16>(4 * 0x1p-16 / 3);
}
