// Products of activations, a token a row, with weights that stay as the file has them.
#pragma once

#include "parallel.hpp"
#include "weights.hpp"

#include <Eigen/Core>

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace llama {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A weight matrix [rows, columns]. Whatever its element, it is multiplied in float: a small one is converted when it
/// is loaded, a large one stays in its file, and is converted a block of rows at a time.
class weight_matrix {
 public:
  weight_matrix(const weights& source, const std::string& name, std::int64_t rows, std::int64_t columns)
      : rows_(rows), columns_(columns) {
    constexpr std::size_t small = std::size_t{1} << 22;
    const stored_tensor& tensor = source.find(name, {rows, columns});
    element_ = weights::element_of(tensor, name);
    bytes_ = tensor.bytes;
    // The format lets a tensor begin at any byte; writers of files see to it that it begins where its elements may.
    if (reinterpret_cast<std::uintptr_t>(bytes_.data()) % 4 != 0) own(std::string(bytes_));
    if (element_ != element::f32 && bytes_.size() <= small) convert();
  }

  std::int64_t rows() const { return rows_; }

  /// y = x W^T.
  void multiply(const matrix& x, matrix& y) const {
    y.resize(x.rows(), rows_);
    switch (element_) {
      case element::f32:
        return multiply_as<float>(x, y);
      case element::f16:
        return multiply_as<Eigen::half>(x, y);
      case element::bf16:
        return multiply_as<Eigen::bfloat16>(x, y);
    }
  }

  /// A row of it: the embedding of a token.
  void copy_row(std::int64_t row, Eigen::Ref<Eigen::RowVectorXf> out) const {
    switch (element_) {
      case element::f32:
        out = rows_as<float>().row(row);
        break;
      case element::f16:
        out = rows_as<Eigen::half>().row(row).cast<float>();
        break;
      case element::bf16:
        out = rows_as<Eigen::bfloat16>().row(row).cast<float>();
        break;
    }
  }

 private:
  void own(std::string bytes) {
    owned_ = std::make_shared<std::string>(std::move(bytes));
    bytes_ = *owned_;
  }

  void convert() {
    matrix numbers(rows_, columns_);
    for (std::int64_t row = 0; row < rows_; ++row) copy_row(row, numbers.row(row));
    own(std::string(reinterpret_cast<const char*>(numbers.data()),
                    static_cast<std::size_t>(numbers.size()) * sizeof(float)));
    element_ = element::f32;
  }

  template <class Element>
  using rows_of = Eigen::Map<const Eigen::Matrix<Element, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

  template <class Element>
  rows_of<Element> rows_as() const {
    return rows_of<Element>(reinterpret_cast<const Element*>(bytes_.data()), rows_, columns_);
  }

  // Blocks of rows are shared out to threads where there is enough to do; those that are converted stay in the caches
  // for all tokens.
  template <class Element>
  void multiply_as(const matrix& x, matrix& y) const {
    constexpr bool converts = !std::is_same_v<Element, float>;
    const bool large = x.rows() * rows_ * columns_ > (1 << 20) && !omp_in_parallel();
    const int threads = large ? omp_get_max_threads() : 1;
    const std::int64_t block = converts ? 64 : (rows_ + threads - 1) / threads;
    for_each_in_parallel((rows_ + block - 1) / block, threads, [&](std::int64_t i) {
      const std::int64_t first = i * block;
      const auto some = rows_as<Element>().middleRows(first, std::min(block, rows_ - first));
      auto of_some = y.middleCols(first, some.rows());
      if constexpr (converts) {
        const matrix converted = some.template cast<float>();
        of_some.noalias() = x * converted.transpose();
      } else {
        of_some.noalias() = x * some.transpose();
      }
    });
  }

  std::int64_t rows_, columns_;
  element element_;
  std::string_view bytes_;
  std::shared_ptr<std::string> owned_;
};

/// y = x W^T + b, the bias being optional.
class linear {
 public:
  linear(const weights& source, const std::string& name, std::int64_t outputs, std::int64_t inputs, bool with_bias)
      : weight_(source, name + ".weight", outputs, inputs) {
    if (with_bias) bias_ = source.vector(name + ".bias", outputs);
  }

  void apply(const matrix& x, matrix& y) const {
    weight_.multiply(x, y);
    if (bias_.size() > 0) y.rowwise() += bias_;
  }

 private:
  weight_matrix weight_;
  Eigen::RowVectorXf bias_;
};

}  // namespace llama
