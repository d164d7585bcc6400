// The memory of a kv_cache, whatever its storage and its encoding.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/tensor.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// A storage type as functions.
template <class Real>
struct storage_functions {
  row_format format;
  index_t (*row_bytes)(index_t dim);
  float (*encode)(const Real* row, index_t dim, void* stored);
  void (*decode)(const void* stored, float scale, index_t dim, Real* row);
  const pair_kernels<Real>* (*pairs)(isa_level isa);  // null where rows are not pairs
};

template <class Storage>
storage_functions<typename Storage::compute_type> functions_of() {
  using real = typename Storage::compute_type;
  const pair_kernels<real>* (*pairs)(isa_level) = nullptr;
  if constexpr (Storage::format == row_format::bf16) pairs = pair_kernels_for<real>;
  return {Storage::format, [](index_t dim) { return Storage::row_bytes(dim); }, Storage::encode, Storage::decode,
          pairs};
}

// Of one number of a row that is not custom.
constexpr index_t number_bytes(row_format format) {
  if (format == row_format::int8) return 1;
  if (format == row_format::f16 || format == row_format::bf16) return 2;
  return format == row_format::f64 ? 8 : 4;
}

// The newest `capacity` rows of each head: token t in slot t % capacity.
//
//      slot      0    1    2    3    4    5    6    7        capacity 8, 11 tokens seen: token 8 has overwritten
//      token     8    9   10    3    4    5    6    7        token 0, and so on; token 11 will overwrite token 3
//
// Rows, and behind them their scales, lie from `first_byte` on in the block that their head has with all rings.
template <class Real>
class row_ring {
 public:
  row_ring(const storage_functions<Real>& storage, index_t num_heads, index_t num_rows, index_t row_dim,
           index_t first_byte, const char* where)
      : storage_(storage),
        capacity_(num_rows),
        dim_(row_dim),
        row_bytes_(checked_row_bytes(storage, row_dim, where)),
        padding_(storage.format == row_format::custom ? 0 : row_bytes_ - row_dim * number_bytes(storage.format)),
        first_byte_(first_byte),
        first_scale_byte_(first_byte + bytes_of_rows(num_heads, num_rows, row_bytes_, where)) {}

  index_t capacity() const { return capacity_; }
  row_format format() const { return storage_.format; }
  index_t row_bytes() const { return row_bytes_; }
  const pair_kernels<Real>* pairs(isa_level isa) const {
    return storage_.pairs == nullptr ? nullptr : storage_.pairs(isa);
  }
  // Where the next ring of a head's block may begin.
  index_t end_byte() const {
    const index_t scale_bytes = has_scales() ? capacity_ * static_cast<index_t>(sizeof(float)) : 0;
    return round_up(first_scale_byte_ + scale_bytes, buffer_alignment);
  }

  void write(const kernel_table<Real>& kernels, unsigned char* block, index_t token, const Real* row) const {
    const index_t slot = token % capacity_;
    unsigned char* const stored = block + first_byte_ + slot * row_bytes_;
    const float scale = storage_.format == row_format::custom ? storage_.encode(row, dim_, stored)
                                                              : kernels.write_row(storage_.format, row, dim_, stored);
    if (has_scales()) reinterpret_cast<float*>(block + first_scale_byte_)[slot] = scale;
    // Kernels multiply what is behind a row by zero. It was zero at first, but for what a forged file has left there.
    if (padding_ > 0) std::memset(stored + row_bytes_ - padding_, 0, static_cast<std::size_t>(padding_));
  }

  // Calls visit(memory, bytes) for the rows of the tokens, oldest first, in as many runs as they lie in; then for their
  // scales. Of more tokens than there are slots, the newest come last to theirs.
  template <class Byte, class Visit>
  void for_each_run(Byte* block, index_range tokens, Visit&& visit) const {
    for_each_run(block + first_byte_, row_bytes_, tokens, visit);
    if (has_scales()) for_each_run(block + first_scale_byte_, static_cast<index_t>(sizeof(float)), tokens, visit);
  }

  // Of heads whose blocks lie one after the other.
  row_store<Real> store(const unsigned char* blocks, index_t block_bytes) const {
    row_store<Real> store;
    store.format = storage_.format;
    store.data = blocks + first_byte_;
    store.scales = has_scales() ? reinterpret_cast<const float*>(blocks + first_scale_byte_) : nullptr;
    store.row_bytes = row_bytes_;
    store.head_bytes = block_bytes;
    store.capacity = max(1, capacity_);
    store.dim = dim_;
    store.decode = storage_.decode;
    return store;
  }

 private:
  // Formats in which rows need a scale to be read.
  bool has_scales() const { return storage_.format == row_format::int8 || storage_.format == row_format::custom; }

  template <class Byte, class Visit>
  void for_each_run(Byte* elements, index_t element_bytes, index_range tokens, Visit&& visit) const {
    for (index_t token = tokens.first, count; capacity_ > 0 && token < tokens.last; token += count) {
      const index_t slot = token % capacity_;
      count = min(tokens.last - token, capacity_ - slot);
      visit(elements + slot * element_bytes, count * element_bytes);
    }
  }

  // Of formats that the kernels read, rows are padded to whole vectors.
  static index_t checked_row_bytes(const storage_functions<Real>& storage, index_t dim, const char* where) {
    const index_t bytes = storage.row_bytes(dim);
    if (bytes < 0 || bytes > (INT64_MAX >> 8))
      refuse("%s: expected 0 <= row_bytes(dim) < 2^55 of its storage, got %lld", where, printable(bytes));
    if (storage.format == row_format::custom) return round_up(bytes, 16);
    const index_t number = number_bytes(storage.format);
    if (bytes != dim * number)
      refuse("%s: expected row_bytes(%lld) = %lld of its storage, that of its format, got %lld", where, printable(dim),
             printable(dim * number), printable(bytes));
    return round_up(dim, row_multiple) * number;
  }
  static index_t bytes_of_rows(index_t heads, index_t capacity, index_t row_bytes, const char* where) {
    index_t rows = 0, bytes = 0;
    if (!multiply(heads, capacity, &rows) || !multiply(rows, row_bytes, &bytes) || bytes > (INT64_MAX >> 8))
      refuse("%s: expected rows that fit in memory, got %lld heads of %lld rows of %lld bytes", where, printable(heads),
             printable(capacity), printable(row_bytes));
    return round_up(capacity * row_bytes, buffer_alignment);
  }

  storage_functions<Real> storage_;
  index_t capacity_;
  index_t dim_;
  index_t row_bytes_;
  index_t padding_;  // bytes at a row's end, of the formats that kernels read
  index_t first_byte_;
  index_t first_scale_byte_;
};

// Of a stream: more than any has, and few enough that no sum of tokens and rows overflows.
inline constexpr index_t most_stream_tokens = index_t{1} << 62;

// Sinks and rings of one stream in one layer. What is kept depends on what queries can ask for:
//
//     no rotation                     one ring, one copy of the sinks
//     rotation, limit >= window - 1   one ring of rotated rows; sinks rotated (while near) and as R(0)k (once far)
//     rotation, limit <  window - 1   a ring of rotated rows for the newest limit + 1, a ring of R(0)k for the window
//
// All that one head has is one block, in the order in which decoding reads it, and all blocks are one piece of memory: what
// is read goes on where it left off, and few of its pages are small ones.
template <class Real>
class cache_core {
 public:
  struct geometry {
    plan_shape plan;
    bool rotates;
    index_t num_kv_heads;
    index_t head_dim;
    index_t v_head_dim;
    index_t max_append;
    index_t max_rewind;
    index_t first_position;
  };

  cache_core(const geometry& g, const storage_functions<Real>& storage, const storage_functions<Real>& sinks)
      : geometry_(g),
        sinks_near_(sinks, g.num_kv_heads, num_sinks(), g.head_dim, 0, "kv_cache"),
        sinks_far_(sinks, g.num_kv_heads, has_far_sinks() ? num_sinks() : 0, g.head_dim, sinks_near_.end_byte(),
                   "kv_cache"),
        window_far_(storage, g.num_kv_heads, has_far_window() ? ring_rows(window()) : 0, g.head_dim,
                    sinks_far_.end_byte(), "kv_cache"),
        window_near_(storage, g.num_kv_heads, ring_rows(near_window()), g.head_dim, window_far_.end_byte(), "kv_cache"),
        sink_values_(sinks, g.num_kv_heads, num_sinks(), g.v_head_dim, window_near_.end_byte(), "kv_cache"),
        window_values_(storage, g.num_kv_heads, ring_rows(window()), g.v_head_dim, sink_values_.end_byte(), "kv_cache"),
        blocks_(checked_bytes(g.num_kv_heads, block_bytes())) {}

  const geometry& shape() const { return geometry_; }
  row_format format() const { return window_near_.format(); }
  index_t key_row_bytes() const { return window_near_.row_bytes(); }
  index_t value_row_bytes() const { return window_values_.row_bytes(); }
  // Kernels for what the rings hold; null where that is not taken in pairs.
  const pair_kernels<Real>* pairs(isa_level isa) const { return window_near_.pairs(isa); }
  index_t num_tokens() const { return num_tokens_; }

  // Counts in tokens that write() was given.
  void commit(index_t new_tokens) { num_tokens_ += new_tokens; }
  // Forgets the newest tokens, of those that newest_held() counts.
  void rewind(index_t tokens) { num_tokens_ -= tokens; }
  void clear() { num_tokens_ = num_written_ = 0; }

  // How many of the newest tokens still have all the keys that their queries see.
  index_t newest_held() const {
    if (num_written_ <= window_near_.capacity()) return num_tokens_;  // no ring has overwritten a row
    return min(num_tokens_, max(0, spare_rows() - (num_written_ - num_tokens_)));
  }

  // Calls visit(memory, bytes) for all rows of a stream of `tokens` tokens that are needed to take the newest `held` of them
  // back, or none: of one head after the other, oldest first. `blocks` are those of this cache or of one like it.
  template <class Byte, class Visit>
  void for_each_run(Byte* blocks, index_t tokens, index_t held, Visit&& visit) const {
    const auto newest = [&](index_t window) {
      return index_range{max(num_sinks(), tokens - saturating_add(held, max(window, 1) - 1)), tokens};
    };
    const index_range sinks = {0, min(tokens, num_sinks())};
    for (index_t head = 0; head < geometry_.num_kv_heads; ++head) {
      Byte* const block = blocks + head * block_bytes();
      sinks_near_.for_each_run(block, sinks, visit);
      sinks_far_.for_each_run(block, sinks, visit);
      window_far_.for_each_run(block, newest(window()), visit);
      window_near_.for_each_run(block, newest(near_window()), visit);
      sink_values_.for_each_run(block, sinks, visit);
      window_values_.for_each_run(block, newest(window()), visit);
    }
  }
  const unsigned char* blocks() const { return blocks_.data(); }
  unsigned char* blocks() { return blocks_.data(); }

  // Once for_each_run() has filled these rows.
  void restore(index_t tokens, index_t held) {
    num_tokens_ = tokens;
    num_written_ = tokens + (held < tokens ? max(0, spare_rows() - held) : 0);
  }

  index_t bytes() const { return static_cast<index_t>(sizeof *this + blocks_.bytes()); }

  // Writes the rows of the tokens num_tokens() ..., without counting them in: until commit(), tokens that come later find
  // the cache as it was.
  void write(const kernel_table<Real>& kernels, const position_data& encoding, const tensor& k,
             const tensor& v) noexcept {
    alignas(buffer_alignment) Real own_angles[tokens_together * row_turner<Real>::max_angle_count];
    alignas(buffer_alignment) Real zero_angles[row_turner<Real>::max_angle_count];
    row_turner<Real> own(kernels, encoding, k.dim, own_angles);
    row_turner<Real> zero(kernels, encoding, k.dim, zero_angles);
    zero.move_to(0);
    num_written_ = max(num_written_, num_tokens_ + k.tokens);
    const row_store<Real> keys = store_of<Real>(k), values = store_of<Real>(v);
    // Tokens between the sinks and the newest that the rings hold are not kept.
    const index_t end_of_sinks = min(max(0, num_sinks() - num_tokens_), k.tokens);
    const index_t first_in_rings = max(end_of_sinks, k.tokens - window_values_.capacity());
    for (const index_range kept : {index_range{0, end_of_sinks}, index_range{first_in_rings, k.tokens}}) {
      for (index_t first = kept.first, last; first < kept.last; first = last) {
        last = min(first + tokens_together, kept.last);
        own.move_to(
            static_cast<std::uint64_t>(geometry_.first_position) + static_cast<std::uint64_t>(num_tokens_ + first),
            last - first);
        for (index_t i = first; i < last; ++i) {
          for (index_t head = 0; head < geometry_.num_kv_heads; ++head)
            write_row(kernels, keys, values, i, head, own, i - first, zero);
        }
      }
    }
  }

  key_value_rows<Real> rows() const {
    key_value_rows<Real> rows;
    const auto store_of_ring = [this](const row_ring<Real>& ring) { return ring.store(blocks_.data(), block_bytes()); };
    rows.keys[static_cast<int>(key_kind::sinks_near)] = store_of_ring(sinks_near_);
    rows.keys[static_cast<int>(key_kind::sinks_far)] = store_of_ring(has_far_sinks() ? sinks_far_ : sinks_near_);
    rows.keys[static_cast<int>(key_kind::window_near)] = store_of_ring(window_near_);
    rows.keys[static_cast<int>(key_kind::window_far)] = store_of_ring(has_far_window() ? window_far_ : window_near_);
    for (row_rotation& wanted : rows.wanted) wanted = row_rotation::none;  // rings hold what is wanted of them
    rows.sink_values = store_of_ring(sink_values_);
    rows.window_values = store_of_ring(window_values_);
    rows.sinks_as_stored = sink_values_.format() != row_format::custom;
    rows.window_as_stored = format() != row_format::custom;
    return rows;
  }

 private:
  index_t num_sinks() const { return geometry_.plan.shape.num_sinks; }
  index_t window() const { return geometry_.plan.shape.window; }
  bool has_far_window() const { return geometry_.rotates && geometry_.plan.limit() < window() - 1; }
  bool has_far_sinks() const { return geometry_.rotates && !geometry_.plan.slots(); }
  index_t near_window() const { return has_far_window() ? geometry_.plan.limit() + 1 : window(); }
  // Rows that a ring has beyond those that the next query sees.
  index_t spare_rows() const { return geometry_.max_append + geometry_.max_rewind; }
  index_t ring_rows(index_t window) const { return max(window, 1) - 1 + spare_rows(); }
  index_t block_bytes() const { return window_values_.end_byte(); }
  static index_t checked_bytes(index_t num_blocks, index_t block_bytes) {
    index_t bytes = 0;
    if (!multiply(num_blocks, block_bytes, &bytes))
      refuse("kv_cache: expected a cache that fits in memory, got %lld heads of %lld bytes", printable(num_blocks),
             printable(block_bytes));
    return bytes;
  }

  // Tokens whose angles are computed in one go.
  static constexpr index_t tokens_together = 16;

  // New token i, position `place` of `own`.
  void write_row(const kernel_table<Real>& kernels, const row_store<Real>& keys, const row_store<Real>& values,
                 index_t i, index_t head, const row_turner<Real>& own, index_t place, const row_turner<Real>& zero) {
    const index_t token = num_tokens_ + i;
    const bool sink = token < num_sinks();
    unsigned char* const block = blocks_.data() + head * block_bytes();
    Real room[max_head_dim], turned[max_head_dim];
    const Real* const key = keys.numbers(kernels, keys.row(head, i), 1.0f, room);
    own.turn(key, turned, place);
    (sink ? sinks_near_ : window_near_).write(kernels, block, token, turned);
    if (sink ? has_far_sinks() : has_far_window()) {
      zero.turn(key, turned);
      (sink ? sinks_far_ : window_far_).write(kernels, block, token, turned);
    }
    const Real* const value = values.numbers(kernels, values.row(head, i), 1.0f, room);
    (sink ? sink_values_ : window_values_).write(kernels, block, token, value);
  }

  geometry geometry_;
  index_t num_tokens_ = 0;
  index_t num_written_ = 0;  // the most that num_tokens_ was, those of a step that runs, or has failed, included
  row_ring<Real> sinks_near_;
  row_ring<Real> sinks_far_;
  row_ring<Real> window_far_;
  row_ring<Real> window_near_;
  row_ring<Real> sink_values_;
  row_ring<Real> window_values_;
  buffer<unsigned char> blocks_;  // of all KV heads
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
