// Tensors that own their elements, in a layout of choice, and random numbers to fill them with.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

namespace support {

using lambda_attention::index_t;
using lambda_attention::tensor_view;

/// `padded` is token-major with gaps between heads and between tokens.
enum class layout { token_major, head_major, padded };
inline constexpr layout layouts[] = {layout::token_major, layout::head_major, layout::padded};

/// The number as an element of type T.
template <class T>
T element(double number) {
  if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(number);
  } else {
    return static_cast<T>(static_cast<float>(number));
  }
}

/// All elements are NaN at first, the gaps stay so: a row that was not written, or read past its ends, shows.
template <class T>
class tensor {
 public:
  tensor(index_t tokens, index_t heads, index_t dim, layout l = layout::token_major) {
    const index_t gap = l == layout::padded ? 3 : 0;
    const index_t inner = dim + gap;
    view_ = l == layout::head_major ? lambda_attention::head_major<T>(nullptr, tokens, heads, dim)
                                    : tensor_view<T>(nullptr, tokens, heads, dim, heads * inner + gap, inner);
    const index_t size = l == layout::head_major ? heads * tokens * dim : tokens * (heads * inner + gap);
    elements_.assign(static_cast<std::size_t>(size), element<T>(std::numeric_limits<double>::quiet_NaN()));
  }

  tensor_view<T> view() { return at(elements_.data()); }
  tensor_view<const T> view() const { return at(elements_.data()); }

 private:
  template <class U>
  tensor_view<U> at(U* data) const {
    return {data, view_.tokens, view_.heads, view_.dim, view_.token_stride, view_.head_stride};
  }

  tensor_view<T> view_;  // without data, so that copies are copies
  std::vector<T> elements_;
};

/// Calls visit(element&) for every element in the order of token, head, dim.
template <class T, class Visit>
void for_each_element(const tensor_view<T>& view, Visit&& visit) {
  for (index_t t = 0; t < view.tokens; ++t)
    for (index_t h = 0; h < view.heads; ++h)
      for (index_t d = 0; d < view.dim; ++d) visit(view.row(t, h)[d]);
}

using generator = std::mt19937_64;

/// A whole number in [first, last].
inline index_t draw(generator& random, index_t first, index_t last) {
  return std::uniform_int_distribution<index_t>(first, last)(random);
}

/// Normal numbers; the same state of the generator gives the same ones in any layout.
template <class T>
tensor<T> random_tensor(generator& random, index_t tokens, index_t heads, index_t dim, layout l = layout::token_major,
                        double deviation = 1) {
  tensor<T> result(tokens, heads, dim, l);
  std::normal_distribution<double> normal(0, deviation);
  for_each_element(result.view(), [&](T& x) { x = element<T>(normal(random)); });
  return result;
}

}  // namespace support
