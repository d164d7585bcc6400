#include <lambda_attention/lambda_shape.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "refusal.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::lambda_shape;
using la::unlimited;

namespace {

constexpr index_t num_tokens = 24;

// Every relation of sinks, window and limit to each other and to the tokens: zero, one, one off, equal, beyond, none.
std::vector<lambda_shape> shapes() {
  std::vector<lambda_shape> all;
  for (const index_t sinks : {index_t{0}, index_t{1}, index_t{3}, index_t{23}, index_t{24}, index_t{30}, unlimited})
    for (const index_t window : {index_t{0}, index_t{1}, index_t{2}, index_t{7}, index_t{24}, index_t{25}, unlimited})
      for (const index_t limit : {index_t{0}, index_t{1}, index_t{6}, index_t{7}, index_t{8}, index_t{40}, unlimited})
        all.push_back({sinks, window, limit});
  return all;
}

std::string name(const lambda_shape& shape) {
  return "sinks " + std::to_string(shape.num_sinks) + ", window " + std::to_string(shape.window) + ", limit " +
         std::to_string(shape.distance_limit);
}

}  // namespace

TEST(LambdaShape, VisibleAndDistanceAreTheFormula) {
  for (const lambda_shape& shape : shapes()) {
    SCOPED_TRACE(name(shape));
    for (index_t i = 0; i < num_tokens; ++i) {
      for (index_t j = 0; j < num_tokens; ++j) {
        const bool visible = j <= i && (j < shape.num_sinks || i - j < shape.window);
        ASSERT_EQ(shape.visible(i, j), visible) << i << ", " << j;
        if (!visible) continue;
        ASSERT_EQ(shape.distance(i, j), std::min(i - j, shape.distance_limit)) << i << ", " << j;
      }
    }
  }
}

TEST(LambdaShape, RangesHoldEveryVisibleKeyOnce) {
  for (const lambda_shape& shape : shapes()) {
    SCOPED_TRACE(name(shape));
    for (index_t i = 0; i < num_tokens; ++i) {
      const la::index_range sinks = shape.sink_keys(i), window = shape.window_keys(i);
      index_t visible = 0;
      for (index_t j = 0; j <= i; ++j) {
        const bool in_sinks = sinks.first <= j && j < sinks.last, in_window = window.first <= j && j < window.last;
        ASSERT_EQ(in_sinks, j < shape.num_sinks) << i << ", " << j;
        ASSERT_EQ(in_sinks + in_window, shape.visible(i, j)) << i << ", " << j;
        visible += shape.visible(i, j);
      }
      ASSERT_EQ(sinks.size() + window.size(), visible) << i;
    }
  }
}

TEST(LambdaShape, IndexRangeHasNoNegativeSize) {
  EXPECT_EQ((la::index_range{2, 5}.size()), 3);
  EXPECT_EQ((la::index_range{5, 5}.size()), 0);
  EXPECT_EQ((la::index_range{5, 2}.size()), 0);
}

TEST(LambdaShape, Factories) {
  const auto expect = [](const lambda_shape& shape, index_t sinks, index_t window, index_t limit,
                         la::sink_distance at) {
    EXPECT_EQ(shape.num_sinks, sinks);
    EXPECT_EQ(shape.window, window);
    EXPECT_EQ(shape.distance_limit, limit);
    EXPECT_EQ(shape.sinks_at, at);
  };
  expect(la::lm_infinite(10, 2048), 10, 2048, 2048, la::sink_distance::clamped);
  expect(la::streaming_llm(4, 1020), 4, 1020, unlimited, la::sink_distance::cache_slot);
  expect(la::sliding_window(512), 0, 512, unlimited, la::sink_distance::clamped);
  expect(la::full_causal(), 0, unlimited, unlimited, la::sink_distance::clamped);
}

TEST(LambdaShape, FullCausalSeesAllAtItsDistance) {
  for (index_t i = 0; i < num_tokens; ++i) {
    for (index_t j = 0; j <= i; ++j) {
      EXPECT_TRUE(la::full_causal().visible(i, j));
      EXPECT_EQ(la::full_causal().distance(i, j), i - j);
    }
  }
}

// StreamingLLM numbers the slots of its cache: sinks first, then the window. A sink's distance is that between slots.
TEST(LambdaShape, CacheSlotDistances) {
  const index_t sinks = 3, window = 5;
  const lambda_shape shape = la::streaming_llm(sinks, window);
  EXPECT_EQ(shape.last_slot(), 7);
  for (index_t i = 0; i < num_tokens; ++i) {
    std::vector<index_t> cache;  // the tokens that query i sees, in the order of their slots
    for (index_t j = 0; j <= i; ++j)
      if (j < sinks || j > i - window) cache.push_back(j);
    const index_t query_slot = static_cast<index_t>(cache.size()) - 1;
    for (index_t slot = 0; slot <= query_slot; ++slot) {
      const index_t j = cache[static_cast<std::size_t>(slot)];
      ASSERT_TRUE(shape.visible(i, j));
      ASSERT_EQ(shape.distance(i, j), query_slot - slot) << i << ", " << j;
    }
  }
}

TEST(LambdaShape, LastSlot) {
  EXPECT_EQ(la::streaming_llm(4, 1).last_slot(), 4);
  EXPECT_EQ(la::streaming_llm(4, 0).last_slot(), 3);
  EXPECT_EQ(la::streaming_llm(4, unlimited).last_slot(), unlimited);
}

// The drawing in the header's comment.
TEST(LambdaShape, IsDrawnAsItIs) {
  const lambda_shape shape = la::lm_infinite(2, 4);
  const char* const drawing[] = {"x", "xx", "xxx", "xxxx", "xxxxx", "xxxxxx", "xx xxxx", "xx  xxxx", "xx   xxxx"};
  for (index_t i = 0; i < 9; ++i) {
    std::string row;
    for (index_t j = 0; j <= i; ++j) row += shape.visible(i, j) ? 'x' : ' ';
    EXPECT_EQ(row, drawing[i]);
  }
  EXPECT_EQ(shape.distance(8, 0), 4);
  EXPECT_EQ(shape.distance(8, 1), 4);
  EXPECT_EQ(shape.distance(8, 5), 3);
}

TEST(LambdaShape, CanBeAConstant) {
  constexpr lambda_shape shape = la::lm_infinite(2, 4);
  static_assert(shape.visible(8, 5) && !shape.visible(8, 4));
  static_assert(shape.window_keys(8).first == 5 && shape.sink_keys(8).last == 2);
}

TEST(LambdaShape, Refusals) {
  const auto checked = [](const lambda_shape& shape) { return refusal([&] { la::detail::check_shape(shape, "f"); }); };
  for (const lambda_shape& shape : shapes()) EXPECT_EQ(checked(shape), "accepted") << name(shape);
  EXPECT_EQ(checked({-1, 4, 4}), "f: expected num_sinks >= 0, got -1");
  EXPECT_EQ(checked({0, -1, 4}), "f: expected window >= 0, got -1");
  EXPECT_EQ(checked({0, 4, -1}), "f: expected distance_limit >= 0, got -1");

  lambda_shape slots = la::streaming_llm(4, 10);
  slots.distance_limit = 13;
  EXPECT_EQ(checked(slots), "accepted");
  slots.distance_limit = 12;
  EXPECT_EQ(checked(slots),
            "f: expected distance_limit >= num_sinks + window - 1 = 13 for sinks at cache slots, got 12");
}
