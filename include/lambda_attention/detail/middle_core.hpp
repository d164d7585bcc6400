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

// All tokens of a stream, their keys as R(0)k. A page has 64 of them: for each head a block of keys, then of values.
//
//     pages     0 ... 63 | 64 ... 127 | ...        bounds    of each head and page: the largest number in each dim of its
//                                                            keys, as they are stored, and the smallest
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

  middle_core(const geometry& g, const storage_functions<Real>& storage)
      : geometry_(g),
        keys_(storage, g.num_kv_heads, page_tokens, g.head_dim, 0),
        values_(storage, g.num_kv_heads, page_tokens, g.v_head_dim, keys_.end_byte()) {
    index_t bytes = 0;
    if (!multiply(g.num_kv_heads, values_.end_byte(), &bytes))
      refuse("middle_store: expected pages that fit in memory, got %lld heads of %lld bytes", printable(g.num_kv_heads),
             printable(values_.end_byte()));
  }

  const geometry& shape() const { return geometry_; }
  row_format format() const { return keys_.format(); }
  index_t num_tokens() const { return num_tokens_; }
  index_t num_pages() const { return divide_up(num_tokens_, page_tokens); }
  index_t padded_dim() const { return round_up(geometry_.head_dim, row_multiple); }
  void commit(index_t new_tokens) { num_tokens_ += new_tokens; }
  void rewind(index_t tokens) {
    num_tokens_ -= tokens;
    if (num_tokens_ == 0) largest_number_ = 0;
  }
  index_t bytes() const {
    const index_t pages = static_cast<index_t>(pages_.size()) * geometry_.num_kv_heads * block_bytes();
    const std::size_t list = pages_.capacity() * sizeof(buffer<unsigned char>);
    return static_cast<index_t>(sizeof *this + bounds_.bytes() + list) + pages;
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
    while (static_cast<index_t>(pages_.size()) < pages) pages_.emplace_back(geometry_.num_kv_heads * block_bytes());
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

  // Rows of a page: that of token t is at t % page_tokens.
  row_store<Real> keys(index_t page) const { return keys_.store(page_data(page), block_bytes()); }
  row_store<Real> values(index_t page) const { return values_.store(page_data(page), block_bytes()); }
  // The bounds of a head's pages from one on: for each the largest numbers, padded with zeros, then the smallest.
  const Real* bounds_of(index_t head, index_t page) const {
    return bounds_.data() + (head * bounded_pages_ + page) * bounds_row();
  }
  index_t bounds_row() const { return 2 * padded_dim(); }
  // No finite number of a key is larger, whatever its sign.
  Real largest_number() const { return largest_number_; }

 private:
  index_t block_bytes() const { return values_.end_byte(); }
  const unsigned char* page_data(index_t page) const { return pages_[static_cast<std::size_t>(page)].data(); }

  void write_row(const kernel_table<Real>& kernels, const row_turner<Real>& zero, const row_store<Real>& keys,
                 const row_store<Real>& values, index_t i, index_t head) {
    const index_t token = num_tokens_ + i, page = token / page_tokens;
    unsigned char* const block = pages_[static_cast<std::size_t>(page)].data() + head * block_bytes();
    Real room[max_head_dim], turned[max_head_dim];
    zero.turn(keys.numbers(kernels, keys.row(head, i), 1.0f, room), turned);
    keys_.write(kernels, block, token, turned);
    const row_store<Real> stored = this->keys(page);
    const float* const scale = stored.scale(head, token);
    stored.read(kernels, stored.row(head, token), scale == nullptr ? 1.0f : *scale, turned);
    extend_bounds(bounds_.data() + (head * bounded_pages_ + page) * bounds_row(), turned, token % page_tokens == 0);
    values_.write(kernels, block, token, values.numbers(kernels, values.row(head, i), 1.0f, room));
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
  row_ring<Real> keys_;
  row_ring<Real> values_;
  std::vector<buffer<unsigned char>> pages_;
  buffer<Real> bounds_;  // [head][page][bounds_row()]
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
