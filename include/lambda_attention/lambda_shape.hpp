// Which keys a query sees, and how far away it takes them to be.
#pragma once

#include <lambda_attention/config.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Key indices first, first + 1, ..., last - 1.
struct index_range {
  index_t first;
  index_t last;
  constexpr index_t size() const { return last > first ? last - first : 0; }
};

/// How far away a sink is for a query whose window has left it behind.
enum class sink_distance {
  clamped,     ///< min(distance, distance_limit), as for every other key: LM-Infinite
  cache_slot,  ///< the distance between slots of a cache that holds the sinks and one window: StreamingLLM
};

/// The Λ: a query with index i sees the sinks, the keys j < num_sinks, and its window, the keys j with i - j < window,
/// itself included; never a key after itself. Distances above distance_limit count as distance_limit.
///
///        key j →   0   4         12
///     query i  0   █               num_sinks = 2
///          ↓   1   ██              window    = 4
///              2   ███
///              3   ████
///              4   █████           LM-Infinite: distance_limit = 4,
///              5   ██████          so the query 8 sees the sinks
///              6   ██ ████         0 and 1 at distance 4, not 8 and 7
///              7   ██  ████
///              8   ██   ████
///
/// All three numbers are >= 0; `unlimited` stands for no bound. With sinks_at == cache_slot a sink j is at distance
/// min(i, num_sinks + window - 1) - j, and distance_limit must not be below num_sinks + window - 1.
/// Indices of queries and keys are from 0 to `unlimited` - 1.
/// Source: Han et al., LM-Infinite, section 3 (n_global = num_sinks, n_local = window, L_pretrain = distance_limit).
struct lambda_shape {
  index_t num_sinks = 0;
  index_t window = unlimited;
  index_t distance_limit = unlimited;
  sink_distance sinks_at = sink_distance::clamped;

  /// The sinks that the query sees.
  constexpr index_range sink_keys(index_t query) const { return {0, detail::min(num_sinks, query + 1)}; }

  /// The keys of the window that are not sinks.
  constexpr index_range window_keys(index_t query) const {
    const index_t oldest = query >= window ? query - window + 1 : 0;
    return {detail::max(num_sinks, oldest), query + 1};
  }

  constexpr bool visible(index_t query, index_t key) const {
    return key <= query && (key < num_sinks || query - key < window);
  }

  /// The distance that the encoding is told, of a key that is visible.
  constexpr index_t distance(index_t query, index_t key) const {
    const bool at_slot = sinks_at == sink_distance::cache_slot && key < num_sinks;
    const index_t distance = at_slot ? detail::min(query, last_slot()) - key : query - key;
    return detail::min(distance, distance_limit);
  }

  /// The slot that the newest token has in a full cache of sinks and one window.
  constexpr index_t last_slot() const {
    return window == 0 ? num_sinks - 1 : detail::saturating_add(num_sinks, window - 1);
  }
};

/// LM-Infinite: sinks and a window, no distance above the window. Within the first `window` tokens it is full attention.
constexpr lambda_shape lm_infinite(index_t num_sinks, index_t window) { return {num_sinks, window, window}; }

/// StreamingLLM: sinks and a window, sinks at the distance that they have between the slots of the cache.
constexpr lambda_shape streaming_llm(index_t num_sinks, index_t window) {
  return {num_sinks, window, unlimited, sink_distance::cache_slot};
}

/// A plain sliding window: no sinks, true distances.
constexpr lambda_shape sliding_window(index_t window) { return {0, window, unlimited}; }

/// Every earlier key, at its true distance.
constexpr lambda_shape full_causal() { return {}; }

namespace detail {
inline void check_shape(const lambda_shape& shape, const char* where) {
  if (shape.num_sinks < 0) refuse("%s: expected num_sinks >= 0, got %lld", where, printable(shape.num_sinks));
  if (shape.window < 0) refuse("%s: expected window >= 0, got %lld", where, printable(shape.window));
  if (shape.distance_limit < 0)
    refuse("%s: expected distance_limit >= 0, got %lld", where, printable(shape.distance_limit));
  if (shape.sinks_at == sink_distance::cache_slot && shape.distance_limit < shape.last_slot())
    refuse("%s: expected distance_limit >= num_sinks + window - 1 = %lld for sinks at cache slots, got %lld", where,
           printable(shape.last_slot()), printable(shape.distance_limit));
}
}  // namespace detail

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
