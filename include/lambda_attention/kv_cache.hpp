// The keys and values of one stream in one layer, in memory that does not grow.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/detail/cache_file.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>

#include <cstdint>
#include <iosfwd>
#include <type_traits>
#include <utility>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

struct kv_cache_options {
  index_t max_append = 512;    ///< tokens that one step takes in; a longer call is cut into steps of this many
  index_t max_rewind = 0;      ///< tokens that rewind() can always take back of the newest that ever came to this cache
  index_t first_position = 0;  ///< position of the token with index 0
};

namespace detail {
template <class Real>
typename cache_core<Real>::geometry checked_geometry(const lambda_shape& shape, const encoding_limits& encoding,
                                                     index_t num_kv_heads, index_t head_dim, index_t v_head_dim,
                                                     const kv_cache_options& options) {
  constexpr index_t most = index_t{1} << 40;
  check_shape(shape, "kv_cache");
  if (shape.window == unlimited)
    refuse(
        "kv_cache: expected a window of at most 2^40 tokens, got an unlimited one: full_causal() has no bounded cache");
  if (shape.window > most)
    refuse("kv_cache: expected a window of at most 2^40 tokens, got %lld: full_causal() has no bounded cache",
           printable(shape.window));
  if (shape.num_sinks > most) refuse("kv_cache: expected at most 2^40 sinks, got %lld", printable(shape.num_sinks));
  check_rows_to_keep(encoding, num_kv_heads, head_dim, v_head_dim, "kv_cache");
  if (options.max_append < 1 || options.max_append > most)
    refuse("kv_cache: expected 1 <= max_append <= 2^40, got %lld", printable(options.max_append));
  if (options.max_rewind < 0 || options.max_rewind > most)
    refuse("kv_cache: expected 0 <= max_rewind <= 2^40, got %lld", printable(options.max_rewind));
  if (options.first_position < 0)
    refuse("kv_cache: expected first_position >= 0, got %lld", printable(options.first_position));
  const position_data& data = encoding.data;
  return {{shape, data.rotates() || data.has_bias()},
          data.rotates(),
          num_kv_heads,
          head_dim,
          v_head_dim,
          options.max_append,
          options.max_rewind,
          options.first_position};
}
}  // namespace detail

/// Sinks, and a ring of the newest keys and values: window - 1 + max_append + max_rewind rows a head (two rings of keys where
/// distance_limit < window - 1). A key is rotated once, when it arrives. Rows are kept as `Storage` writes them, sinks in
/// float (double for f64) whatever the storage: they are few, they carry most of the weight, and they are read for ever.
///
/// Copying a cache forks the stream; an assignment that finds no memory leaves both sides as they were. Two caches are
/// independent of each other. Threads: calls that change a cache (append, attend with k and v, rewind, clear, load, assignment) want it for
/// themselves; those that take it as const may run side by side.
///
/// Errors, at construction: a shape without a bounded window or number of sinks (full_causal() has no bounded cache),
/// counts or dims below 1, dims above max_head_dim, an encoding made for another head_dim, a storage whose
/// row_bytes() is not as its contract says.
/// Law: attention over the stream is that over the whole sequence, whatever the chunks; bytes() does not depend on the
/// tokens seen.
template <class Storage, class Position>
class kv_cache {
 public:
  using storage_type = Storage;
  using compute_type = typename detail::checked_storage<Storage>::compute_type;
  static_assert(std::is_base_of_v<position_encoding, Position>,
                "lambda_attention: a position encoding derives from position_encoding, see position.hpp");
  static_assert(std::is_nothrow_move_constructible_v<Position> && std::is_nothrow_move_assignable_v<Position>,
                "lambda_attention: a position encoding that a cache keeps is moved with it: it must have a move "
                "constructor and a move assignment that are noexcept");

  kv_cache(const lambda_shape& shape, Position position, index_t num_kv_heads, index_t head_dim, index_t v_head_dim,
           const kv_cache_options& options = {})
      : shape_(shape),
        position_(std::move(position)),
        core_(detail::checked_geometry<compute_type>(shape, detail::limits_of(position_), num_kv_heads, head_dim,
                                                     v_head_dim, options),
              detail::functions_of<Storage>(), detail::functions_of<sink_storage>()) {}

  // Where memory runs out in the middle of a copy, nothing is assigned. What was moved from can be assigned to, or destroyed.
  kv_cache(const kv_cache&) = default;
  kv_cache(kv_cache&&) noexcept = default;
  kv_cache& operator=(const kv_cache& other) { return *this = kv_cache(other); }
  kv_cache& operator=(kv_cache&&) noexcept = default;

  /// Tokens seen so far.
  index_t num_tokens() const { return core_.num_tokens(); }

  /// All memory that the cache holds, in bytes, but for tables of its position encoding.
  index_t bytes() const { return core_.bytes() + static_cast<index_t>(sizeof *this - sizeof core_); }

  /// Forgets all tokens; the memory stays.
  void clear() { core_.clear(); }

  /// Forgets the newest tokens: rejected ones of a draft, say. The stream goes on as if they had never come.
  /// Errors: std::invalid_argument, and nothing is changed, where a key is gone that the next query would see, or would be if
  /// sinks took a place in the rings: more than num_rewindable() tokens.
  /// Cost: none.
  void rewind(index_t tokens) {
    if (tokens < 0 || tokens > num_rewindable())
      detail::refuse("rewind: expected 0 <= tokens <= num_rewindable() = %lld, got %lld",
                     detail::printable(num_rewindable()), detail::printable(tokens));
    core_.rewind(tokens);
  }

  /// How many tokens rewind() can take back now: all, until a ring has overwritten a row; then max_append + max_rewind, less
  /// those that were taken back, or written by a step that failed, and are not replaced yet. After load() no more than the
  /// cache that was saved could.
  index_t num_rewindable() const { return core_.newest_held(); }

  /// Writes the stream to `out`: a header, and the rows that the cache holds; see detail/cache_file.hpp. Several caches may
  /// follow one another. Include <ostream>, or <fstream>, to call this.
  /// Errors: std::invalid_argument where the stream fails, or what the stream throws, if its exceptions() are on. It is
  /// flushed, so that a disk that is full shows here; what was written until then is no file to load.
  void save(std::ostream& out) const { detail::save_cache(core_, position_fingerprint(), out); }

  /// Replaces this stream by a saved one, and reads no byte past it. The cache that was saved had the same shape, storage,
  /// encoding, heads, dims and first_position; max_append and max_rewind may differ. What can be taken back, see
  /// num_rewindable(), is what both caches can. Of an encoding that is a row function, or a storage that is custom, nothing is
  /// compared but what can be seen of it.
  ///
  /// Errors: std::invalid_argument on whatever is not such a file, whole and undamaged, or what the stream throws, if its
  /// exceptions() are on; the cache is then as it was. Checksums tell of accidents, not of somebody who computes them anew: rows
  /// are then other numbers, and nothing worse.
  /// Law: the stream that was saved; bit for bit where max_append and max_rewind are the same, else within rounding.
  /// Cost: memory for a second cache while it runs. Include <istream>, or <fstream>, to call this.
  void load(std::istream& in) { detail::load_cache(core_, position_fingerprint(), in); }

  const lambda_shape& shape() const { return shape_; }
  const Position& position() const { return position_; }
  index_t num_kv_heads() const { return core_.shape().num_kv_heads; }
  index_t head_dim() const { return core_.shape().head_dim; }
  index_t v_head_dim() const { return core_.shape().v_head_dim; }
  index_t max_append() const { return core_.shape().max_append; }
  index_t max_rewind() const { return core_.shape().max_rewind; }
  index_t first_position() const { return core_.shape().first_position; }

  /// For attend() and append().
  detail::cache_core<compute_type>& core() { return core_; }
  const detail::cache_core<compute_type>& core() const { return core_; }

 private:
  using sink_storage = std::conditional_t<std::is_same_v<compute_type, double>, f64, f32>;

  std::uint64_t position_fingerprint() const { return detail::fingerprint(position_.data(), position_.num_heads()); }

  lambda_shape shape_;
  Position position_;
  detail::cache_core<compute_type> core_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
