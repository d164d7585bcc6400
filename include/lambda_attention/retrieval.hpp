// The tokens between the sinks and the window, kept, and the best of them brought back for each query: the paper's optional
// extension.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/middle_core.hpp>
#include <lambda_attention/detail/top_k.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/partial.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/storage.hpp>
#include <lambda_attention/tensor_view.hpp>
#include <lambda_attention/workspace.hpp>

#include <atomic>
#include <type_traits>
#include <utility>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Keys and values of all tokens of one stream in one layer, beside its kv_cache. Keys are kept as R(0)k, rows as `Storage`
/// writes them. Memory grows: a row of each for every token and KV head, and for every 64 tokens two rows of bounds;
/// in blocks as large as what there is, up to 4 MiB or 64 tokens each.
///
/// Of the shape num_sinks and window count: they say what is neither, the middle, for a query. Copying a store forks it;
/// an assignment that finds no memory leaves both sides as they were. Threads: append, rewind, clear and assignment want a store for
/// themselves; searches may run side by side.
/// Errors, at construction: an invalid shape, counts or dims below 1, dims above max_head_dim, an encoding for another head_dim,
/// a storage whose row_bytes() is not as its contract says.
template <class Storage, class Position>
class middle_store {
 public:
  using compute_type = typename detail::checked_storage<Storage>::compute_type;
  static_assert(std::is_base_of_v<position_encoding, Position>,
                "lambda_attention: a position encoding derives from position_encoding, see position.hpp");
  static_assert(std::is_nothrow_move_constructible_v<Position> && std::is_nothrow_move_assignable_v<Position>,
                "lambda_attention: a position encoding that a store keeps is moved with it: it must have a move "
                "constructor and a move assignment that are noexcept");

  middle_store(const lambda_shape& shape, Position position, index_t num_kv_heads, index_t head_dim, index_t v_head_dim)
      : position_(std::move(position)),
        core_(checked_geometry(shape, detail::limits_of(position_), num_kv_heads, head_dim, v_head_dim),
              detail::functions_of<Storage>()) {}

  // Where memory runs out in the middle of a copy, nothing is assigned. What was moved from can be assigned to, or destroyed.
  middle_store(const middle_store&) = default;
  middle_store(middle_store&&) noexcept = default;
  middle_store& operator=(const middle_store& other) { return *this = middle_store(other); }
  middle_store& operator=(middle_store&& other) noexcept {
    middle_store taken = std::move(other);
    position_ = std::move(taken.position_);
    core_ = std::move(taken.core_);
    return *this;
  }

  /// Tokens taken in.
  index_t num_tokens() const { return core_.num_tokens(); }
  /// All memory that the store holds, in bytes, but for tables of its position encoding.
  index_t bytes() const { return core_.bytes() + static_cast<index_t>(sizeof *this - sizeof core_); }
  /// Forgets all tokens; the memory stays.
  void clear() { core_.rewind(core_.num_tokens()); }
  /// Forgets the newest tokens, as the cache beside it does. Pages that they had begun may be read for nothing from then on, so
  /// that results equal those without them within rounding.
  void rewind(index_t tokens) {
    if (tokens < 0 || tokens > num_tokens())
      detail::refuse("rewind: expected 0 <= tokens <= %lld, those of the store, got %lld",
                     detail::printable(num_tokens()), detail::printable(tokens));
    core_.rewind(tokens);
  }

  const lambda_shape& shape() const { return core_.shape().shape; }
  const Position& position() const { return position_; }
  index_t num_kv_heads() const { return core_.shape().num_kv_heads; }
  index_t head_dim() const { return core_.shape().head_dim; }
  index_t v_head_dim() const { return core_.shape().v_head_dim; }
  /// For append() and attend_top_k().
  detail::middle_core<compute_type>& core() { return core_; }
  const detail::middle_core<compute_type>& core() const { return core_; }

 private:
  static typename detail::middle_core<compute_type>::geometry checked_geometry(const lambda_shape& shape,
                                                                               const detail::encoding_limits& encoding,
                                                                               index_t num_kv_heads, index_t head_dim,
                                                                               index_t v_head_dim) {
    detail::check_shape(shape, "middle_store");
    detail::check_rows_to_keep(encoding, num_kv_heads, head_dim, v_head_dim, "middle_store");
    return {shape, num_kv_heads, head_dim, v_head_dim};
  }

  Position position_;
  detail::middle_core<compute_type> core_;
};

/// Takes in new tokens: what append(k, v, cache) is given too. Errors: as for append(); a refused call, or one that finds no
/// memory, leaves the tokens as they were. Cost: O(n).
template <class K, class V, class Storage, class Position>
void append(const tensor_view<K>& k, const tensor_view<V>& v, middle_store<Storage, Position>& store,
            isa_level isa = isa_level::automatic) {
  using real = typename middle_store<Storage, Position>::compute_type;
  const auto& shape = store.core().shape();
  const detail::tensor keys = detail::erase(k), values = detail::erase(v);
  detail::check_isa(isa, "append");
  detail::check_keys(keys, values, "append");
  detail::check_equal(k.heads, shape.num_kv_heads, "append", "k.heads", "store.num_kv_heads");
  detail::check_equal(k.dim, shape.head_dim, "append", "k.dim", "store.head_dim");
  detail::check_equal(v.dim, shape.v_head_dim, "append", "v.dim", "store.v_head_dim");
  if (k.tokens > (index_t{1} << 40) - store.num_tokens())
    detail::refuse("append: expected a store of at most 2^40 tokens, got %lld and %lld more",
                   detail::printable(store.num_tokens()), detail::printable(k.tokens));
  store.core().reserve(store.num_tokens() + k.tokens);
  store.core().write(detail::kernels_for<real>(isa), store.position().data(), keys, values);
  store.core().commit(k.tokens);
}

/// Which keys of the middle a query sees: for each head the k with the highest logits, as if they were `distance` tokens away.
struct top_k {
  index_t k;
  index_t distance;
};

/// Attention of the newest q.tokens tokens of a store over the best keys of the middle:
///
///     logit(j) = cap(scale * score(q_i, k_j, distance)) + bias(head, distance),    num_sinks <= j <= i - window
///
/// and of these the k highest, for each head; of equal scores, as computed, the older. merge() it with
/// attend_partial(q, cache, {0, unlimited}, ...) for one softmax over sinks, window and these. q [n, heads, head_dim], before any rotation; result as for
/// attend_partial(); result.out may be q. A key with a NaN is never among the best, and a query with one has no best keys.
///
/// Exact, where scores do not overflow: keys are read in pages of 64, 16 pages whose bounds promise most first, then in order
/// all others but those that cannot hold a better key.
/// Returns how many pages were read, over all queries and KV heads: the first 16 by each head alone, a later one that more than one
/// needs by up to four heads of a group together, and once. A task of the executor is a token and such heads.
///
/// Errors: std::invalid_argument before anything is written, as for attend_partial(); k < 0, distance < 0, more queries than
/// the store has tokens.
/// Cost: the bounds, two rows of numbers for 64 keys; and the pages that are read: few where keys that are alike lie together, all
/// of them where they are random. Scratch for each worker: 16 bytes for each page and each of the k for as many heads
/// as read together, and 4 for each of the k.
/// Source: Han et al., LM-Infinite, section 3 (top-k tokens in the middle).
template <class Q, class Storage, class Position, class Out, class Lse, class Executor = serial_executor>
index_t attend_top_k(const tensor_view<Q>& q, const middle_store<Storage, Position>& store, const top_k& best,
                     const partial_result<Out, Lse>& result, const attention_options& options = {},
                     Executor&& executor = {}) {
  static_assert(!std::is_const_v<Out> && !std::is_const_v<Lse>,
                "lambda_attention: attend_top_k(): `result` must have views of elements that are not const");
  using real = typename middle_store<Storage, Position>::compute_type;
  const detail::tensor queries = detail::erase(q), out = detail::erase(result.out), lse = detail::erase(result.lse);
  const auto job = detail::checked_top_k_job<real>(queries, store.core(), detail::limits_of(store.position()), best.k,
                                                   best.distance, out, lse, options);
  const detail::kernel_table<real>& kernels = detail::kernels_for<real>(options.isa);
  workspace own;
  workspace& memory = options.workspace != nullptr ? *options.workspace : own;
  detail::scratch_arena counter(nullptr);
  const detail::top_k_scratch<real> unused(counter, job);
  static_cast<void>(unused);
  memory.reserve(counter.used() * detail::checked_workers(executor, "attend_top_k"));
  std::atomic<index_t> pages_read(0);
  const detail::top_k_task<real> task{kernels, job, reinterpret_cast<unsigned char*>(memory.data()), counter.used(),
                                      pages_read};
  if (const index_t num_tasks = task.num_tasks()) executor.run(num_tasks, task);
  return pages_read;
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
