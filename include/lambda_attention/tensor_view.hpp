// A strided view [tokens, heads, dim] over memory that the caller owns.
#pragma once

#include <lambda_attention/config.hpp>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Element (t, h, d) lies at data[t * token_stride + h * head_stride + d]: features are contiguous, tokens and heads may
/// lie in any order and with any gap. Strides count elements, not bytes, and are >= 0. The view owns nothing; the memory
/// must outlive the call it is given to. T may be const; a view of T converts to a view of const T.
template <class T>
struct tensor_view {
  T* data = nullptr;
  index_t tokens = 0;
  index_t heads = 0;
  index_t dim = 0;
  index_t token_stride = 0;
  index_t head_stride = 0;

  constexpr tensor_view() = default;
  constexpr tensor_view(T* data_, index_t tokens_, index_t heads_, index_t dim_, index_t token_stride_,
                        index_t head_stride_)
      : data(data_),
        tokens(tokens_),
        heads(heads_),
        dim(dim_),
        token_stride(token_stride_),
        head_stride(head_stride_) {}

  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  constexpr tensor_view(const tensor_view<U>& other)
      : tensor_view(other.data, other.tokens, other.heads, other.dim, other.token_stride, other.head_stride) {}

  /// The dim elements of one head of one token, 0 <= token < tokens and 0 <= head < heads: nothing is checked.
  constexpr T* row(index_t token, index_t head) const { return data + token * token_stride + head * head_stride; }

  /// Tokens [first, first + count), of [0, tokens): nothing is checked.
  constexpr tensor_view slice(index_t first, index_t count) const {
    return {data + first * token_stride, count, heads, dim, token_stride, head_stride};
  }
};

namespace detail {
// A stride of a dense tensor. Extents whose product does not fit are refused by the call that the view is given to.
constexpr index_t dense_stride(index_t count, index_t dim) {
  index_t stride = unlimited;
  return multiply(count, dim, &stride) ? stride : unlimited;
}
}  // namespace detail

/// A dense tensor stored as [tokens, heads, dim], the layout often called NHD.
template <class T>
constexpr tensor_view<T> token_major(T* data, index_t tokens, index_t heads, index_t dim) {
  return {data, tokens, heads, dim, detail::dense_stride(heads, dim), dim};
}

/// The same with any distance, in elements, between tokens: the queries, keys or values of a buffer that holds them all.
template <class T>
constexpr tensor_view<T> token_major(T* data, index_t tokens, index_t heads, index_t dim, index_t token_stride) {
  return {data, tokens, heads, dim, token_stride, dim};
}

/// A dense tensor stored as [heads, tokens, dim], the layout often called HND.
template <class T>
constexpr tensor_view<T> head_major(T* data, index_t tokens, index_t heads, index_t dim) {
  return {data, tokens, heads, dim, dim, detail::dense_stride(tokens, dim)};
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
