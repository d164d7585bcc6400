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

/// A matrix [tokens, heads * dim] with a token a row, as the projection of a layer leaves it: a row-major matrix, or a block
/// or a map of one, taken as it lies. The view is of const elements where the matrix is const.
/// Errors: cols() that num_heads does not divide, features that are not contiguous.
template <class Matrix>
auto from_eigen(Matrix&& matrix, index_t num_heads) {
  using plain = std::remove_cv_t<std::remove_reference_t<Matrix>>;
  static_assert((plain::Flags & Eigen::DirectAccessBit) != 0,
                "lambda_attention: from_eigen() takes a matrix, a block or a map; evaluate other expressions first");
  static_assert(std::is_lvalue_reference_v<Matrix> || !std::is_base_of_v<Eigen::PlainObjectBase<plain>, plain>,
                "lambda_attention: from_eigen() of a temporary matrix would outlive what it views");
  static_assert(
      plain::IsRowMajor || plain::ColsAtCompileTime == 1,
      "lambda_attention: from_eigen() takes row-major matrices, one token a row: features must be contiguous");
  if (num_heads < 1 || matrix.cols() % num_heads != 0)
    detail::refuse("from_eigen: expected matrix.cols() %% num_heads == 0, got matrix.cols() = %lld, num_heads = %lld",
                   detail::printable(matrix.cols()), detail::printable(num_heads));
  if (matrix.colStride() != 1 && matrix.cols() > 1)
    detail::refuse("from_eigen: expected contiguous features, got a stride of %lld",
                   detail::printable(matrix.colStride()));
  const index_t dim = matrix.cols() / num_heads;
  using element = std::remove_pointer_t<decltype(matrix.data())>;
  return tensor_view<element>(matrix.data(), matrix.rows(), num_heads, dim, matrix.rowStride(), dim);
}

/// One head of a tensor as a matrix [tokens, dim] over the same memory. Errors: std::invalid_argument on a head that it has not.
template <class T>
auto to_eigen(const tensor_view<T>& view, index_t head) {
  using scalar = std::remove_const_t<T>;
  using matrix = Eigen::Matrix<scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using map =
      Eigen::Map<std::conditional_t<std::is_const_v<T>, const matrix, matrix>, Eigen::Unaligned, Eigen::OuterStride<>>;
  if (head < 0 || head >= view.heads)
    detail::refuse("to_eigen: expected 0 <= head < %lld, got %lld", detail::printable(view.heads),
                   detail::printable(head));
  return map(view.row(0, head), view.tokens, view.dim, Eigen::OuterStride<>(view.token_stride));
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
