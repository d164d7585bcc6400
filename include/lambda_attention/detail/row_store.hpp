// Rows of keys or values as they lie in memory: a caller's tensor, or a ring of a cache.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/storage.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

template <class Real>
inline constexpr row_format native_format = sizeof(Real) == sizeof(double) ? row_format::f64 : row_format::f32;

// The row of key j of KV head h lies at data + h * head_bytes + (j % capacity) * row_bytes.
template <class Real>
struct row_store {
  using decode_function = void (*)(const void* stored, float scale, index_t dim, Real* row);

  row_format format = native_format<Real>;
  const unsigned char* data = nullptr;
  const float* scales = nullptr;  // [kv heads][capacity], of formats that have one
  index_t row_bytes = 0;
  index_t head_bytes = 0;
  index_t capacity = 1;
  index_t dim = 0;
  read_elements_function read_elements = nullptr;  // custom elements of a tensor
  decode_function decode = nullptr;                // custom rows of a cache

  const unsigned char* row(index_t head, index_t key) const {
    return data + head * head_bytes + (key % capacity) * row_bytes;
  }
  float scale(index_t head, index_t key) const {
    return scales == nullptr ? 1.0f : scales[head * capacity + key % capacity];
  }

  void read(const kernel_table<Real>& kernels, index_t head, index_t key, Real* row_out) const {
    const unsigned char* const source = row(head, key);
    if (format != row_format::custom) {
      kernels.read_row(format, source, dim, scale(head, key), row_out);
    } else if (decode != nullptr) {
      decode(source, scale(head, key), dim, row_out);
    } else {
      read_custom(read_elements, source, dim, row_out);
    }
  }

  // Elements of a type that joined by the trait, through float.
  static void read_custom(read_elements_function read, const void* source, index_t count, float* row_out) {
    read(source, count, row_out);
  }
  static void read_custom(read_elements_function read, const void* source, index_t count, double* row_out) {
    float row[max_head_dim];
    read(source, count, row);
    for (index_t i = 0; i < count; ++i) row_out[i] = static_cast<double>(row[i]);
  }
};

template <class Real>
row_store<Real> store_of(const tensor& t) {
  row_store<Real> store;
  store.format = t.format;
  store.data = t.data;
  store.row_bytes = t.token_bytes();
  store.head_bytes = t.head_bytes();
  store.capacity = max(1, t.tokens);
  store.dim = t.dim;
  store.read_elements = t.read;
  return store;
}

// Rows that a kernel can read: numbers of its own type, key j at data + ((j - first) % capacity) * stride.
template <class Real>
struct row_window {
  const Real* data = nullptr;
  index_t stride = 0;
  index_t first = 0;
  index_t capacity = 1;

  const Real* row(index_t key) const { return data + ((key - first) % capacity) * stride; }
  // Keys from this one on that lie one after the other.
  index_t run_length(index_t key) const { return capacity - (key - first) % capacity; }
};

enum class row_treatment {
  as_stored,
  turn_to_own_position,
  turn_to_zero,
};

// Whether rows can be read where they lie. Values of one head that lie far apart are better copied: a page and a cache set
// for each of them cost more than the copy.
template <class Real>
bool readable_in_place(const row_store<Real>& store, row_treatment treatment) {
  const index_t dense = store.dim * static_cast<index_t>(sizeof(Real));
  return treatment == row_treatment::as_stored && store.format == native_format<Real> &&
         store.row_bytes < dense + row_multiple * static_cast<index_t>(sizeof(Real));
}

// Asks for a row that will be read soon. Rows of one head lie a whole token apart, where no hardware prefetcher looks.
inline constexpr index_t rows_ahead = 4;
inline void prefetch_row(const unsigned char* row, index_t bytes) {
  constexpr index_t cache_line = 64;
  for (index_t b = 0; b < bytes; b += cache_line) __builtin_prefetch(row + b);
}

// The keys [range.first, range.last) of one head, in place or copied to `scratch`, [range.size()][padded_dim].
template <class Real>
row_window<Real> window_of(const kernel_table<Real>& kernels, const row_store<Real>& store, row_treatment treatment,
                           index_t head, index_range range, std::uint64_t first_position, row_turner<Real>& turner,
                           Real* scratch, Real* row) {
  row_window<Real> window;
  if (readable_in_place(store, treatment)) {
    window.data = reinterpret_cast<const Real*>(store.row(head, 0));
    window.stride = store.row_bytes / static_cast<index_t>(sizeof(Real));
    window.capacity = store.capacity;
    return window;
  }
  window.data = scratch;
  window.stride = round_up(store.dim, row_multiple);
  window.first = range.first;
  window.capacity = max(1, range.size());
  if (treatment == row_treatment::turn_to_zero) turner.move_to(0);
  const index_t bytes = min(store.row_bytes, store.dim * static_cast<index_t>(sizeof(Real)));
  for (index_t key = range.first; key < range.last; ++key) {
    if (key + rows_ahead < range.last) prefetch_row(store.row(head, key + rows_ahead), bytes);
    Real* const copy = scratch + (key - range.first) * window.stride;
    store.read(kernels, head, key, treatment == row_treatment::as_stored ? copy : row);
    if (treatment == row_treatment::turn_to_own_position)
      turner.move_to(first_position + static_cast<std::uint64_t>(key));
    if (treatment != row_treatment::as_stored) turner.turn(row, copy);
    for (index_t d = store.dim; d < window.stride; ++d) copy[d] = 0;
  }
  return window;
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
