#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::key_kind;
using core = la::detail::cache_core<float>;

namespace {

constexpr index_t dim = 8, v_dim = 4, max_append = 5, max_rewind = 0;

core made(const la::lambda_shape& shape, bool rotates) {
  return {{{shape, rotates}, rotates, 1, dim, v_dim, max_append, max_rewind, 0},
          la::detail::functions_of<la::f32>(),
          la::detail::functions_of<la::f32>()};
}

index_t rows_held(const core& cache, key_kind kind) { return cache.rows().keys[static_cast<int>(kind)].capacity; }

const auto& kernels = la::detail::kernels_for<float>(la::isa_level::automatic);

// Token t has the key (t, t, ...) and the value (-t, -t, ...).
void write(core& cache, index_t count, const la::position_data& encoding) {
  std::vector<float> k, v;
  for (index_t t = cache.num_tokens(); t < cache.num_tokens() + count; ++t) {
    k.insert(k.end(), dim, static_cast<float>(t));
    v.insert(v.end(), v_dim, -static_cast<float>(t));
  }
  cache.write(kernels, encoding, la::detail::erase(la::token_major(k.data(), count, 1, dim)),
              la::detail::erase(la::token_major(v.data(), count, 1, v_dim)));
}
void append(core& cache, index_t count, const la::position_data& encoding = la::none().data()) {
  write(cache, count, encoding);
  cache.commit(count);
}

std::vector<float> row_of(const la::detail::row_store<float>& store, index_t head, index_t token) {
  std::vector<float> row(static_cast<std::size_t>(store.dim));
  const float* const scale = store.scale(head, token);
  store.read(kernels, store.row(head, token), scale == nullptr ? 1 : *scale, row.data());
  return row;
}
float key(const core& cache, key_kind kind, index_t token) {
  return row_of(cache.rows().keys[static_cast<int>(kind)], 0, token)[0];
}
float value(const core& cache, index_t token) { return row_of(cache.rows().window_values, 0, token)[0]; }

}  // namespace

TEST(RowRing, KeepsTheNewestRowsOfEachHead) {
  const la::detail::row_ring<float> ring(la::detail::functions_of<la::int8>(), 2, 4, 3, 64, "kv_cache");
  EXPECT_EQ(ring.end_byte(), 64 + 4 * 16 + 64);  // rows of 16 bytes, and a cache line for their scales
  std::vector<float> memory(2 * 192 / sizeof(float), -1);
  unsigned char* const blocks = reinterpret_cast<unsigned char*>(memory.data());
  for (index_t token = 0; token < 11; ++token) {
    for (index_t head = 0; head < 2; ++head) {
      const float number = static_cast<float>(100 * head + token + 1);
      const float row[] = {number, -number, 0};
      ring.write(kernels, blocks + head * 192, token, row);
    }
  }
  for (index_t token = 7; token < 11; ++token) {
    for (index_t head = 0; head < 2; ++head) {
      const std::vector<float> row = row_of(ring.store(blocks, 192), head, token);
      EXPECT_FLOAT_EQ(row[0], static_cast<float>(100 * head + token + 1));
      EXPECT_FLOAT_EQ(row[1], -row[0]);
      EXPECT_EQ(row[2], 0);
    }
  }
  for (const std::size_t block : {0U, 192U}) {  // in its own part of a block it stays
    EXPECT_EQ(memory[block / sizeof(float)], -1);
    EXPECT_EQ(memory[(block + 64 + 4 * 16 + 4 * sizeof(float)) / sizeof(float)], -1);
  }
}

// The table of the design: what is kept depends on what queries can ask for.
TEST(CacheCore, KeepsWhatQueriesCanAskFor) {
  const core plain = made(la::lambda_shape{3, 20, 6}, false);
  EXPECT_EQ(rows_held(plain, key_kind::window_near), 19 + max_append);
  EXPECT_EQ(plain.rows().keys[0].data, plain.rows().keys[1].data);  // one copy of the sinks
  EXPECT_EQ(plain.rows().keys[2].data, plain.rows().keys[3].data);  // one ring

  const core rotated = made(la::lm_infinite(3, 20), true);
  EXPECT_EQ(rows_held(rotated, key_kind::window_near), 19 + max_append);
  EXPECT_NE(rotated.rows().keys[0].data, rotated.rows().keys[1].data);  // sinks rotated, and as R(0)k
  EXPECT_EQ(rotated.rows().keys[2].data, rotated.rows().keys[3].data);

  const core clamped = made(la::lambda_shape{3, 20, 6}, true);
  EXPECT_EQ(rows_held(clamped, key_kind::window_near), 6 + max_append);  // distances 0 ... 6
  EXPECT_EQ(rows_held(clamped, key_kind::window_far), 19 + max_append);
  EXPECT_NE(clamped.rows().keys[2].data, clamped.rows().keys[3].data);

  const core just_reached = made(la::lambda_shape{3, 20, 19}, true), one_less = made(la::lambda_shape{3, 20, 18}, true);
  EXPECT_EQ(just_reached.rows().keys[2].data, just_reached.rows().keys[3].data);
  EXPECT_NE(one_less.rows().keys[2].data, one_less.rows().keys[3].data);

  // A bias has a limit too, but rows are the same however far they are.
  const core biased = {{{la::lambda_shape{3, 20, 6}, true}, false, 1, dim, v_dim, max_append, max_rewind, 0},
                       la::detail::functions_of<la::f32>(),
                       la::detail::functions_of<la::f32>()};
  EXPECT_EQ(rows_held(biased, key_kind::window_near), 19 + max_append);
  EXPECT_EQ(biased.rows().keys[2].data, biased.rows().keys[3].data);

  const core slots = made(la::streaming_llm(3, 20), true);
  EXPECT_EQ(slots.rows().keys[0].data, slots.rows().keys[1].data);  // far sinks are rotated ones
  EXPECT_EQ(rows_held(slots, key_kind::sinks_near), 3);
}

TEST(CacheCore, HoldsAWindowForEachOfTheNewestQueries) {
  core cache = made(la::sliding_window(7), false);
  append(cache, 3);
  append(cache, 5);
  append(cache, 5);
  append(cache, 1);
  EXPECT_EQ(cache.num_tokens(), 14);
  // Queries 9 ... 13 see the keys from 3 on.
  for (index_t t = 3; t < 14; ++t) {
    EXPECT_EQ(key(cache, key_kind::window_near, t), t);
    EXPECT_EQ(value(cache, t), -t);
  }
  EXPECT_EQ(cache.newest_held(), max_append);
}

TEST(CacheCore, SinksStayWhereTheyAre) {
  core cache = made(la::lm_infinite(3, 7), false);
  for (int i = 0; i < 20; ++i) append(cache, 5);
  for (index_t t = 0; t < 3; ++t) EXPECT_EQ(key(cache, key_kind::sinks_near, t), t);
  for (index_t t = 89; t < 100; ++t) EXPECT_EQ(key(cache, key_kind::window_near, t), t);
}

TEST(CacheCore, TakesInMoreThanItHolds) {
  core cache = made(la::lm_infinite(3, 7), false);
  append(cache, 1000);
  for (index_t t = 0; t < 3; ++t) EXPECT_EQ(key(cache, key_kind::sinks_near, t), t);
  for (index_t t = 989; t < 1000; ++t) {
    EXPECT_EQ(key(cache, key_kind::window_near, t), t);
    EXPECT_EQ(value(cache, t), -t);
  }
}

// A quarter turn a position, in both halves of the row alike: (t, t) becomes (t, t), (-t, t), (-t, -t), (t, -t).
TEST(CacheCore, RotatesKeysOnceWhenTheyArrive) {
  const double quarter_turns[] = {1.5707963267948966, 1.5707963267948966, 1.5707963267948966, 1.5707963267948966};
  const la::rope position(dim, quarter_turns, 4);
  core cache = made(la::lambda_shape{2, 7, 3}, true);
  for (int i = 0; i < 7; ++i) append(cache, 2, position.data());
  const float signs[] = {1, -1, -1, 1};
  for (index_t t = 0; t < 2; ++t) {
    EXPECT_NEAR(key(cache, key_kind::sinks_near, t), signs[t % 4] * static_cast<float>(t), 1e-5);
    EXPECT_NEAR(key(cache, key_kind::sinks_far, t), static_cast<float>(t), 1e-5);
  }
  for (index_t t = 7; t < 14; ++t) {
    EXPECT_NEAR(key(cache, key_kind::window_near, t), signs[t % 4] * static_cast<float>(t), 1e-5);
    EXPECT_NEAR(key(cache, key_kind::window_far, t), static_cast<float>(t), 1e-5);
  }
}

// Rows that are written but not counted in have taken the place of the oldest ones.
TEST(CacheCore, KnowsWhatAFailedStepHasOverwritten) {
  core cache = made(la::sliding_window(7), false);
  append(cache, 20);
  write(cache, 3, la::none().data());
  EXPECT_EQ(cache.num_tokens(), 20);
  EXPECT_EQ(cache.newest_held(), max_append - 3);
  for (index_t t = 20 - 2 - 6; t < 20; ++t) EXPECT_EQ(key(cache, key_kind::window_near, t), t);
  write(cache, 1, la::none().data());
  EXPECT_EQ(cache.newest_held(), max_append - 3);
  append(cache, 2);
  EXPECT_EQ(cache.newest_held(), max_append - 1);
  append(cache, 1);
  EXPECT_EQ(cache.newest_held(), max_append);
  write(cache, 4, la::none().data());
  cache.clear();
  EXPECT_EQ(cache.num_tokens(), 0);
  EXPECT_EQ(cache.newest_held(), 0);
  append(cache, 3);  // of the stream that begins anew all is there
  EXPECT_EQ(cache.newest_held(), 3);
}

// The first row that is overwritten is one that queries before the newest need.
TEST(CacheCore, KnowsWhenItsRingIsFull) {
  core cache = made(la::sliding_window(7), false);
  for (index_t tokens = 1; tokens <= 30; ++tokens) {
    append(cache, 1);
    EXPECT_EQ(cache.newest_held(), tokens <= 6 + max_append ? tokens : max_append) << tokens << " tokens";
  }
}

// Rings of max_append + max_rewind rows more than the next query sees, near ones and far ones.
TEST(CacheCore, HoldsWhatTakenBackTokensHaveOverwritten) {
  constexpr index_t rewindable = 3;
  for (const la::lambda_shape& shape : {la::sliding_window(7), la::lambda_shape{0, 7, 2}}) {
    core cache = {{{shape, true}, true, 1, dim, v_dim, max_append, rewindable, 0},
                  la::detail::functions_of<la::f32>(),
                  la::detail::functions_of<la::f32>()};
    append(cache, 4);
    EXPECT_EQ(cache.newest_held(), 4);  // all of them
    append(cache, 5);
    append(cache, 5);
    EXPECT_EQ(cache.newest_held(),
              shape.distance_limit == 2 ? max_append + rewindable : 14);  // the smaller ring has wrapped
    append(cache, 5);
    append(cache, 5);
    EXPECT_EQ(cache.newest_held(), max_append + rewindable);
    write(cache, max_append, la::none().data());  // a step that fails
    EXPECT_EQ(cache.newest_held(), rewindable);
    cache.rewind(rewindable);
    EXPECT_EQ(cache.num_tokens(), 21);
    EXPECT_EQ(cache.newest_held(), 0);
    for (index_t t = 21 - 6; t < 21; ++t) EXPECT_EQ(value(cache, t), -t);
    for (index_t t = 21 - std::min<index_t>(shape.distance_limit, 6); t < 21; ++t)
      EXPECT_EQ(key(cache, key_kind::window_near, t), t);
    append(cache, 5);
    EXPECT_EQ(cache.newest_held(), 5);
    append(cache, 5);
    EXPECT_EQ(cache.newest_held(), max_append + rewindable);
  }
}

// What one head has is one piece of memory, in the order in which decoding reads it.
TEST(CacheCore, LaysTheRowsOfAHeadOneAfterTheOther) {
  const core cache = {{{la::lambda_shape{3, 20, 6}, true}, true, 2, dim, v_dim, max_append, max_rewind, 0},
                      la::detail::functions_of<la::int8>(),
                      la::detail::functions_of<la::f32>()};
  const la::detail::key_value_rows<float> rows = cache.rows();
  const unsigned char* end = rows.keys[0].data;
  for (const auto* store :
       {&rows.keys[0], &rows.keys[1], &rows.keys[2], &rows.keys[3], &rows.sink_values, &rows.window_values}) {
    EXPECT_GE(store->data, end);
    EXPECT_LT(store->data, end + la::detail::buffer_alignment);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(store->data) % la::detail::buffer_alignment, 0u);
    EXPECT_EQ(store->head_bytes, rows.keys[0].head_bytes);
    end = store->row(0, 0) + store->capacity * store->row_bytes;
    if (store->scales != nullptr) {
      const unsigned char* const scales = reinterpret_cast<const unsigned char*>(store->scale(0, 0));
      EXPECT_GE(scales, end);
      end = scales + static_cast<std::size_t>(store->capacity) * sizeof(float);
    }
  }
  const unsigned char* const next_head = rows.keys[0].row(1, 0);
  EXPECT_GE(next_head, end);
  EXPECT_LT(next_head, end + la::detail::buffer_alignment);
}

TEST(CacheCore, CountsItsBytes) {
  EXPECT_EQ(made(la::sliding_window(8), false).bytes() - made(la::sliding_window(7), false).bytes(), (16 + 16) * 4);
  EXPECT_GT(made(la::sliding_window(0), false).bytes(), static_cast<index_t>(sizeof(core)));
}
