#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

constexpr index_t heads = 4, kv_heads = 2, dim = 24, v_dim = 10, max_append = 8;

la::kv_cache_options options(index_t most = max_append, index_t first_position = 0) {
  la::kv_cache_options result;
  result.max_append = most;
  result.first_position = first_position;
  return result;
}

// One shape for each way in which a cache keeps rotated keys: see detail/cache_core.hpp.
const la::lambda_shape shapes[] = {
    la::lm_infinite(3, 11), {3, 11, 5}, la::streaming_llm(3, 11), la::sliding_window(11)};

template <class Storage>
la::kv_cache<Storage, la::rope> cache_of(const la::lambda_shape& shape) {
  return {shape, la::rope(dim), kv_heads, dim, v_dim, options()};
}

// The tokens [first, last) of a sequence through a cache, in steps of `step`; returns all outputs so far.
template <class Cache>
std::vector<float> feed(sequence<float>& s, Cache& cache, index_t first, index_t last, index_t step = 1) {
  for (; first < last; first += step) {
    const index_t count = std::min(step, last - first);
    la::attend(s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), cache,
               s.out.view().slice(first, count));
  }
  return s.out.elements;
}

}  // namespace

template <class Storage>
class KvCacheOf : public ::testing::Test {};
using storages = ::testing::Types<la::f32, la::f16, la::int8>;
TYPED_TEST_SUITE(KvCacheOf, storages);

TYPED_TEST(KvCacheOf, ACopyIsAFork) {
  for (const la::lambda_shape& shape : shapes) {
    auto original = cache_of<TypeParam>(shape);
    sequence<float> s(60, heads, kv_heads, dim, v_dim, 1), other(60, heads, kv_heads, dim, v_dim, 2);
    feed(s, original, 0, 25);

    auto fork = original;
    EXPECT_EQ(fork.num_tokens(), 25);
    EXPECT_EQ(fork.bytes(), original.bytes());
    sequence<float> t = s;
    feed(other, original, 0, 35, 5);  // enough for the ring to wrap: nothing of this may reach the fork
    const std::vector<float> forked = feed(t, fork, 25, 60);

    auto alone = cache_of<TypeParam>(shape);
    EXPECT_TRUE(same_bits(forked, feed(s, alone, 0, 60)));
    EXPECT_EQ(original.num_tokens(), 60);
  }
}

TYPED_TEST(KvCacheOf, AssignmentReplacesAStream) {
  auto a = cache_of<TypeParam>(la::lm_infinite(3, 11)), b = cache_of<TypeParam>(la::lm_infinite(3, 11));
  sequence<float> s(40, heads, kv_heads, dim, v_dim, 1), other(40, heads, kv_heads, dim, v_dim, 2);
  feed(s, a, 0, 20);
  feed(other, b, 0, 33);
  b = a;
  sequence<float> t = s;
  EXPECT_TRUE(same_bits(feed(s, a, 20, 40), feed(t, b, 20, 40)));
}

TYPED_TEST(KvCacheOf, ClearForgetsEverything) {
  for (const la::lambda_shape& shape : shapes) {
    auto cache = cache_of<TypeParam>(shape);
    const index_t bytes = cache.bytes();
    sequence<float> s(40, heads, kv_heads, dim, v_dim, 1), other(40, heads, kv_heads, dim, v_dim, 2);
    const std::vector<float> fresh = feed(s, cache, 0, 40, 3);
    feed(other, cache, 0, 40, 7);
    cache.clear();
    EXPECT_EQ(cache.num_tokens(), 0);
    EXPECT_EQ(cache.bytes(), bytes);
    EXPECT_TRUE(same_bits(feed(s, cache, 0, 40, 3), fresh));
  }
}

TYPED_TEST(KvCacheOf, AppendThenAttendIsAttend) {
  for (const la::lambda_shape& shape : shapes) {
    auto whole = cache_of<TypeParam>(shape), parts = cache_of<TypeParam>(shape);
    sequence<float> s(40, heads, kv_heads, dim, v_dim);
    for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 1}, {1, 8}, {9, 5}, {14, 1}, {15, 8}, {23, 8}}) {
      feed(s, whole, first, first + count, count);
      const std::vector<float> right = s.out.elements;
      std::fill(s.out.elements.begin() + first * heads * v_dim, s.out.elements.end(), -1.0f);
      la::append(s.k.view().slice(first, count), s.v.view().slice(first, count), parts);
      la::attend(s.q.view().slice(first, count), parts, s.out.view().slice(first, count));
      EXPECT_TRUE(std::equal(right.begin(), right.begin() + (first + count) * heads * v_dim, s.out.elements.begin()));
      EXPECT_EQ(parts.num_tokens(), first + count);
    }
  }
}

// Layers that share keys: several layers' queries, one layer's cache. Fewer queries than the newest step took in do.
TYPED_TEST(KvCacheOf, AttendingLeavesTheCacheAsItWas) {
  auto cache = cache_of<TypeParam>(la::lm_infinite(3, 11));
  sequence<float> s(30, heads, kv_heads, dim, v_dim), layer(30, heads, kv_heads, dim, v_dim, 7);
  feed(s, cache, 0, 22, 4);
  la::append(s.k.view().slice(22, 8), s.v.view().slice(22, 8), cache);
  la::attend(s.q.view().slice(22, 8), cache, s.out.view().slice(22, 8));
  const std::vector<float> first = s.out.elements;
  la::attend(layer.q.view().slice(22, 8), cache, layer.out.view().slice(22, 8));
  EXPECT_FALSE(same_bits(first, layer.out.elements));
  std::fill(s.out.elements.begin() + 22 * heads * v_dim, s.out.elements.end(), -1.0f);
  la::attend(s.q.view().slice(22, 8), cache, s.out.view().slice(22, 8));
  EXPECT_TRUE(same_bits(first, s.out.elements));
  EXPECT_EQ(cache.num_tokens(), 30);

  dense<float> last(1, heads, v_dim);
  la::attend(s.q.view().slice(29, 1), cache, last.view());
  for (std::size_t i = 0; i < last.elements.size(); ++i)
    EXPECT_NEAR(last.elements[i], first[29 * heads * v_dim + i], 1e-5);
}

// A shared prefix, without queries, and longer than max_append.
TYPED_TEST(KvCacheOf, AppendTakesInAnyNumberOfTokens) {
  for (const la::lambda_shape& shape : shapes) {
    auto at_once = cache_of<TypeParam>(shape), one_by_one = cache_of<TypeParam>(shape);
    sequence<float> s(60, heads, kv_heads, dim, v_dim), t = s;
    la::append(s.k.view().slice(0, 50), s.v.view().slice(0, 50), at_once);
    for (index_t i = 0; i < 50; ++i) la::append(s.k.view().slice(i, 1), s.v.view().slice(i, 1), one_by_one);
    EXPECT_EQ(at_once.num_tokens(), 50);
    EXPECT_TRUE(same_bits(feed(s, at_once, 50, 60), feed(t, one_by_one, 50, 60)));
  }
}

TYPED_TEST(KvCacheOf, FirstPositionMovesTheWholeStream) {
  for (const la::lambda_shape& shape : shapes) {
    auto at_zero = cache_of<TypeParam>(shape);
    la::kv_cache<TypeParam, la::rope> later(shape, la::rope(dim), kv_heads, dim, v_dim,
                                            options(max_append, (index_t{1} << 53) + 1));
    sequence<float> s(60, heads, kv_heads, dim, v_dim), t = s;
    const std::vector<float> right = feed(s, at_zero, 0, 60, 7), moved = feed(t, later, 0, 60, 7);
    // Rows are rounded at other angles: as far apart as the storage's rounding allows.
    for (std::size_t i = 0; i < right.size(); ++i) ASSERT_NEAR(moved[i], right[i], 0.05) << i;
    EXPECT_FALSE(same_bits(right, moved));
  }
}

TEST(KvCache, AppendOfNothingDoesNothing) {
  auto cache = cache_of<la::f32>(la::lm_infinite(3, 11));
  la::append(la::token_major<const float>(nullptr, 0, kv_heads, dim),
             la::token_major<const float>(nullptr, 0, kv_heads, v_dim), cache);
  EXPECT_EQ(cache.num_tokens(), 0);
}

TEST(KvCache, Getters) {
  const la::kv_cache<la::f16, la::rope> cache(la::lambda_shape{3, 11, 5}, la::rope(dim, 500000), kv_heads, dim, v_dim,
                                              options(8, 1000));
  EXPECT_EQ(cache.shape().num_sinks, 3);
  EXPECT_EQ(cache.shape().window, 11);
  EXPECT_EQ(cache.shape().distance_limit, 5);
  EXPECT_EQ(cache.position().num_pairs(), dim / 2);
  EXPECT_EQ(cache.num_kv_heads(), kv_heads);
  EXPECT_EQ(cache.head_dim(), dim);
  EXPECT_EQ(cache.v_head_dim(), v_dim);
  EXPECT_EQ(cache.max_append(), 8);
  EXPECT_EQ(cache.first_position(), 1000);
  EXPECT_EQ(cache.num_tokens(), 0);
  EXPECT_EQ((la::kv_cache<la::f32, la::none>(la::sliding_window(4), {}, 1, 1, 1).max_append()), 512);
  EXPECT_TRUE((std::is_same_v<la::kv_cache<la::int8, la::none>::storage_type, la::int8>));
}

TEST(KvCache, BytesAreThoseOfItsRings) {
  const auto bytes = [](const la::lambda_shape& shape, index_t most) {
    return la::kv_cache<la::f32, la::rope>(shape, la::rope(64), 2, 64, 32, options(most)).bytes();
  };
  const index_t key = 2 * 64 * 4, value = 2 * 32 * 4;  // one token's
  const index_t base = bytes(la::sliding_window(100), 8);
  EXPECT_EQ(bytes(la::sliding_window(101), 8) - base, key + value);
  EXPECT_EQ(bytes(la::sliding_window(100), 9) - base, key + value);
  EXPECT_EQ(bytes(la::lm_infinite(10, 100), 8) - base, 10 * (2 * key + value));  // sinks rotated, and as R(0)k
  EXPECT_EQ(bytes(la::streaming_llm(10, 100), 8) - base, 10 * (key + value));    // sinks rotated
  EXPECT_EQ(bytes({0, 100, 99}, 8) - base, 0);
  EXPECT_EQ(bytes({0, 100, 98}, 8) - base, (99 - 1 + 8) * key);  // a second ring, for distances up to 98
}

TEST(KvCache, BytesDoNotDependOnTokensSeen) {
  auto cache = cache_of<la::int8>(la::lm_infinite(3, 11));
  const index_t bytes = cache.bytes();
  sequence<float> s(200, heads, kv_heads, dim, v_dim);
  for (index_t i = 0; i < 200; ++i) {
    feed(s, cache, i, i + 1);
    ASSERT_EQ(cache.bytes(), bytes);
  }
}

TEST(KvCache, ConstructionRefusals) {
  constexpr index_t most = index_t{1} << 40;
  struct arguments {
    la::lambda_shape shape = la::lm_infinite(3, 11);
    index_t kv_heads = ::kv_heads, head_dim = dim, v_head_dim = v_dim;
    la::kv_cache_options options = {};
  };
  const auto made = [](const arguments& a) {
    return refusal([&] {
      la::kv_cache<la::f32, la::rope>(a.shape, la::rope(dim), a.kv_heads, a.head_dim, a.v_head_dim, a.options);
    });
  };
  const auto with = [&](auto change) {
    arguments a;
    change(a);
    return made(a);
  };
  EXPECT_EQ(made({}), "accepted");

  // The shape.
  EXPECT_EQ(
      made({la::full_causal()}),
      "kv_cache: expected a window of at most 2^40 tokens, got an unlimited one: full_causal() has no bounded cache");
  EXPECT_EQ(
      made({la::sliding_window(most + 1)}),
      "kv_cache: expected a window of at most 2^40 tokens, got 1099511627777: full_causal() has no bounded cache");
  EXPECT_EQ(made({la::lm_infinite(most + 1, 11)}), "kv_cache: expected at most 2^40 sinks, got 1099511627777");
  EXPECT_EQ(made({la::lm_infinite(-1, 11)}), "kv_cache: expected num_sinks >= 0, got -1");
  EXPECT_EQ(made({la::sliding_window(-1)}), "kv_cache: expected window >= 0, got -1");
  EXPECT_EQ(made({{3, 11, -1}}), "kv_cache: expected distance_limit >= 0, got -1");
  EXPECT_EQ(made({{3, 11, 12, la::sink_distance::cache_slot}}),
            "kv_cache: expected distance_limit >= num_sinks + window - 1 = 13 for sinks at cache slots, got 12");

  // Heads and dims.
  EXPECT_EQ(with([](arguments& a) { a.kv_heads = 0; }), "kv_cache: expected 1 <= num_kv_heads <= 2^40, got 0");
  EXPECT_EQ(with([](arguments& a) { a.kv_heads = most + 1; }),
            "kv_cache: expected 1 <= num_kv_heads <= 2^40, got 1099511627777");
  EXPECT_EQ(with([](arguments& a) { a.head_dim = 0; }), "kv_cache: expected 1 <= head_dim <= 512, got 0");
  EXPECT_EQ(with([](arguments& a) { a.head_dim = 513; }), "kv_cache: expected 1 <= head_dim <= 512, got 513");
  EXPECT_EQ(with([](arguments& a) { a.v_head_dim = 0; }), "kv_cache: expected 1 <= v_head_dim <= 512, got 0");
  EXPECT_EQ(with([](arguments& a) { a.v_head_dim = 513; }), "kv_cache: expected 1 <= v_head_dim <= 512, got 513");
  EXPECT_EQ(with([](arguments& a) { a.head_dim = 32; }),
            "kv_cache: expected head_dim = 24, that of the position encoding, got 32");

  // Options.
  EXPECT_EQ(with([](arguments& a) { a.options.max_append = 0; }), "kv_cache: expected 1 <= max_append <= 2^40, got 0");
  EXPECT_EQ(with([](arguments& a) { a.options.max_append = most + 1; }),
            "kv_cache: expected 1 <= max_append <= 2^40, got 1099511627777");
  EXPECT_EQ(with([](arguments& a) { a.options.first_position = -1; }),
            "kv_cache: expected first_position >= 0, got -1");
  EXPECT_EQ(with([](arguments& a) { a.options.first_position = la::unlimited; }), "accepted");

  // Memory: 2^40 heads of 2^40 rows, whose product is no index; and 2^55 bytes and more, which no machine has.
  EXPECT_EQ(
      with([](arguments& a) {
        a.shape = la::sliding_window(most);
        a.kv_heads = most;
      }),
      "kv_cache: expected a cache that fits in memory, got 1099511627776 heads of 1099511628287 rows of 128 bytes");
  EXPECT_EQ(with([](arguments& a) {
              a.shape = la::sliding_window(most);
              a.kv_heads = 512;
            }),
            "kv_cache: expected a cache that fits in memory, got 512 heads of 1099511628287 rows of 128 bytes");
}

TEST(KvCache, AcceptsWindowsAndSinksOfNothing) {
  for (const la::lambda_shape& shape :
       {la::lambda_shape{0, 0, 0}, la::lambda_shape{2, 0, 0}, la::lambda_shape{2, 1, 0}}) {
    auto cache = cache_of<la::f32>(shape);
    sequence<float> s(20, heads, kv_heads, dim, v_dim);
    std::fill(s.out.elements.begin(), s.out.elements.end(), -1.0f);
    feed(s, cache, 0, 20, 3);
    const std::vector<double> right = expected(s, shape, la::rope(dim));
    for (std::size_t i = 0; i < right.size(); ++i) ASSERT_NEAR(s.out.elements[i], right[i], 1e-5) << i;
  }
}
