// Eigen matrices in, Eigen matrices out, on the threads of an Eigen::ThreadPool: a layer with ALiBi (as in BLOOM or MPT).
#include <lambda_attention/eigen.hpp>
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>

namespace la = lambda_attention;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // one token a row

// One head by the formula, with the n x n matrix that the library never makes.
matrix naive_head(const matrix& q, const matrix& k, const matrix& v, const la::lambda_shape& shape, double slope) {
  matrix weights = q * k.transpose() / std::sqrt(static_cast<float>(q.cols()));
  for (Eigen::Index i = 0; i < weights.rows(); ++i) {
    for (Eigen::Index j = 0; j < weights.cols(); ++j)
      weights(i, j) = shape.visible(i, j)
                          ? weights(i, j) - static_cast<float>(slope * static_cast<double>(shape.distance(i, j)))
                          : -HUGE_VALF;
    weights.row(i) = (weights.row(i).array() - weights.row(i).maxCoeff()).exp();
    weights.row(i) /= weights.row(i).sum();
  }
  return weights * v;
}

int main() {
  constexpr Eigen::Index n = 700, width = 256, heads = 4;
  const matrix tokens = matrix::Random(n, width);
  const matrix project_qkv = matrix::Random(width, 3 * width) * 0.2f;
  const matrix project_out = matrix::Random(width, width) * 0.1f;

  // A block of a row-major matrix is taken as it lies: the first columns are the query heads, and so on.
  const matrix qkv = tokens * project_qkv;
  const auto q = la::from_eigen(qkv.leftCols(width), heads);
  const auto k = la::from_eigen(qkv.middleCols(width, width), heads);
  const auto v = la::from_eigen(qkv.rightCols(width), heads);

  const la::lambda_shape shape = la::lm_infinite(16, 128);
  const la::alibi position(heads);
  matrix attended(n, width);
  Eigen::ThreadPool pool(2);
  la::attend(q, k, v, shape, position, la::from_eigen(attended, heads), {}, la::eigen_thread_pool(pool));
  const matrix result = attended * project_out;

  // The way back: to_eigen() is an Eigen::Map of one head of a tensor.
  float worst = 0;
  for (Eigen::Index h = 0; h < heads; ++h) {
    const matrix expected =
        naive_head(la::to_eigen(q, h), la::to_eigen(k, h), la::to_eigen(v, h), shape, position.slope(h));
    const auto head = la::to_eigen(la::from_eigen(attended, heads), h);
    worst = std::fmax(worst, (head - expected).cwiseAbs().maxCoeff());
  }
  std::printf("[%d, %d] -> [%d, %d], largest difference from the n x n formula %.1e\n", static_cast<int>(tokens.rows()),
              static_cast<int>(tokens.cols()), static_cast<int>(result.rows()), static_cast<int>(result.cols()),
              static_cast<double>(worst));
  return worst < 1e-4f && result.allFinite() ? 0 : 1;
}
