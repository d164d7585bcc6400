// Bridges to Eigen: matrices as tensor_views and tensor_views as Eigen::Maps, without a copy, and Eigen's 16-bit types.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <Eigen/Core>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

template <>
struct element_traits<Eigen::half> {
  static constexpr element_kind kind = element_kind::f16;
};
template <>
struct element_traits<Eigen::bfloat16> {
  static constexpr element_kind kind = element_kind::bf16;
};

namespace detail {
template <class T, class Derived>
tensor_view<T> view_of_rows(T* data, const Derived& matrix, index_t num_heads) {
  static_assert(
      Derived::IsRowMajor || Derived::ColsAtCompileTime == 1,
      "lambda_attention: from_eigen() takes row-major matrices, one token a row: features must be contiguous");
  if (num_heads < 1 || matrix.cols() % num_heads != 0)
    refuse("from_eigen: expected matrix.cols() %% num_heads == 0, got matrix.cols() = %lld, num_heads = %lld",
           printable(matrix.cols()), printable(num_heads));
  if (matrix.innerStride() != 1 && matrix.cols() > 1)
    refuse("from_eigen: expected contiguous features, got an inner stride of %lld", printable(matrix.innerStride()));
  const index_t dim = matrix.cols() / num_heads;
  return {data, matrix.rows(), num_heads, dim, matrix.outerStride(), dim};
}
}  // namespace detail

/// A row-major matrix [tokens, heads * dim], one token a row, as the projection of a layer leaves it. Blocks of such a
/// matrix are taken as they lie. Errors: cols() that num_heads does not divide.
template <class Derived>
tensor_view<typename Derived::Scalar> from_eigen(Eigen::DenseBase<Derived>& matrix, index_t num_heads) {
  return detail::view_of_rows(matrix.derived().data(), matrix.derived(), num_heads);
}
template <class Derived>
tensor_view<const typename Derived::Scalar> from_eigen(const Eigen::DenseBase<Derived>& matrix, index_t num_heads) {
  return detail::view_of_rows<const typename Derived::Scalar>(matrix.derived().data(), matrix.derived(), num_heads);
}

/// One head of a tensor as a matrix [tokens, dim] over the same memory.
template <class T>
auto to_eigen(const tensor_view<T>& view, index_t head) {
  using scalar = std::remove_const_t<T>;
  using matrix = Eigen::Matrix<scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using map =
      Eigen::Map<std::conditional_t<std::is_const_v<T>, const matrix, matrix>, Eigen::Unaligned, Eigen::OuterStride<>>;
  return map(view.row(0, head), view.tokens, view.dim, Eigen::OuterStride<>(view.token_stride));
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
