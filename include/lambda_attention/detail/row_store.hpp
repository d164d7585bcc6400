// Rows of keys or values as they lie in memory: a caller's tensor, a list of them, or a ring of a cache.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/storage.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

template <class Real>
inline constexpr row_format native_format = sizeof(Real) == sizeof(double) ? row_format::f64 : row_format::f32;

// Rows of one head that lie one after the other.
struct row_run {
  const unsigned char* first_row;
  const float* scales;  // null in formats that have none
  index_t row_bytes;
  index_t num_rows;
  row_rotation rotation;
};

// Where the rows of some keys, or of their values, lie in a caller's memory.
struct placed_rows {
  const unsigned char* data;
  index_t row_bytes;
  index_t head_bytes;
};

// The keys [indices.first, indices.last) and their values. Tables of runs are in the order of keys.
struct placed_run {
  index_range indices;
  row_rotation rotation;  // of the keys
  placed_rows keys;
  placed_rows values;
};

// The row of key j of KV head h lies at data + h * head_bytes + (j % capacity) * row_bytes; its scale, of heads as far apart,
// is (j % capacity) floats on. Or it lies where a table of runs says.
template <class Real>
struct row_store {
  using decode_function = void (*)(const void* stored, float scale, index_t dim, Real* row);

  row_format format = native_format<Real>;
  const unsigned char* data = nullptr;
  const float* scales = nullptr;  // of head 0, in formats that have them
  index_t row_bytes = 0;
  index_t head_bytes = 0;
  index_t capacity = 1;
  index_t dim = 0;
  index_t number_bytes = 0;  // of a caller's tensors
  row_rotation rotation = row_rotation::none;
  bool in_runs = false;
  const placed_run* runs = nullptr;
  index_t num_runs = 0;
  placed_rows placed_run::*rows_of_run = &placed_run::keys;
  read_elements_function read_elements = nullptr;  // custom elements of a tensor
  decode_function decode = nullptr;                // custom rows of a cache

  const unsigned char* row(index_t head, index_t key) const {
    return data + head * head_bytes + (key % capacity) * row_bytes;
  }
  // Null in formats that have none.
  const float* scale(index_t head, index_t key) const {
    if (scales == nullptr) return nullptr;
    return scales + head * head_bytes / static_cast<index_t>(sizeof(float)) + key % capacity;
  }
  // Keys from this one on whose rows and scales lie one after the other.
  index_t run_length(index_t key) const { return capacity - key % capacity; }

  // The rows of a head from that of `key` on, wherever they are. A table must hold it.
  row_run run_from(index_t head, index_t key) const {
    if (!in_runs) return {row(head, key), scale(head, key), row_bytes, run_length(key), rotation};
    const placed_run& run = run_of(key);
    const placed_rows& rows = run.*rows_of_run;
    return {rows.data + head * rows.head_bytes + (key - run.indices.first) * rows.row_bytes, nullptr, rows.row_bytes,
            run.indices.last - key, rows_of_run == &placed_run::keys ? run.rotation : row_rotation::none};
  }

  // Whether a run of a caller's is read as well as a ring of a cache: row after row, and for long enough.
  bool is_long(const row_run& run) const { return run.row_bytes == dim * number_bytes && run.num_rows >= 128; }

  // At most so many bytes of a row are read.
  index_t bytes_read(const row_run& run) const { return min(run.row_bytes, dim * static_cast<index_t>(sizeof(Real))); }

  // The numbers of a row and its scale, 1 in formats that have none.
  void read(const kernel_table<Real>& kernels, const unsigned char* source, float scale, Real* numbers) const {
    if (format != row_format::custom) {
      kernels.read_row(format, source, dim, static_cast<Real>(scale), numbers);
    } else if (decode != nullptr) {
      decode(source, scale, dim, numbers);
    } else {
      read_custom(read_elements, source, dim, numbers);
    }
  }
  // The same, where they lie if they can be read there.
  const Real* numbers(const kernel_table<Real>& kernels, const unsigned char* source, float scale, Real* room) const {
    if (format == native_format<Real>) return reinterpret_cast<const Real*>(source);
    read(kernels, source, scale, room);
    return room;
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

 private:
  // The last that does not begin after the key.
  const placed_run& run_of(index_t key) const {
    index_t first = 0;
    for (index_t count = num_runs; count > 1;) {
      const index_t half = count / 2;
      if (runs[first + half].indices.first <= key) first += half;
      count -= half;
    }
    return runs[first];
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
  store.number_bytes = t.element_size;
  store.read_elements = t.read;
  return store;
}

// Rows that a kernel can read: words of numbers of its own type, or of pairs of bfloat16s. Key j is at place j % capacity,
// where each has a row, or each two of them share one.
template <class Real>
struct row_window {
  const Real* data = nullptr;
  Real* ring = nullptr;  // the same, where it is a copy
  index_t stride = 0;
  index_t capacity = 1;  // even where rows are shared
  bool shared_by_two = false;

  index_t offset_at(index_t place) const { return (shared_by_two ? place / 2 : place) * stride; }
  const Real* row(index_t key) const { return data + offset_at(key % capacity); }
  // Keys from this one on that lie one after the other.
  index_t run_length(index_t key) const { return capacity - key % capacity; }
};

// What makes of a key's row the one that is wanted. Rows that have been through a rotation have its factor; they are turned
// on, or back, without it.
enum class row_treatment {
  as_stored,
  turn_to_own_position,
  turn_to_zero,
  turn_on_to_own_position,
  turn_back_to_zero,
};

constexpr row_treatment treatment_of(row_rotation row, row_rotation wanted) {
  if (row == wanted) return row_treatment::as_stored;
  if (wanted == row_rotation::to_position)
    return row == row_rotation::none ? row_treatment::turn_to_own_position : row_treatment::turn_on_to_own_position;
  return row == row_rotation::none ? row_treatment::turn_to_zero : row_treatment::turn_back_to_zero;
}

// Whether rows can be read where they lie, as numbers or as the pairs that they hold. Rows of one head that lie far apart
// are better copied: a page and a cache set for each of them cost more than the copy.
template <class Real>
bool readable_in_place(const row_store<Real>& store, row_rotation wanted, bool in_pairs = false) {
  const index_t element = in_pairs ? 2 : static_cast<index_t>(sizeof(Real));
  if (store.in_runs || store.rotation != wanted || store.row_bytes >= (store.dim + row_multiple) * element)
    return false;
  if (!in_pairs) return store.format == native_format<Real>;
  constexpr index_t word = 4;
  return store.dim % 2 == 0 && store.row_bytes % word == 0 && store.head_bytes % word == 0 &&
         reinterpret_cast<std::uintptr_t>(store.data) % word == 0;
}

// Asks for a row that will be read soon. Rows of one head lie a whole token apart, where no hardware prefetcher looks.
inline constexpr index_t rows_ahead = 4;
inline void prefetch_row(const unsigned char* row, index_t bytes) {
  constexpr index_t cache_line = 64;
  for (index_t b = 0; b < bytes; b += cache_line) __builtin_prefetch(row + b);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
