// Products with weights of each element type against the same products in double.
#include "linear.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "files.hpp"

namespace {

using llama::element;
using llama::matrix;
using llama::weights;
using tiny::contains;

constexpr element types[] = {element::f32, element::f16, element::bf16};

std::vector<float> random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

matrix random_matrix(std::int64_t rows, std::int64_t columns, unsigned seed) {
  return Eigen::Map<const matrix>(random_numbers(rows * columns, seed).data(), rows, columns);
}

float rounded(float number, element type) {
  return type == element::f32   ? number
         : type == element::f16 ? static_cast<float>(Eigen::half(number))
                                : static_cast<float>(Eigen::bfloat16(number));
}

matrix rounded(matrix numbers, element type) {
  return numbers.unaryExpr([type](float number) { return rounded(number, type); });
}

// A file with the matrix "a.weight", and with the bias "a.bias".
std::string file_of(const matrix& weight, const std::vector<float>& bias, element type, std::size_t gap) {
  return tiny::safetensors(
      {{"a.bias", {static_cast<std::int64_t>(bias.size())}, bias},
       {"a.weight", {weight.rows(), weight.cols()}, std::vector<float>(weight.data(), weight.data() + weight.size())}},
      type, gap);
}

weights of(const std::string& file) {
  weights source;
  source.add(file, "x");
  return source;
}

// [tokens, columns, rows]: less than a block of rows, several blocks and a part, and enough for threads.
const std::vector<std::vector<std::int64_t>> sizes = {{1, 1, 1}, {1, 5, 3}, {3, 17, 64}, {2, 33, 131}, {70, 160, 150}};

void expect_product(const std::vector<std::int64_t>& size, element type, std::size_t gap) {
  const matrix x = random_matrix(size[0], size[1], 1), w = random_matrix(size[2], size[1], 2);
  const std::vector<float> bias = random_numbers(size[2], 3);
  const std::string file = file_of(w, bias, type, gap);
  const weights source = of(file);
  matrix plain, biased;
  llama::linear(source, "a", size[2], size[1], false).apply(x, plain);
  llama::linear(source, "a", size[2], size[1], true).apply(x, biased);

  const Eigen::MatrixXd wide = x.cast<double>() * rounded(w, type).cast<double>().transpose();
  ASSERT_EQ(plain.rows(), size[0]);
  ASSERT_EQ(plain.cols(), size[2]);
  const double bound = 1e-6 * static_cast<double>(size[1]);
  for (Eigen::Index row = 0; row < plain.rows(); ++row)
    for (Eigen::Index column = 0; column < plain.cols(); ++column) {
      ASSERT_NEAR(plain(row, column), wide(row, column), bound);
      const double with_bias = wide(row, column) + rounded(bias[static_cast<std::size_t>(column)], type);
      ASSERT_NEAR(biased(row, column), with_bias, bound);
    }
}

TEST(Linear, IsTheProductInDouble) {
  for (const auto& size : sizes)
    for (const element type : types)
      for (std::size_t gap = 0; gap < 4; ++gap) expect_product(size, type, gap);
}

// Too large to be converted when they are loaded.
TEST(Linear, LargeMatricesToo) {
  for (const element type : {element::f16, element::bf16}) expect_product({2, 1030, 2100}, type, 0);
}

TEST(Linear, RowsAreThoseOfTheFile) {
  const matrix w = random_matrix(7, 9, 1);
  for (const element type : types)
    for (std::size_t gap = 0; gap < 4; ++gap) {
      const std::string file = file_of(w, {1}, type, gap);
      const llama::weight_matrix stored(of(file), "a.weight", 7, 9);
      EXPECT_EQ(stored.rows(), 7);
      matrix out(7, 9);
      for (Eigen::Index row = 0; row < 7; ++row) stored.copy_row(row, out.row(row));
      EXPECT_EQ(out, rounded(w, type));
    }
}

// What was copied for its alignment goes along with a matrix that is moved or copied.
TEST(Linear, MatricesMove) {
  for (const std::int64_t width : {2, 100}) {
    const matrix w = random_matrix(3, width, 1);
    const std::string file = file_of(w, {1}, element::f32, 1);
    std::vector<llama::weight_matrix> all;
    for (int i = 0; i < 9; ++i) all.emplace_back(of(file), "a.weight", 3, width);
    const llama::weight_matrix copy = all.back();
    all.clear();
    Eigen::RowVectorXf row(width);
    copy.copy_row(2, row);
    EXPECT_EQ(row, w.row(2));
  }
}

TEST(Linear, TensorsThatAreMissingOrOfAnotherShape) {
  const std::string file = tiny::safetensors({{"a.weight", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"b.bias", {2}, {1, 2}}});
  const weights source = of(file);
  const auto said = [&](const char* name, std::int64_t outputs, std::int64_t inputs, bool with_bias) {
    return tiny::refusal([&] { llama::linear(source, name, outputs, inputs, with_bias); });
  };
  EXPECT_EQ(said("a", 2, 3, false), "accepted");
  EXPECT_EQ(said("a", 2, 3, true), "tensor \"a.bias\" is missing");
  EXPECT_EQ(said("b", 2, 3, true), "tensor \"b.weight\" is missing");
  EXPECT_EQ(said("a", 3, 2, false), "tensor \"a.weight\": expected the shape [3, 2], got [2, 3]");
}

}  // namespace
