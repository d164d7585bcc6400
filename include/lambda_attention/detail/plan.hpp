// The mask, all of it: (shape, tile of queries) -> a few segments of keys.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/lambda_shape.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Consecutive queries first, first + 1, ..., first + count - 1, laid out over `num_columns` vectors of `lanes` positions
// each; lanes past the last query are idle.
struct query_tile {
  index_t first;
  index_t count;
  index_t lanes;
};

// Where the rows of a segment's keys and the score's distance come from.
enum class key_kind {
  sinks_near,   // sinks within the limit: rotated rows, true distance
  sinks_far,    // sinks beyond it: R(0)k rows and the query R(limit)q; at cache slots: rotated rows, R(last_slot)q
  window_far,   // keys of the window beyond the limit
  window_near,  // keys of the window within the limit
};
inline constexpr int num_key_kinds = 4;

// Keys first_key ... first_key + num_keys - 1 against the columns [first_column, first_column + num_columns) of a tile. In a
// masked segment the query at position p of the tile sees key first_key + k iff lowest + k <= p <= highest + k; in an
// unmasked one every query of those columns sees every key.
//
//                 keys →
//        column 0  ▓░░░░░░░░░░░▓                     ░ unmasked: one segment, the body
//        column 1   ▓░░░░░░░░░░░▓                    ▓ masked: the stairs at the old edge of the window and at the
//        column 2    ▓░░░░░░░░░░░▓                     diagonal, one segment a stair, each on the columns it touches
//        column 3     ▓░░░░░░░░░░░▓
struct key_segment {
  key_kind kind;
  index_t first_key;
  index_t num_keys;
  int first_column;
  int num_columns;
  bool masked;
  index_t lowest;
  index_t highest;
};

constexpr bool is_sink(key_kind kind) { return kind == key_kind::sinks_near || kind == key_kind::sinks_far; }
constexpr bool is_far(key_kind kind) { return kind == key_kind::sinks_far || kind == key_kind::window_far; }

// Keys of one kind that a tile may see: an index range, of which query i sees the keys at distances [nearest, farthest].
struct key_band {
  key_kind kind;
  index_range keys;
  index_t nearest;
  index_t farthest;
};

struct key_bands {
  key_band band[num_key_kinds] = {};
  int count = 0;

  constexpr bool any_far() const {
    for (int b = 0; b < count; ++b)
      if (is_far(band[b].kind)) return true;
    return false;
  }
};

constexpr index_range common(index_range a, index_range b) { return {max(a.first, b.first), min(a.last, b.last)}; }

// The shape as the kernels see it. An encoding that takes no notice of distances needs no limit.
struct plan_shape {
  lambda_shape shape;
  bool distance_matters;
  index_range part = {0, unlimited};  // keys outside are not seen

  constexpr index_t limit() const { return distance_matters ? shape.distance_limit : unlimited; }
  constexpr bool slots() const { return distance_matters && shape.sinks_at == sink_distance::cache_slot; }

  // The keys of one kind that the queries [first, last) may see, and at what distances. At cache slots it is the query
  // that makes a sink near or far.
  constexpr key_band band(key_kind kind, index_t first, index_t last) const {
    const bool split = !(is_sink(kind) && slots()) && limit() < unlimited;
    const index_t nearest = is_far(kind) && split ? limit() + 1 : 0;
    const index_t reach = is_sink(kind) ? unlimited : shape.window - 1;
    const index_t farthest = is_far(kind) || !split ? reach : min(limit(), reach);
    const bool exists = is_far(kind) ? split || (is_sink(kind) && slots()) : true;
    index_range keys = is_sink(kind) ? shape.sink_keys(last - 1) : index_range{shape.num_sinks, last};
    if (!exists || nearest > farthest || last <= nearest) return {kind, {0, 0}, 0, -1};
    keys.first = max(keys.first, first > farthest ? first - farthest : 0);
    keys.last = min(keys.last, last - nearest);
    return {kind, common(keys, part), nearest, farthest};
  }

  // Past the last slot the sinks of a query are all at cache-slot distance, up to it none is: no tile may straddle it.
  constexpr index_t tile_end(index_t first, index_t wanted_end) const {
    const bool straddles = slots() && first <= shape.last_slot() && shape.last_slot() < wanted_end - 1;
    return straddles ? shape.last_slot() + 1 : wanted_end;
  }

  // The bands of the tile [first, last), not empty. Together they hold every visible pair of the part once.
  constexpr key_bands bands(index_t first, index_t last) const {
    key_bands result = {};
    for (int k = 0; k < num_key_kinds; ++k) {
      const key_kind kind = static_cast<key_kind>(k);
      const bool sinks_are_far = first > shape.last_slot();
      if (slots() && is_sink(kind) && is_far(kind) != sinks_are_far) continue;
      const key_band candidate = band(kind, first, last);
      if (candidate.keys.size() > 0) result.band[result.count++] = candidate;
    }
    return result;
  }
};

// Sinks and keys of the window that the queries [first, last) see, at any distance: those whose values they need.
inline index_range sinks_seen(const plan_shape& plan, index_t last) {
  return common(plan.shape.sink_keys(last - 1), plan.part);
}
inline index_range window_seen(const plan_shape& plan, index_t first, index_t last) {
  if (plan.shape.window == 0) return {0, 0};
  return common({plan.shape.window_keys(first).first, last}, plan.part);
}

// Cuts a band into segments, in ascending order of keys, and hands each to `visit(const key_segment&)`.
//
// Going from one key to the next, the queries that see it move on by one. A new segment begins where the first or the last
// of them enters another column, or the tile: a stair is `lanes` keys, the last or the first of which a whole column sees.
// Within a band, cuts lie at multiples of `unit` keys: more than one where keys are taken in pairs or larger steps.
template <class Visit>
constexpr void for_each_segment(const key_band& band, const query_tile& tile, index_t unit, Visit&& visit) {
  const index_t last_query = tile.first + tile.count - 1;
  const index_t nearest = band.nearest;
  const index_t farthest = min(band.farthest, last_query);  // no key is farther; keeps the sums below from overflowing
  index_t key = max(band.keys.first, max(0, tile.first - farthest));
  const index_t end = min(band.keys.last, last_query - nearest + 1);
  while (key < end) {
    // The first and the last position in the tile that sees this key, and the last that sees a key of its unit.
    const index_t unit_end = min(end, round_down(key, unit) + unit);
    const index_t low = key + nearest - tile.first;
    const index_t high = key + farthest - tile.first;
    const index_t high_of_unit = unit_end - 1 + farthest - tile.first;
    const index_t first_column = max(low, 0) / tile.lanes;
    const index_t last_column = min(high_of_unit, tile.count - 1) / tile.lanes;
    const index_t column_start = first_column * tile.lanes;
    const index_t column_end = min(tile.count, (last_column + 1) * tile.lanes);
    // The first key that the tile's first query does not see any more, or else the first that the first column does not.
    const index_t body_end = round_down(tile.first - nearest, unit);
    index_t next = key < body_end ? body_end : round_up(column_start + tile.lanes - nearest + tile.first, unit);
    // The first key that another column sees, or the whole tile.
    if (high_of_unit < tile.count)
      next = min(next, max(unit_end, round_down(column_end - farthest + tile.first, unit)));
    const index_t num_keys = min(next, end) - key;
    const bool enters_late = low + num_keys - 1 > column_start;
    const bool leaves_early = high < column_end - 1;
    visit(key_segment{band.kind, key, num_keys, static_cast<int>(first_column),
                      static_cast<int>(last_column - first_column + 1), enters_late || leaves_early, low, high});
    key += num_keys;
  }
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
