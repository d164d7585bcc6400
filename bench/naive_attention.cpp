// Causal attention as one writes it first: softmax(mask(Q K^T)) V with Eigen, an n x n matrix for one head at a time. The
// baseline of linear_vs_quadratic, compiled for the machine it runs on.
//
//     naive_attention TOKENS [FILE_DESCRIPTOR]
//
// prints seconds and bytes of memory, and writes the output of the first tokens to the descriptor. Queries and keys are
// rotated beforehand and the rotation is not timed: what is measured is the n x n attention alone.
#include "demo/measurement.hpp"
#include "demo/settings.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms of g++ 12 inside its own AVX-512 intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

namespace {

using demo::index_t;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// RoPE in place, one token a row: pairs p and p + head_dim / 2 of each head turn by position * 10000^(-2p / head_dim).
void rotate(Eigen::Map<matrix> rows, index_t heads) {
  constexpr index_t pairs = demo::head_dim / 2;
  Eigen::ArrayXd frequencies(pairs);
  for (index_t p = 0; p < pairs; ++p)
    frequencies[p] = std::pow(10000.0, -static_cast<double>(p) / static_cast<double>(pairs));
  for (index_t token = 0; token < rows.rows(); ++token) {
    const Eigen::ArrayXd angles = static_cast<double>(token) * frequencies;
    const Eigen::ArrayXf cosine = angles.cos().cast<float>(), sine = angles.sin().cast<float>();
    for (index_t head = 0; head < heads; ++head) {
      auto a = rows.row(token).segment(head * demo::head_dim, pairs).transpose().array();
      auto b = rows.row(token).segment(head * demo::head_dim + pairs, pairs).transpose().array();
      const Eigen::ArrayXf turned = a * cosine - b * sine;
      b = b * cosine + a * sine;
      a = turned;
    }
  }
}

/// Softmax over the keys up to the diagonal, without the division: returns the sum of each row.
Eigen::VectorXf masked_exponentials(matrix& scores) {
  Eigen::VectorXf sums(scores.rows());
  for (index_t i = 0; i < scores.rows(); ++i) {
    auto visible = scores.row(i).head(i + 1).array();
    visible = (visible - visible.maxCoeff()).exp();
    sums[i] = visible.sum();
    scores.row(i).tail(scores.cols() - i - 1).setZero();
  }
  return sums;
}

void attend(const Eigen::Map<matrix>& q, const Eigen::Map<matrix>& k, const Eigen::Map<matrix>& v,
            Eigen::Map<matrix> out) {
  const float scale = 1 / std::sqrt(static_cast<float>(demo::head_dim));
  matrix scores(q.rows(), q.rows());
  for (index_t head = 0; head < demo::num_heads; ++head) {
    const index_t column = head * demo::head_dim;
    const index_t kv_column = head / (demo::num_heads / demo::num_kv_heads) * demo::head_dim;
    scores.noalias() =
        scale * q.middleCols(column, demo::head_dim) * k.middleCols(kv_column, demo::head_dim).transpose();
    const Eigen::VectorXf sums = masked_exponentials(scores);
    auto rows = out.middleCols(column, demo::head_dim);
    rows.noalias() = scores * v.middleCols(kv_column, demo::head_dim);
    rows.array().colwise() /= sums.array();
  }
}

Eigen::Map<matrix> as_matrix(std::vector<float>& values, index_t tokens) {
  return {values.data(), tokens, static_cast<index_t>(values.size()) / tokens};
}

void check(demo::layer& inputs) {
  const demo::layer unrotated(inputs.tokens);
  demo::check_rows(inputs, lambda_attention::full_causal(), unrotated.q, unrotated.k);
}

void measure(index_t tokens, int rows_file) {
  demo::layer inputs(tokens);
  auto q = as_matrix(inputs.q, tokens), k = as_matrix(inputs.k, tokens), v = as_matrix(inputs.v, tokens);
  auto out = as_matrix(inputs.out, tokens);
  rotate(q, demo::num_heads);
  rotate(k, demo::num_kv_heads);
  const auto call = [&] { attend(q, k, v, out); };

  const double first_seconds = demo::first_call(call);
  check(inputs);
  if (rows_file >= 0) demo::write_first_rows(inputs, rows_file);
  demo::tell_time(first_seconds, call);
}

}  // namespace

int main(int argc, char** argv) {
  const long tokens = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 0;
  const int rows_file = argc > 2 ? std::atoi(argv[2]) : -1;
  if (tokens < demo::window || argc > 3) {
    std::fprintf(stderr, "usage: naive_attention TOKENS [FILE_DESCRIPTOR], TOKENS >= %lld\n",
                 static_cast<long long>(demo::window));
    return 1;
  }
  try {
    measure(tokens, rows_file);
  } catch (const std::exception& error) {
    demo::fail(error.what());
  }
}
