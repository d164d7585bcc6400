// The memory of a middle_store: pages of rows, and of each page what no key in it exceeds.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/position.hpp>

#include <cstring>
#include <limits>
#include <vector>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Constants, for a function of std would be shared by units of other flags.
template <class Real>
inline constexpr Real largest_finite = std::numeric_limits<Real>::max();
template <class Real>
inline constexpr Real smallest_normal = std::numeric_limits<Real>::min();
template <class Real>
inline constexpr Real rounding_unit = std::numeric_limits<Real>::epsilon();

// All tokens of a stream, their keys as R(0)k. A page has 64 of them, and bounds: of each head the largest number in each dim of
// its keys, as they are stored, and the smallest. Pages lie in blocks, each with as many as those before it until that is large
// enough: what is held is at most about twice what is used, and keys lie one after the other for memory to be read fast.
//
//     pages     0 | 1 | 2  3 | 4  5  6  7 | 8 ... 15 | 16 ... 23 | ...     blocks, here of 8 pages at most; in each for every
//                                                                          head keys, then values
template <class Real>
class middle_core {
 public:
  static constexpr index_t page_tokens = 64;

  struct geometry {
    lambda_shape shape;
    index_t num_kv_heads;
    index_t head_dim;
    index_t v_head_dim;
  };

  middle_core(const geometry& g, const storage_functions<Real>& storage) : geometry_(g), storage_(storage) {
    index_t bytes = 0;
    const index_t of_head = block(g, storage, page_tokens).head_bytes();
    if (!multiply(g.num_kv_heads, of_head, &bytes))
      refuse("middle_store: expected pages that fit in memory, got %lld heads of %lld bytes", printable(g.num_kv_heads),
             printable(of_head));
    while (bytes << num_doublings_ <= large_enough / 2) ++num_doublings_;
  }

  const geometry& shape() const { return geometry_; }
  row_format format() const { return storage_.format; }
  index_t num_tokens() const { return num_tokens_; }
  index_t num_pages() const { return divide_up(num_tokens_, page_tokens); }
  index_t padded_dim() const { return round_up(geometry_.head_dim, row_multiple); }
  void commit(index_t new_tokens) { num_tokens_ += new_tokens; }
  void rewind(index_t tokens) {
    num_tokens_ -= tokens;
    if (num_tokens_ == 0) largest_number_ = 0;
  }
  index_t bytes() const {
    std::size_t bytes = sizeof *this + bounds_.bytes() + blocks_.capacity() * sizeof(block);
    for (const block& b : blocks_) bytes += b.memory.bytes();
    return static_cast<index_t>(bytes);
  }

  // Makes room for so many tokens, at most 2^40. Where memory runs out the tokens stay as they were; what was made room for does
  // too.
  void reserve(index_t tokens) {
    const index_t pages = divide_up(tokens, page_tokens);
    if (pages > bounded_pages_) {
      const index_t more = max(pages, 2 * bounded_pages_);
      index_t num_bounds = 0;
      if (!multiply(geometry_.num_kv_heads, more * bounds_row(), &num_bounds))
        refuse("append: expected a store that fits in memory, got %lld heads of %lld tokens",
               printable(geometry_.num_kv_heads), printable(tokens));
      buffer<Real> bounds(num_bounds);
      for (index_t head = 0; head < geometry_.num_kv_heads && bounded_pages_ > 0; ++head)
        std::memcpy(bounds.data() + head * more * bounds_row(), bounds_of(head, 0),
                    static_cast<std::size_t>(bounded_pages_ * bounds_row()) * sizeof(Real));
      bounds_ = static_cast<buffer<Real>&&>(bounds);
      bounded_pages_ = more;
    }
    while (num_blocks() < (pages == 0 ? 0 : block_of(pages - 1) + 1)) {
      const index_t doublings = min(max(num_blocks() - 1, 0), num_doublings_);
      block next(geometry_, storage_, page_tokens << doublings);
      next.memory = buffer<unsigned char>(geometry_.num_kv_heads * next.head_bytes());
      blocks_.push_back(static_cast<block&&>(next));
    }
  }

  // Writes the rows of the tokens num_tokens() ..., for which there is room, without counting them in.
  void write(const kernel_table<Real>& kernels, const position_data& encoding, const tensor& k,
             const tensor& v) noexcept {
    alignas(buffer_alignment) Real angles[row_turner<Real>::max_angle_count];
    row_turner<Real> zero(kernels, encoding, k.dim, angles);
    zero.move_to(0);
    const row_store<Real> keys = store_of<Real>(k), values = store_of<Real>(v);
    for (index_t i = 0; i < k.tokens; ++i)
      for (index_t head = 0; head < geometry_.num_kv_heads; ++head) write_row(kernels, zero, keys, values, i, head);
  }

  // The rows of the block that a page is in.
  row_store<Real> keys(index_t page) const {
    const block& b = blocks_[static_cast<std::size_t>(block_of(page))];
    return b.keys.store(b.memory.data(), b.head_bytes());
  }
  row_store<Real> values(index_t page) const {
    const block& b = blocks_[static_cast<std::size_t>(block_of(page))];
    return b.values.store(b.memory.data(), b.head_bytes());
  }
  // The bounds of a head's pages from one on: for each the largest numbers, padded with zeros, then the smallest.
  const Real* bounds_of(index_t head, index_t page) const {
    return bounds_.data() + (head * bounded_pages_ + page) * bounds_row();
  }
  index_t bounds_row() const { return 2 * padded_dim(); }
  // No finite number of a key is larger, whatever its sign.
  Real largest_number() const { return largest_number_; }

 private:
  // Two huge pages of memory.
  static constexpr index_t large_enough = 1 << 22;

  // So many tokens, of which each block begins with a multiple.
  struct block {
    row_ring<Real> keys;
    row_ring<Real> values;
    buffer<unsigned char> memory;

    block(const geometry& g, const storage_functions<Real>& storage, index_t num_tokens)
        : keys(storage, g.num_kv_heads, num_tokens, g.head_dim, 0, "middle_store"),
          values(storage, g.num_kv_heads, num_tokens, g.v_head_dim, keys.end_byte(), "middle_store") {}
    index_t head_bytes() const { return values.end_byte(); }
  };

  index_t num_blocks() const { return static_cast<index_t>(blocks_.size()); }
  index_t block_of(index_t page) const {
    if (page == 0) return 0;
    const index_t doublings = 63 - __builtin_clzll(static_cast<unsigned long long>(page));
    return doublings < num_doublings_ ? doublings + 1 : num_doublings_ + (page >> num_doublings_);
  }

  void write_row(const kernel_table<Real>& kernels, const row_turner<Real>& zero, const row_store<Real>& keys,
                 const row_store<Real>& values, index_t i, index_t head) {
    const index_t token = num_tokens_ + i, page = token / page_tokens;
    block& written = blocks_[static_cast<std::size_t>(block_of(page))];
    unsigned char* const rows_of_head = written.memory.data() + head * written.head_bytes();
    Real room[max_head_dim], turned[max_head_dim];
    zero.turn(keys.numbers(kernels, keys.row(head, i), 1.0f, room), turned);
    written.keys.write(kernels, rows_of_head, token, turned);
    const row_store<Real> stored = this->keys(page);
    const float* const scale = stored.scale(head, token);
    stored.read(kernels, stored.row(head, token), scale == nullptr ? 1.0f : *scale, turned);
    extend_bounds(bounds_.data() + (head * bounded_pages_ + page) * bounds_row(), turned, token % page_tokens == 0);
    written.values.write(kernels, rows_of_head, token, values.numbers(kernels, values.row(head, i), 1.0f, room));
  }

  // A NaN bounds nothing: a key that has one is never among the best.
  void extend_bounds(Real* largest, const Real* key, bool first) {
    Real* const smallest = largest + padded_dim();
    for (index_t d = 0; d < geometry_.head_dim; ++d) {
      if (first) largest[d] = -largest_finite<Real>, smallest[d] = largest_finite<Real>;
      if (key[d] > largest[d]) largest[d] = key[d];
      if (key[d] < smallest[d]) smallest[d] = key[d];
      const Real size = key[d] < 0 ? -key[d] : key[d];
      if (size > largest_number_ && size <= largest_finite<Real>) largest_number_ = size;
    }
  }

  geometry geometry_;
  index_t num_tokens_ = 0;
  index_t bounded_pages_ = 0;
  Real largest_number_ = 0;
  storage_functions<Real> storage_;
  index_t num_doublings_ = 0;  // from a page to the largest blocks
  std::vector<block> blocks_;
  buffer<Real> bounds_;  // [head][page][bounds_row()]
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
