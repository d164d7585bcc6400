#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
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

// An encoding that does not say for which head_dim it is.
struct three_pairs : la::position_encoding {
  la::position_data data() const {
    static const std::uint64_t turns[3] = {};
    la::position_data data;
    data.rotation = {turns, 3, la::pair_layout::half_split, 1};
    return data;
  }
};

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

// More of them than kernels take together, on more keys than they take in one pass.
TEST(KvCache, AnyNumberOfHeadsSharesAKvHead) {
  const la::lambda_shape shape = la::lm_infinite(3, 150);
  for (const index_t group : {5, 20, 37}) {
    sequence<float> s(220, group, 1, 16, 16);
    la::kv_cache<la::f32, la::rope> cache(shape, la::rope(16), 1, 16, 16);
    feed(s, cache, 0, 160, 160);
    for (const auto& [first, step] : {std::pair<index_t, index_t>{160, 1}, {170, 2}, {180, 4}, {200, 5}})
      feed(s, cache, first, first == 160 ? 170 : first == 170 ? 180 : first == 180 ? 200 : 220, step);
    EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::rope(16))), 1e-11) << group << " heads";
  }
}

// Within one step the sinks of some queries are at their own slots, and those of others at the last one's distances.
TEST(KvCache, StepsMayStraddleTheLastSlot) {
  const la::lambda_shape shape = la::streaming_llm(3, 11);
  for (const index_t step : {2, 3, 4, 5}) {
    sequence<float> s(40, heads, kv_heads, dim, v_dim);
    auto cache = cache_of<la::f32>(shape);
    feed(s, cache, 0, 40, step);
    EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::rope(dim))), 1e-11) << "steps of " << step;
  }
}

TEST(KvCache, RewindTakesBackWhatItStillHasTheKeysFor) {
  la::kv_cache<la::f32, la::rope> cache(la::lm_infinite(3, 11), la::rope(dim), kv_heads, dim, v_dim, {4, 2});
  sequence<float> s(60, heads, kv_heads, dim, v_dim);
  const auto back = [&](index_t tokens) { return refusal([&] { cache.rewind(tokens); }); };
  const auto refused = [&](index_t most, index_t tokens) {
    EXPECT_EQ(cache.num_rewindable(), most);
    return "rewind: expected 0 <= tokens <= num_rewindable() = " + std::to_string(most) + ", got " +
           std::to_string(tokens);
  };
  EXPECT_EQ(back(0), "accepted");
  EXPECT_EQ(back(1), refused(0, 1));
  feed(s, cache, 0, 16, 4);  // the ring has 16 rows: nothing is lost
  EXPECT_EQ(back(17), refused(16, 17));
  EXPECT_EQ(back(16), "accepted");
  EXPECT_EQ(cache.num_tokens(), 0);
  feed(s, cache, 0, 40, 4);
  EXPECT_EQ(back(-1), refused(6, -1));
  EXPECT_EQ(back(7), refused(6, 7));
  EXPECT_EQ(back(la::unlimited), refused(6, la::unlimited));
  EXPECT_EQ(cache.num_tokens(), 40);
  EXPECT_EQ(back(4), "accepted");
  EXPECT_EQ(back(3), refused(2, 3));
  EXPECT_EQ(back(2), "accepted");
  EXPECT_EQ(back(1), refused(0, 1));
  EXPECT_EQ(cache.num_tokens(), 34);

  // As if the six had never come.
  const std::vector<float> right = s.out.elements;
  std::fill_n(s.out.elements.begin() + 34 * heads * v_dim, 6 * heads * v_dim, -1.0f);
  feed(s, cache, 34, 40, 4);
  for (std::size_t i = 0; i < right.size(); ++i) ASSERT_NEAR(s.out.elements[i], right[i], 1e-5) << i;
}

// Every way in which another cache can be another.
TEST(KvCache, LoadTakesInStreamsOfAnEqualCacheOnly) {
  using cache = la::kv_cache<la::f16, la::rope>;
  struct arguments {
    la::lambda_shape shape = {3, 11, 13};
    la::rope position = la::rope(dim);
    index_t kv_heads = ::kv_heads, head_dim = dim, v_head_dim = v_dim;
    la::kv_cache_options options = {8, 2, 5};
    cache made() const { return {shape, position, kv_heads, head_dim, v_head_dim, options}; }
  };
  sequence<float> s(20, heads, kv_heads, dim, v_dim);
  cache original = arguments().made();
  feed(s, original, 0, 20, 5);
  std::stringstream file;
  original.save(file);
  const auto loaded_by = [&](auto&& other) {
    std::stringstream copy(file.str());
    return refusal([&] { other.load(copy); });
  };
  const auto with = [&](auto change) {
    arguments a;
    change(a);
    return loaded_by(a.made());
  };
  const auto expected = [](const char* field, index_t own, index_t in_file) {
    return std::string("load: expected ") + field + " = " + std::to_string(own) + ", that of the cache, got " +
           std::to_string(in_file) + " in the file";
  };
  EXPECT_EQ(with([](arguments&) {}), "accepted");
  EXPECT_EQ(with([](arguments& a) { a.options.max_append = 9; }), "accepted");
  EXPECT_EQ(with([](arguments& a) { a.options.max_rewind = 3; }), "accepted");
  EXPECT_EQ(with([](arguments& a) { a.shape.num_sinks = 2; }), expected("num_sinks", 2, 3));
  EXPECT_EQ(with([](arguments& a) { a.shape.window = 10; }), expected("window", 10, 11));
  EXPECT_EQ(with([](arguments& a) { a.shape.distance_limit = 14; }), expected("distance_limit", 14, 13));
  EXPECT_EQ(with([](arguments& a) { a.shape.sinks_at = la::sink_distance::cache_slot; }), expected("sinks_at", 1, 0));
  EXPECT_EQ(with([](arguments& a) { a.kv_heads = 1; }), expected("num_kv_heads", 1, 2));
  EXPECT_EQ(with([](arguments& a) {
              a.head_dim = 32;
              a.position = la::rope(32);
            }),
            expected("head_dim", 32, 24));
  EXPECT_EQ(with([](arguments& a) { a.v_head_dim = 11; }), expected("v_head_dim", 11, 10));
  EXPECT_EQ(with([](arguments& a) { a.options.first_position = 6; }), expected("first_position", 6, 5));

  constexpr const char* other_encoding = "load: expected keys of the cache's position encoding, got those of another";
  EXPECT_EQ(with([](arguments& a) { a.position = la::rope(dim, 10000.01); }), other_encoding);
  EXPECT_EQ(with([](arguments& a) { a.position = la::rope(dim, 10000, {la::pair_layout::interleaved}); }),
            other_encoding);
  EXPECT_EQ(with([](arguments& a) {
              a.position = la::rope(dim, 10000, {la::pair_layout::half_split, dim - 2});
            }),
            other_encoding);
  EXPECT_EQ(with([](arguments& a) {
              a.position = la::rope(dim, 10000, {la::pair_layout::half_split, dim, 1.5});
            }),
            other_encoding);
  const auto cache_of_type = [](auto storage, auto position) {
    const arguments a;
    return la::kv_cache<decltype(storage), decltype(position)>(a.shape, position, kv_heads, dim, v_dim, a.options);
  };
  EXPECT_EQ(loaded_by(cache_of_type(la::f16{}, la::none{})), other_encoding);
  EXPECT_EQ(loaded_by(cache_of_type(la::f16{}, la::alibi(heads))), other_encoding);
  EXPECT_EQ(loaded_by(cache_of_type(la::bf16{}, la::rope(dim))), expected("row_format", 3, 2));
  EXPECT_EQ(loaded_by(cache_of_type(la::f64{}, la::rope(dim))), expected("row_format", 1, 2));
}

// What can be taken back after loading is what both caches can: the one that saved has 10 rows to spare.
TEST(KvCache, LoadedStreamsGoBackAsFarAsBothCachesCan) {
  const auto made = [](const la::kv_cache_options& rings) {
    return la::kv_cache<la::f32, la::rope>({3, 11, 5}, la::rope(dim), kv_heads, dim, v_dim, rings);
  };
  sequence<float> s(60, heads, kv_heads, dim, v_dim);
  auto original = made({8, 2});
  feed(s, original, 0, 60, 8);
  std::stringstream file;
  original.save(file);
  const auto loaded = [&](const la::kv_cache_options& rings) {
    auto cache = made(rings);
    file.seekg(0);
    cache.load(file);
    const index_t most = cache.num_rewindable();
    EXPECT_NE(refusal([&] { cache.rewind(most + 1); }), "accepted");
    EXPECT_EQ(refusal([&] { cache.rewind(most); }), "accepted");
    return most;
  };
  EXPECT_EQ(original.num_rewindable(), 10);
  EXPECT_EQ(loaded({20, 7}), 10);
  EXPECT_EQ(loaded({1, 2}), 3);
}

// A file that lacks an end, or one bit of which is another, and a stream that fails: refused, and nothing is changed.
TYPED_TEST(KvCacheOf, LoadRefusesWhatIsNotAsItWasWritten) {
  la::kv_cache<TypeParam, la::rope> original(la::lambda_shape{1, 3, 1}, la::rope(4), 1, 4, 2, {2, 1});
  la::kv_cache<TypeParam, la::rope> cache = original;
  sequence<float> s(12, 1, 1, 4, 2), other(12, 1, 1, 4, 2, 2);
  feed(s, original, 0, 9);
  feed(other, cache, 0, 6);
  std::stringstream whole;
  original.save(whole);
  const std::string bytes = whole.str();
  const auto loaded = [&](const std::string& text) {
    std::stringstream file(text);
    return refusal([&] { cache.load(file); });
  };
  const auto starts_with = [](const std::string& text, const char* start) { return text.rfind(start, 0) == 0; };

  for (std::size_t length = 0; length < bytes.size(); ++length) {
    const std::string message = loaded(bytes.substr(0, length));
    EXPECT_TRUE(starts_with(message, length < 152 ? "load: expected 152 bytes of a header, got " : "load: expected "));
    EXPECT_NE(message.find(": the stream ends, or failed"), std::string::npos) << message;
  }
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    EXPECT_TRUE(starts_with(loaded(flipped), bit < 8 * 8     ? "load: expected a saved kv_cache, got other bytes"
                                             : bit < 8 * 16  ? "load: expected version 1 of the format, got "
                                             : bit < 8 * 152 ? "load: expected a header as it was written"
                                                             : "load: expected rows as they were written"))
        << bit;
  }
  std::stringstream failed(bytes);
  failed.setstate(std::ios::badbit);
  EXPECT_TRUE(starts_with(refusal([&] { cache.load(failed); }), "load: expected 152 bytes of a header, got 0"));
  std::stringstream throwing(bytes.substr(0, 160));
  throwing.exceptions(std::ios::failbit);
  EXPECT_THROW(cache.load(throwing), std::ios::failure);

  std::stringstream full;
  full.setstate(std::ios::badbit);
  EXPECT_EQ(refusal([&] { original.save(full); }),
            "save: expected a stream that takes " + std::to_string(bytes.size()) + " bytes, got one that failed");

  // The cache has gone on with its own stream all the while.
  EXPECT_EQ(cache.num_tokens(), 6);
  auto alone = la::kv_cache<TypeParam, la::rope>(la::lambda_shape{1, 3, 1}, la::rope(4), 1, 4, 2, {2, 1});
  sequence<float> t = other;
  feed(other, cache, 6, 12);
  EXPECT_TRUE(same_bits(other.out.elements, (feed(t, alone, 0, 6), feed(t, alone, 6, 12))));
}

// Numbers behind the rows, where a cache has zeros: they go with the rows that a file brought.
TEST(KvCache, WhatAFileHasBehindItsRowsIsForgottenWithThem) {
  constexpr index_t head_dim = 5, bytes_of_row = 64;
  la::kv_cache<la::f32, la::none> cache(la::sliding_window(4), {}, 1, head_dim, head_dim);
  std::vector<float> row(head_dim, 1), out(head_dim);
  const auto view = [&](std::vector<float>& numbers) { return la::token_major(numbers.data(), 1, 1, head_dim); };
  const auto step = [&] { la::attend(view(row), view(row), view(row), cache, view(out)); };
  for (int t = 0; t < 4; ++t) step();
  std::stringstream written;
  cache.save(written);
  std::string bytes = written.str();
  la::detail::cache_file_header header;
  ASSERT_EQ(bytes.size(), sizeof header + 2 * 4 * bytes_of_row);
  std::memcpy(&header, bytes.data(), sizeof header);
  for (std::size_t r = sizeof header; r < bytes.size(); r += bytes_of_row)
    std::memset(&bytes[r + head_dim * sizeof(float)], 0xff, 11 * sizeof(float));
  la::detail::checksum sum;
  sum.add(bytes.data() + sizeof header, static_cast<index_t>(bytes.size() - sizeof header));
  header.sum_of_rows = sum.value();
  header.sum_of_header = header.computed_sum();
  std::memcpy(bytes.data(), &header, sizeof header);
  std::stringstream file(bytes);
  cache.load(file);
  cache.clear();
  step();
  EXPECT_EQ(out, row);
}

// Fields that no cache has written, under checksums that fit; rows of zeros follow.
TEST(KvCache, LoadRefusesHostileNumbers) {
  constexpr index_t most = index_t{1} << 62;
  la::kv_cache<la::f32, la::none> cache(la::lm_infinite(1, 3), {}, 1, 4, 2, {2, 0, 10});
  std::stringstream written;
  cache.save(written);
  la::detail::cache_file_header header;
  const auto loaded = [&](index_t num_tokens, index_t newest_held, std::size_t num_rows = 0) {
    std::string bytes = written.str() + std::string(64 * num_rows, '\0');
    la::detail::checksum sum;
    sum.add(bytes.data() + sizeof header, static_cast<index_t>(64 * num_rows));
    std::memcpy(&header, bytes.data(), sizeof header);
    header.num_tokens = static_cast<std::uint64_t>(num_tokens);
    header.newest_held = static_cast<std::uint64_t>(newest_held);
    header.sum_of_rows = sum.value();
    header.sum_of_header = header.computed_sum();
    std::memcpy(bytes.data(), &header, sizeof header);
    std::stringstream file(bytes);
    return refusal([&] { cache.load(file); });
  };
  const std::string tokens =
      "load: expected at most 4611686018427387904 tokens, and as many or fewer to take back, got ";
  EXPECT_EQ(loaded(0, 0), "accepted");
  EXPECT_EQ(loaded(INT64_MIN, 0), tokens + "-9223372036854775808 and 0");
  EXPECT_EQ(loaded(most + 1, 0), tokens + "4611686018427387905 and 0");
  EXPECT_EQ(loaded(3, 4), tokens + "3 and 4");
  for (const index_t held : {most, most - 1, index_t{0}})
    EXPECT_EQ(loaded(most, held), "load: expected 64 bytes of rows, got 0: the stream ends, or failed");
  EXPECT_EQ(cache.num_tokens(), 0);

  // Positions end before int64 does.
  la::kv_cache<la::f32, la::none> late(la::lm_infinite(1, 3), {}, 1, 4, 2, {2, 0, la::unlimited - 5});
  std::stringstream empty;
  late.save(empty);
  std::string bytes = empty.str();
  std::memcpy(&header, bytes.data(), sizeof header);
  header.num_tokens = 6;
  header.sum_of_header = header.computed_sum();
  std::memcpy(bytes.data(), &header, sizeof header);
  std::stringstream six_tokens(bytes);
  EXPECT_EQ(refusal([&] { late.load(six_tokens); }),
            "load: expected at most 5 tokens, and as many or fewer to take back, got 6 and 0");

  // The largest stream: a sink and two tokens of a window, each a key and a value, and as many as can be taken back.
  for (const index_t held : {0, 1, 2}) {
    ASSERT_EQ(loaded(most, held, static_cast<std::size_t>(2 * (1 + 2 + held))), "accepted");
    EXPECT_EQ(cache.num_tokens(), most);
    EXPECT_NE(refusal([&] { cache.rewind(held + 1); }), "accepted");
    EXPECT_EQ(refusal([&] { cache.rewind(held); }), "accepted");
  }
}

// The layers of a model, one after the other.
TEST(KvCache, SeveralCachesShareAFile) {
  std::stringstream file("before", std::ios::in | std::ios::out | std::ios::ate);
  sequence<float> s(40, heads, kv_heads, dim, v_dim), t(40, heads, kv_heads, dim, v_dim, 2);
  auto first = cache_of<la::f16>(la::lm_infinite(3, 11));
  auto second = cache_of<la::int8>(la::sliding_window(5));
  feed(s, first, 0, 33);
  feed(t, second, 0, 21);
  first.save(file);
  second.save(file);
  file << "after";
  auto loaded_first = cache_of<la::f16>(la::lm_infinite(3, 11));
  auto loaded_second = cache_of<la::int8>(la::sliding_window(5));
  file.ignore(6);
  loaded_first.load(file);
  loaded_second.load(file);
  std::string rest;
  file >> rest;
  EXPECT_EQ(rest, "after");
  sequence<float> s2 = s, t2 = t;
  EXPECT_TRUE(same_bits(feed(s, first, 33, 40), feed(s2, loaded_first, 33, 40)));
  EXPECT_TRUE(same_bits(feed(t, second, 21, 40), feed(t2, loaded_second, 21, 40)));
}

// What is saved is what queries to come may see, not the ring: a short stream is a short file.
TEST(KvCache, FilesGrowWithTheTokensSeenUpToTheRing) {
  la::kv_cache<la::f32, la::none> cache(la::lm_infinite(2, 11), {}, kv_heads, 16, 16, {4, 3});
  sequence<float> s(50, heads, kv_heads, 16, 16);
  for (index_t t = 0; t < 50; ++t) {
    std::stringstream file;
    cache.save(file);
    const index_t rows = std::min<index_t>(t, 2) + std::min<index_t>(std::max<index_t>(0, t - 2), 10 + 4 + 3);
    ASSERT_EQ(static_cast<index_t>(file.str().size()), 152 + rows * kv_heads * (16 + 16) * 4) << t;
    feed(s, cache, t, t + 1);
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
                                              {8, 2, 1000});
  EXPECT_EQ(cache.shape().num_sinks, 3);
  EXPECT_EQ(cache.shape().window, 11);
  EXPECT_EQ(cache.shape().distance_limit, 5);
  EXPECT_EQ(cache.position().num_pairs(), dim / 2);
  EXPECT_EQ(cache.num_kv_heads(), kv_heads);
  EXPECT_EQ(cache.head_dim(), dim);
  EXPECT_EQ(cache.v_head_dim(), v_dim);
  EXPECT_EQ(cache.max_append(), 8);
  EXPECT_EQ(cache.max_rewind(), 2);
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
  EXPECT_EQ((la::kv_cache<la::f32, la::rope>(la::sliding_window(100), la::rope(64), 2, 64, 32, {5, 3}).bytes()), base);
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
  EXPECT_EQ(refusal([] { la::kv_cache<la::f32, three_pairs>(la::lm_infinite(3, 11), three_pairs{}, 1, 5, 5); }),
            "kv_cache: expected at most head_dim / 2 = 2 pairs in the encoding's rotation, got 3");

  // Options.
  EXPECT_EQ(with([](arguments& a) { a.options.max_append = 0; }), "kv_cache: expected 1 <= max_append <= 2^40, got 0");
  EXPECT_EQ(with([](arguments& a) { a.options.max_append = most + 1; }),
            "kv_cache: expected 1 <= max_append <= 2^40, got 1099511627777");
  EXPECT_EQ(with([](arguments& a) { a.options.max_rewind = -1; }),
            "kv_cache: expected 0 <= max_rewind <= 2^40, got -1");
  EXPECT_EQ(with([](arguments& a) { a.options.max_rewind = most + 1; }),
            "kv_cache: expected 0 <= max_rewind <= 2^40, got 1099511627777");
  EXPECT_EQ(with([](arguments& a) { a.options.first_position = -1; }),
            "kv_cache: expected first_position >= 0, got -1");
  EXPECT_EQ(with([](arguments& a) { a.options.first_position = la::unlimited; }), "accepted");

  // Memory: 2^40 heads of 2^40 rows, whose product is no index; and 2^55 bytes and more, which no machine has.
  EXPECT_EQ(with([](arguments& a) {
              a.shape = la::sliding_window(most);
              a.kv_heads = most;
            }),
            "kv_cache: expected rows that fit in memory, got 1099511627776 heads of 1099511628287 rows of 128 bytes");
  EXPECT_EQ(with([](arguments& a) {
              a.shape = la::sliding_window(most);
              a.kv_heads = 512;
            }),
            "kv_cache: expected rows that fit in memory, got 512 heads of 1099511628287 rows of 128 bytes");
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
