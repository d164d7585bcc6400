// The plan on its own: its segments hold exactly the visible pairs, each once, and little beside.
#include <lambda_attention/detail/plan.hpp>

#include <support/cases.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;
using detail::key_bands;
using detail::key_kind;
using detail::key_segment;
using detail::plan_shape;
using detail::query_tile;

bool holds_sinks(const key_segment& s) { return s.kind == key_kind::sinks_far || s.kind == key_kind::sinks_near; }

// Whether a segment's keys are read at the one distance that all far keys have, and not at their own.
bool reads_far(const key_segment& s) { return s.kind == key_kind::sinks_far || s.kind == key_kind::window_far; }

// What a visible pair may be read as. At the limit itself both are right.
bool may_be_near(const plan_shape& plan, index_t query, index_t key) {
  return !plan.distance_matters || plan.shape.distance(query, key) == query - key;
}
bool may_be_far(const plan_shape& plan, index_t query, index_t key) {
  if (!plan.distance_matters) return false;
  const bool at_slot = plan.shape.sinks_at == sink_distance::cache_slot;
  if (at_slot && key >= plan.shape.num_sinks) return false;
  return plan.shape.distance(query, key) == (at_slot ? plan.shape.last_slot() - key : plan.shape.distance_limit);
}

template <class Visit>
void for_each_segment_of(const plan_shape& plan, const query_tile& tile, index_t unit, Visit&& visit) {
  const key_bands bands = plan.bands(tile.first, tile.first + tile.count);
  for (int b = 0; b < bands.count; ++b) {
    index_t next = bands.band[b].keys.first;
    detail::for_each_segment(bands.band[b], tile, unit, [&](const key_segment& s) {
      const bool is_cut = s.first_key == next && next != bands.band[b].keys.first;
      EXPECT_TRUE(!is_cut || next % unit == 0) << "a cut within a unit, at " << next;
      next = s.first_key + s.num_keys;
      visit(s);
    });
  }
}

// The keys of a segment that the query at a position of the tile sees.
index_range seen_by(const key_segment& s, index_t position, const query_tile& tile) {
  const index_t column = position / tile.lanes;
  if (column < s.first_column || column >= s.first_column + s.num_columns) return {0, 0};
  if (!s.masked) return {s.first_key, s.first_key + s.num_keys};
  return {s.first_key + std::max<index_t>(0, position - s.highest),
          s.first_key + std::min(s.num_keys, position - s.lowest + 1)};
}

// What a segment may be, whoever sees its keys.
bool is_sound(const key_segment& s, const plan_shape& plan, const query_tile& tile) {
  const index_t num_columns = (tile.count + tile.lanes - 1) / tile.lanes, end = s.first_key + s.num_keys;
  return s.num_keys > 0 && s.first_key >= 0 && end <= tile.first + tile.count && s.first_column >= 0 &&
         s.num_columns > 0 && s.first_column + s.num_columns <= num_columns &&
         (holds_sinks(s) ? end <= plan.shape.num_sinks : s.first_key >= plan.shape.num_sinks);
}

// Sets of keys below 64, a bit for each.
using key_set = std::uint64_t;
key_set set_of(index_range keys) { return keys.size() == 0 ? 0 : ~key_set{0} >> (64 - keys.size()) << keys.first; }

// For every query below `num_queries`: the keys it sees, and what they may be read as.
struct visible_keys {
  std::vector<key_set> all, near, far;

  visible_keys(const plan_shape& plan, index_t num_queries) {
    for (index_t i = 0; i < num_queries; ++i) {
      key_set sets[3] = {};
      for (index_t j = 0; j <= i; ++j) {
        if (!plan.shape.visible(i, j) || j < plan.part.first || j >= plan.part.last) continue;
        sets[0] |= key_set{1} << j;
        if (may_be_near(plan, i, j)) sets[1] |= key_set{1} << j;
        if (may_be_far(plan, i, j)) sets[2] |= key_set{1} << j;
      }
      all.push_back(sets[0]);
      near.push_back(sets[1]);
      far.push_back(sets[2]);
    }
  }
};

bool covers_visible_pairs_once(const plan_shape& plan, const query_tile& tile, index_t unit,
                               const visible_keys& visible) {
  key_set near[64] = {}, far[64] = {};
  bool right = true;
  for_each_segment_of(plan, tile, unit, [&](const key_segment& s) {
    right = right && is_sound(s, plan, tile);
    const index_t end = std::min(tile.count, (s.first_column + s.num_columns) * tile.lanes);
    for (index_t p = s.first_column * tile.lanes; right && p < end; ++p) {
      const key_set keys = set_of(seen_by(s, p, tile));
      right = ((near[p] | far[p]) & keys) == 0;
      (reads_far(s) ? far : near)[p] |= keys;
    }
  });
  for (index_t p = 0; p < tile.count; ++p) {
    const std::size_t query = static_cast<std::size_t>(tile.first + p);
    right = right && (near[p] | far[p]) == visible.all[query] && (near[p] & ~visible.near[query]) == 0 &&
            (far[p] & ~visible.far[query]) == 0;
  }
  return right;
}

std::string to_string(const query_tile& tile) {
  return "queries " + std::to_string(tile.first) + " + " + std::to_string(tile.count) + ", " +
         std::to_string(tile.lanes) + " lanes";
}

// All tiles that the queries below `num_queries` can be cut into. Returns their number.
long check_all_tiles(const plan_shape& plan, index_t lanes, index_t columns, index_t num_queries) {
  const visible_keys visible(plan, num_queries);
  long num_tiles = 0;
  for (index_t first = 0; first < num_queries; ++first) {
    for (index_t end = first + 1; end <= std::min(first + lanes * columns, num_queries); ++end) {
      if (plan.tile_end(first, end) != end) continue;
      const query_tile tile = {first, end - first, lanes};
      for (const index_t unit : {1, 2, 32}) {
        if (!covers_visible_pairs_once(plan, tile, unit, visible))
          ADD_FAILURE() << support::to_string(plan.shape) << "; " << to_string(tile) << ", unit " << unit;
      }
      ++num_tiles;
    }
  }
  return num_tiles;
}

TEST(plan, covers_the_visible_pairs_of_small_shapes_once) {
  constexpr index_t num_queries = 22;
  long num_tiles = 0;
  const auto check = [&](const lambda_shape& shape) {
    for (const bool distance_matters : {true, false})
      for (const auto& [lanes, columns] : {std::pair{2, 2}, {3, 4}, {4, 4}, {5, 1}})
        num_tiles += check_all_tiles({shape, distance_matters}, lanes, columns, num_queries);
  };
  for (index_t num_sinks : {0, 1, 2, 3, 5, 8, 21, 22, 30}) {
    for (index_t window : {0, 1, 2, 3, 4, 6, 9, 13, 21, 22, 30}) {
      for (index_t limit = 0; limit < num_queries + 2; ++limit) check({num_sinks, window, limit});
      check({num_sinks, window, unlimited});
      lambda_shape slots = streaming_llm(num_sinks, window);
      check(slots);
      for (const index_t above : {0, 1, 3}) {  // a limit that no distance between slots exceeds
        slots.distance_limit = slots.last_slot() + above;
        if (slots.distance_limit >= 0) check(slots);
      }
    }
  }
  check(full_causal());
  EXPECT_GE(num_tiles, 2000000);
}

// A tile is often as wide as its window or wider, and as 64 queries.
TEST(plan, covers_the_visible_pairs_of_wide_tiles_once) {
  long num_tiles = 0;
  for (index_t num_sinks : {0, 1, 4, 17}) {
    for (index_t window : {0, 1, 7, 15, 16, 17, 33, 63, 64}) {
      for (index_t limit :
           {index_t{0}, index_t{1}, index_t{6}, index_t{15}, index_t{16}, index_t{32}, index_t{62}, unlimited})
        num_tiles += check_all_tiles({{num_sinks, window, limit}, true}, 16, 4, 64);
      num_tiles += check_all_tiles({streaming_llm(num_sinks, window), true}, 16, 4, 64);
    }
  }
  EXPECT_GE(num_tiles, 500000);
}

// A part of the keys that begins and ends anywhere, or has none.
TEST(plan, covers_the_visible_pairs_of_a_part_once) {
  constexpr index_t num_queries = 22;
  long num_tiles = 0;
  for (const index_range& part : {index_range{0, 5}, {3, 9}, {7, 7}, {5, 6}, {10, 40}, {2, unlimited}, {30, 40}}) {
    for (const lambda_shape& shape : {full_causal(), lm_infinite(4, 6), {4, 6, 3}, {0, 13, 2}, streaming_llm(4, 6)})
      for (const auto& [lanes, columns] : {std::pair{2, 2}, {3, 4}, {5, 1}})
        num_tiles += check_all_tiles({shape, true, part}, lanes, columns, num_queries);
  }
  EXPECT_GE(num_tiles, 10000);
}

// Large numbers: the pairs at every edge.
TEST(plan, holds_at_large_numbers) {
  constexpr int seed = 10;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const auto large = [&] {
    const index_t number = index_t{1} << draw(random, 0, 61);
    return draw(random, 0, 9) == 0 ? unlimited : number + draw(random, -2, 2);
  };
  constexpr index_t units[] = {1, 2, 32};
  for (int round = 0; round < 100000; ++round) {
    plan_shape plan = {{std::max<index_t>(0, large()), std::max<index_t>(0, large()), std::max<index_t>(0, large())},
                       true};
    if (draw(random, 0, 3) == 0) plan.shape = streaming_llm(plan.shape.num_sinks, plan.shape.window);
    const lambda_shape& shape = plan.shape;
    const index_t first = draw(random, 0, index_t{1} << draw(random, 1, 61));
    const query_tile tile = {first, plan.tile_end(first, first + draw(random, 1, 64)) - first, 16};
    const index_t position = draw(random, 0, tile.count - 1), query = first + position;
    for (const index_t edge :
         {index_t{0}, shape.num_sinks, query, query - shape.window, query - shape.distance_limit}) {
      for (index_t key = std::max<index_t>(0, edge - std::min<index_t>(edge, 2)); key <= query && key - edge <= 2;
           ++key) {
        int near = 0, far = 0;
        for_each_segment_of(plan, tile, units[round % 3], [&](const key_segment& s) {
          const index_range keys = seen_by(s, position, tile);
          if (keys.first <= key && key < keys.last) ++(reads_far(s) ? far : near);
        });
        const bool right = near + far == (shape.visible(query, key) ? 1 : 0) &&
                           (near == 0 || may_be_near(plan, query, key)) && (far == 0 || may_be_far(plan, query, key));
        ASSERT_TRUE(right) << support::to_string(shape) << "; " << to_string(tile) << ", query " << query << ", key "
                           << key;
      }
    }
  }
}

// A constant whose arithmetic overflowed would not compile.
static_assert(plan_shape{full_causal(), true}.bands(5, 6).count == 1 &&
              plan_shape{{0, 8, 3}, true}.bands(9, 10).count == 2);

// Of a tile whose window is full, the stairs alone are masked: as many pairs as they have, at the diagonal and at the old edge.
TEST(plan, masks_no_more_than_the_stairs) {
  constexpr index_t lanes = 16, first = 4096;
  const plan_shape plan = {lm_infinite(16, 1024), true};
  for (const index_t columns : {1, 2, 4}) {
    index_t masked = 0;
    for_each_segment_of(plan, {first, columns * lanes, lanes}, 1, [&](const key_segment& s) {
      if (s.masked) masked += s.num_keys * s.num_columns * lanes;
    });
    EXPECT_LE(masked, lanes * lanes * columns * (columns + 1)) << columns << " columns";
  }
}

TEST(plan, pads_by_three_percent_at_most) {
  constexpr index_t lanes = 16, num_queries = 8192;
  for (const lambda_shape& shape : {lm_infinite(16, 1024), streaming_llm(16, 1024), sliding_window(1024)}) {
    for (const auto& [columns, unit] : {std::pair{1, 1}, {4, 1}, {1, 2}, {4, 2}}) {
      const plan_shape plan = {shape, true};
      index_t computed = 0, visible = 0;
      for (index_t first = 0; first < num_queries;) {
        const index_t end = plan.tile_end(first, std::min(first + lanes * columns, num_queries));
        for_each_segment_of(plan, {first, end - first, lanes}, unit,
                            [&](const key_segment& s) { computed += s.num_keys * s.num_columns * lanes; });
        for (; first < end; ++first) visible += shape.sink_keys(first).size() + shape.window_keys(first).size();
      }
      const double padding = static_cast<double>(computed) / static_cast<double>(visible) - 1;
      EXPECT_GE(padding, 0) << support::to_string(shape);
      EXPECT_LE(padding, 0.03) << support::to_string(shape) << "; " << columns << " columns";
    }
  }
}

}  // namespace
