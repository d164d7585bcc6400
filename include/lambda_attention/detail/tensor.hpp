// Tensors with their element type erased, and the checks at the boundary.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/storage.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Elements of a type that joined by the trait, to and from float.
using read_elements_function = void (*)(const void* source, index_t count, float* row);
using write_elements_function = void (*)(const float* row, index_t count, void* destination);

template <class T>
void read_custom_elements(const void* source, index_t count, float* row) {
  const T* const elements = static_cast<const T*>(source);
  for (index_t i = 0; i < count; ++i) row[i] = element_traits<T>::to_float(elements[i]);
}
template <class T>
void write_custom_elements(const float* row, index_t count, void* destination) {
  T* const elements = static_cast<T*>(destination);
  for (index_t i = 0; i < count; ++i) elements[i] = element_traits<T>::from_float(row[i]);
}

constexpr std::size_t size_of(element_kind kind) {
  return kind == element_kind::f64 ? 8 : kind == element_kind::f32 ? 4 : 2;
}

constexpr row_format format_of(element_kind kind) {
  return kind == element_kind::f32    ? row_format::f32
         : kind == element_kind::f64  ? row_format::f64
         : kind == element_kind::f16  ? row_format::f16
         : kind == element_kind::bf16 ? row_format::bf16
                                      : row_format::custom;
}

// A tensor_view without its type. A stride that leads nowhere, of a single token or head or of no element, is zero.
struct tensor {
  unsigned char* data = nullptr;
  index_t tokens = 0;
  index_t heads = 0;
  index_t dim = 0;
  index_t token_stride = 0;  // elements
  index_t head_stride = 0;
  index_t element_size = 1;
  row_format format = row_format::f32;
  read_elements_function read = nullptr;
  write_elements_function write = nullptr;

  index_t token_bytes() const { return token_stride * element_size; }
  index_t head_bytes() const { return head_stride * element_size; }

  index_t row_bytes() const { return dim * element_size; }
  unsigned char* row(index_t token, index_t head) const {
    return data + (token * token_stride + head * head_stride) * element_size;
  }
  tensor slice(index_t first, index_t count) const {
    tensor part = *this;
    if (count > 0) part.data = row(first, 0);
    part.tokens = count;
    return part;
  }
  // One past the last byte, counted from data; 0 for an empty tensor. Call after check_tensor.
  index_t extent_bytes() const {
    if (tokens == 0 || heads == 0 || dim == 0) return 0;
    return ((tokens - 1) * token_stride + (heads - 1) * head_stride + dim) * element_size;
  }
};

template <class T>
tensor erase(const tensor_view<T>& view) {
  using element = std::remove_const_t<T>;
  constexpr element_kind kind = element_traits<element>::kind;
  static_assert(kind == element_kind::custom || sizeof(element) == size_of(kind),
                "lambda_attention: an element is as large as the kind that its element_traits name");
  static_assert(kind == element_kind::custom || alignof(element) >= size_of(kind),
                "lambda_attention: an element is aligned as the kind that its element_traits name");
  tensor t;
  t.data = reinterpret_cast<unsigned char*>(const_cast<element*>(view.data));
  t.tokens = view.tokens;
  t.heads = view.heads;
  t.dim = view.dim;
  const bool empty = view.tokens == 0 || view.heads == 0 || view.dim == 0;
  t.token_stride = view.tokens > 1 && !empty ? view.token_stride : 0;
  t.head_stride = view.heads > 1 && !empty ? view.head_stride : 0;
  t.element_size = static_cast<index_t>(sizeof(element));
  t.format = format_of(kind);
  if constexpr (kind == element_kind::custom) {
    t.read = read_custom_elements<element>;
    t.write = write_custom_elements<element>;
  }
  return t;
}

// Every extent and every product of extents of a tensor.
inline void check_tensor(const tensor& t, const char* where, const char* name) {
  if (t.tokens < 0 || t.heads < 0 || t.dim < 0)
    refuse("%s: expected %s with tokens, heads and dim >= 0, got [%lld, %lld, %lld]", where, name, printable(t.tokens),
           printable(t.heads), printable(t.dim));
  if (t.token_stride < 0 || t.head_stride < 0)
    refuse("%s: expected %s with strides >= 0, got token_stride = %lld, head_stride = %lld", where, name,
           printable(t.token_stride), printable(t.head_stride));
  if (t.tokens == 0 || t.heads == 0 || t.dim == 0) return;
  index_t by_token = 0, by_head = 0, elements = 0, bytes = 0;
  const bool fits = multiply(t.tokens - 1, t.token_stride, &by_token) &&
                    multiply(t.heads - 1, t.head_stride, &by_head) &&
                    !__builtin_add_overflow(by_token, by_head, &elements) &&
                    !__builtin_add_overflow(elements, t.dim, &elements) && multiply(elements, t.element_size, &bytes);
  if (!fits)
    refuse("%s: expected %s to end within 2^63 bytes, got [%lld, %lld, %lld] with strides %lld, %lld", where, name,
           printable(t.tokens), printable(t.heads), printable(t.dim), printable(t.token_stride),
           printable(t.head_stride));
  if (t.data == nullptr) refuse("%s: expected %s with data, got a null pointer", where, name);
}

// Rows that are written must not overlap each other.
inline void check_distinct_rows(const tensor& t, const char* where, const char* name) {
  const bool tokens_outer = t.heads <= 1 || (t.tokens > 1 && t.token_stride >= t.head_stride);
  const index_t inner_count = tokens_outer ? t.heads : t.tokens;
  const index_t inner = tokens_outer ? t.head_stride : t.token_stride;
  const index_t outer_count = tokens_outer ? t.tokens : t.heads;
  const index_t outer = tokens_outer ? t.token_stride : t.head_stride;
  const bool inner_distinct = inner_count <= 1 || inner >= t.dim;
  const bool outer_distinct = outer_count <= 1 || outer >= (inner_count - 1) * inner + t.dim;
  if (t.extent_bytes() > 0 && !(inner_distinct && outer_distinct))
    refuse("%s: expected %s with rows that do not overlap, got dim = %lld, token_stride = %lld, head_stride = %lld",
           where, name, printable(t.dim), printable(t.token_stride), printable(t.head_stride));
}

inline bool same_rows(const tensor& a, const tensor& b) {
  return a.data == b.data && a.tokens == b.tokens && a.heads == b.heads && a.dim == b.dim &&
         a.token_stride == b.token_stride && a.head_stride == b.head_stride && a.element_size == b.element_size &&
         a.format == b.format;
}

// The whole numbers x with low < x * step < high, step > 0, as [first, last].
struct whole_range {
  index_t first, last;
};
constexpr whole_range multiples_between(index_t low, index_t high, index_t step) {
  const index_t first = low >= 0 ? low / step + 1 : -((-low - 1) / step);
  const index_t last = high > 0 ? (high - 1) / step : -(-high / step) - 1;
  return {first, last};
}

// A set of byte ranges, `size` bytes each, at every combination of an outer and an inner step.
struct byte_ranges {
  index_t outer_count, outer_step;
  index_t inner_count, inner_step;
  index_t size;

  constexpr byte_ranges turned_over() const { return {inner_count, inner_step, outer_count, outer_step, size}; }
};

// Whether a range of `a` and one of `b` share a byte, when all of b lies `distance` further and the steps are the same. Two
// ranges, o outer and i inner steps apart, do iff  -b.size < distance + o * outer_step + i * inner_step < a.size;  the o
// for which that holds are looked up for each i, and so the i are the steps of which there are fewer.
inline bool share_a_byte(const byte_ranges& a, const byte_ranges& b, index_t distance) {
  if (a.inner_count + b.inner_count > a.outer_count + b.outer_count)
    return share_a_byte(a.turned_over(), b.turned_over(), distance);
  const index_t outer_step = a.outer_count > 1 ? a.outer_step : b.outer_step;
  const index_t inner_step = a.inner_count > 1 ? a.inner_step : b.inner_step;
  for (index_t i = 1 - a.inner_count; i < b.inner_count; ++i) {
    const index_t low = -b.size - distance - i * inner_step;
    const index_t high = a.size - distance - i * inner_step;
    if (outer_step == 0) {
      if (low < 0 && 0 < high) return true;
      continue;
    }
    const whole_range o = multiples_between(low, high, outer_step);
    if (max(o.first, 1 - a.outer_count) <= min(o.last, b.outer_count - 1)) return true;
  }
  return false;
}

// Whether two tensors share a byte. Tensors that are interleaved in one buffer (q, k and v of a token, or of a head, side by
// side) have the same distance between tokens, mostly between heads too; then that is answered exactly, row by row or token
// by token. Others count as sharing one when the spans of their bytes do.
inline bool overlap(const tensor& a, const tensor& b) {
  const std::uintptr_t a_first = reinterpret_cast<std::uintptr_t>(a.data);
  const std::uintptr_t b_first = reinterpret_cast<std::uintptr_t>(b.data);
  const index_t a_span = a.extent_bytes(), b_span = b.extent_bytes();
  if (a_span == 0 || b_span == 0 || a_first >= b_first + static_cast<std::uintptr_t>(b_span) ||
      b_first >= a_first + static_cast<std::uintptr_t>(a_span))
    return false;
  // Longer than any memory is: where the rows lie is then no matter, but that the sums below do not overflow.
  constexpr index_t longest = index_t{1} << 61;
  if (a_span > longest || b_span > longest) return true;
  const auto same_step = [](index_t a_count, index_t a_step, index_t b_count, index_t b_step) {
    return a_count <= 1 || b_count <= 1 || a_step == b_step;
  };
  if (!same_step(a.tokens, a.token_bytes(), b.tokens, b.token_bytes())) return true;
  const bool by_row = same_step(a.heads, a.head_bytes(), b.heads, b.head_bytes());
  const auto ranges_of = [by_row](const tensor& t) {
    if (by_row) return byte_ranges{t.tokens, t.token_bytes(), t.heads, t.head_bytes(), t.dim * t.element_size};
    return byte_ranges{t.tokens, t.token_bytes(), 1, 0, t.slice(0, 1).extent_bytes()};
  };
  return share_a_byte(ranges_of(a), ranges_of(b), static_cast<index_t>(b_first - a_first));
}

// `out` may be `input`, row for row; any other overlap would let the call read what it has written.
inline void check_alias(const tensor& out, const tensor& input, const char* where, const char* name) {
  if (overlap(out, input))
    refuse("%s: expected out not to overlap %s (out may be exactly q), got overlapping memory", where, name);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
