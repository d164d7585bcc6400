#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::row_rotation;
using la::detail::attention_job;
using la::detail::key_kind;
using la::detail::queries_per_chunk;
using la::detail::row_turner;
using la::detail::row_window;
using la::detail::task_rows;

namespace {

constexpr index_t tokens = 300, heads = 3, dim = 20, padded = 32;
constexpr std::uint64_t first_position = 1000;

const auto& kernels = la::detail::kernels_for<float>(la::isa_level::automatic);
// Matrices take only whole steps of dims.
const la::isa_level highest_of_pairs = std::min(la::highest_isa(), la::isa_level::avx512_bf16);

// Numbers that every format holds exactly, different in all rows.
template <class T>
std::vector<T> counting() {
  std::vector<T> numbers;
  for (index_t i = 0; i < tokens * heads * dim; ++i) numbers.push_back(static_cast<T>(static_cast<float>(i * 7 % 251)));
  return numbers;
}

// Keys and values of type T, [tokens, heads, dim].
template <class T>
struct sequence {
  std::vector<T> k = counting<T>();
  std::vector<float> q = std::vector<float>(tokens * heads * dim);
  la::rope position{dim};
  attention_job<float> job = {};

  explicit sequence(const la::lambda_shape& shape, row_rotation wanted = row_rotation::none) {
    const auto store = la::detail::store_of<float>(la::detail::erase(la::token_major(k.data(), tokens, heads, dim)));
    job.q = job.out = la::detail::erase(la::token_major(q.data(), tokens, heads, dim));
    job.num_kv_heads = heads;
    job.first_position = first_position;
    job.plan = {shape, true};
    job.encoding = position.data();
    for (row_rotation& each : job.rows.wanted) each = wanted;
    for (auto& keys : job.rows.keys) keys = store;
    job.rows.sink_values = job.rows.window_values = store;
    la::detail::choose_pairs(job, la::detail::pair_kernels_for<float>(highest_of_pairs));
  }

  // Row `key` of `head` as a kernel should find it among those of a kind.
  std::vector<float> right(index_t head, index_t key, row_rotation wanted, key_kind kind) const {
    const std::size_t first = static_cast<std::size_t>((key * heads + head) * dim);
    std::vector<float> row(k.begin() + static_cast<std::ptrdiff_t>(first),
                           k.begin() + static_cast<std::ptrdiff_t>(first + dim));
    if (wanted != row_rotation::none) {
      alignas(64) float angles[row_turner<float>::max_angle_count];
      row_turner<float> turner(kernels, job.encoding, dim, angles);
      const std::uint64_t own = first_position + static_cast<std::uint64_t>(key);
      turner.move_to(wanted == row_rotation::to_position ? own : 0);
      const std::vector<float> stored = row;
      turner.turn(stored.data(), row.data());
    }
    if (job.in_pairs(kind))
      for (float& x : row) x = static_cast<float>(la::bfloat16(x));
    row.resize(padded);
    return row;
  }
};

// Number `place` of those in the words at `row`.
float half_of_words(const float* row, index_t place) {
  la::bfloat16 number;
  std::memcpy(&number, reinterpret_cast<const unsigned char*>(row) + 2 * place, sizeof number);
  return static_cast<float>(number);
}

// The numbers of a key's row, and of its values, as a kernel finds them.
std::vector<float> key_numbers(bool in_pairs, const row_window<float>& window, index_t key) {
  const float* const row = window.row(key);
  if (!in_pairs) return {row, row + padded};
  std::vector<float> numbers(padded);
  for (index_t d = 0; d < dim; ++d) numbers[static_cast<std::size_t>(d)] = half_of_words(row, d);
  return numbers;
}
std::vector<float> value_numbers(bool in_pairs, const row_window<float>& window, index_t key) {
  const float* const row = window.row(key);
  if (!in_pairs) return {row, row + padded};
  std::vector<float> numbers(padded);
  for (index_t d = 0; d < dim; ++d) numbers[static_cast<std::size_t>(d)] = half_of_words(row, 2 * d + key % 2);
  return numbers;
}

// Scratch for one worker, filled with what no row holds.
struct scratch {
  la::detail::scratch_sizes sizes;
  la::detail::buffer<unsigned char> memory;

  explicit scratch(const attention_job<float>& job) {
    la::detail::add_sizes(kernels, job, 1, sizes);
    la::detail::scratch_arena counter(nullptr);
    la::detail::worker_scratch<float> unused(counter, sizes);
    memory = la::detail::buffer<unsigned char>(counter.used());
    for (index_t i = 0; i < memory.size(); ++i) memory[i] = 0xff;
  }
  la::detail::worker_scratch<float> pieces() {
    la::detail::scratch_arena arena(memory.data());
    return {arena, sizes};
  }
};

// Chunk by chunk over all queries from `first` on, every head in turn: what the queries of a chunk see can be read.
template <class T>
void check_all_chunks(const sequence<T>& s, index_t first) {
  scratch room(s.job);
  la::detail::worker_scratch<float> pieces = room.pieces();
  row_turner<float> turner(kernels, s.job.encoding, dim, pieces.angles);
  index_t before = first;
  for (index_t last = first; first < tokens; before = first, first = last) {
    last = std::min(first + queries_per_chunk, tokens);
    for (index_t head = 0; head < heads; ++head) {
      task_rows<float> rows(kernels, s.job, head, head, turner, pieces);
      rows.advance(before, first, last);
      for (int k = 0; k < la::detail::num_key_kinds; ++k) {
        const key_kind kind = static_cast<key_kind>(k);
        const la::index_range seen = s.job.plan.band(kind, first, last).keys;
        for (index_t key = seen.first; key < seen.last; ++key) {
          const bool in_pairs = s.job.in_pairs(kind);
          ASSERT_EQ(key_numbers(in_pairs, rows.keys(kind), key), s.right(head, key, s.job.rows.wanted[k], kind))
              << "kind " << k << ", head " << head << ", key " << key << ", queries from " << first;
          ASSERT_EQ(value_numbers(in_pairs, rows.values(kind), key), s.right(head, key, row_rotation::none, kind));
        }
      }
    }
  }
}

}  // namespace

TEST(TaskRows, AreThoseThatTheQueriesOfAChunkSee) {
  for (const la::lambda_shape& shape :
       {la::lm_infinite(5, 100), la::lm_infinite(70, 64), la::streaming_llm(5, 33), la::sliding_window(1),
        la::lambda_shape{9, 150, 20}, la::lambda_shape{0, 150, 0}, la::lambda_shape{400, 10, 30}, la::full_causal()}) {
    for (const row_rotation wanted : {row_rotation::none, row_rotation::to_position, row_rotation::to_zero}) {
      SCOPED_TRACE(std::to_string(shape.num_sinks) + " sinks, window " + std::to_string(shape.window));
      check_all_chunks(sequence<float>(shape, wanted), 0);
      check_all_chunks(sequence<la::half>(shape, wanted), 128);  // a task in the middle copies what came before
      check_all_chunks(sequence<la::bfloat16>(shape, wanted), 0);
      check_all_chunks(sequence<la::bfloat16>(shape, wanted), 128);
    }
  }
}

// A cache keeps its sinks in float.
TEST(TaskRows, SinksMayBeFloatsWhereTheWindowIsOfPairs) {
  for (const row_rotation wanted : {row_rotation::none, row_rotation::to_zero}) {
    sequence<la::bfloat16> s(la::lm_infinite(5, 100), wanted);
    const std::vector<float> sinks = counting<float>();
    const auto store =
        la::detail::store_of<float>(la::detail::erase(la::token_major(sinks.data(), tokens, heads, dim)));
    s.job.rows.keys[static_cast<int>(key_kind::sinks_near)] = s.job.rows.keys[static_cast<int>(key_kind::sinks_far)] =
        s.job.rows.sink_values = store;
    la::detail::choose_pairs(s.job, la::detail::pair_kernels_for<float>(highest_of_pairs));
    EXPECT_FALSE(s.job.in_pairs(key_kind::sinks_far));
    EXPECT_EQ(s.job.in_pairs(key_kind::window_near), highest_of_pairs >= la::isa_level::avx512_bf16);
    check_all_chunks(s, 0);
  }
}

// Memory does not grow with the number of tokens: a window and a chunk.
TEST(TaskRows, RingsHoldAWindowAndAChunk) {
  sequence<la::half> s(la::lm_infinite(5, 100));
  EXPECT_EQ(la::detail::key_ring_rows(s.job, key_kind::window_near), 99 + queries_per_chunk);
  EXPECT_EQ(la::detail::key_ring_rows(s.job, key_kind::sinks_far), 5);
  EXPECT_EQ(la::detail::window_value_ring_rows(s.job), 99 + queries_per_chunk);
  s.job.plan.shape = la::full_causal();
  EXPECT_EQ(la::detail::key_ring_rows(s.job, key_kind::window_near), tokens);
}

TEST(TaskRows, DenseRowsOfTheKernelsTypeStayWhereTheyAre) {
  sequence<float> s(la::lm_infinite(5, 100));
  const auto store = la::detail::store_of<float>(la::detail::erase(la::head_major(s.k.data(), tokens, heads, dim)));
  for (auto& keys : s.job.rows.keys) keys = store;
  s.job.rows.sink_values = s.job.rows.window_values = store;
  scratch room(s.job);
  la::detail::worker_scratch<float> pieces = room.pieces();
  row_turner<float> turner(kernels, s.job.encoding, dim, pieces.angles);
  task_rows<float> rows(kernels, s.job, 1, 0, turner, pieces);
  rows.advance(0, 0, 64);
  EXPECT_EQ(rows.keys(key_kind::window_near).row(17), s.k.data() + (tokens + 17) * dim);
  EXPECT_EQ(rows.values(key_kind::sinks_near).row(2), s.k.data() + (tokens + 2) * dim);
  EXPECT_EQ(room.sizes.key_elements[static_cast<int>(key_kind::window_near)], 0);
}

// Keys of pairs are read where they lie if their words can be; values, which two keys share, cannot.
TEST(TaskRows, PairsTakeHalfTheRoomOrNone) {
  sequence<la::bfloat16> s(la::lm_infinite(5, 100));
  const bool multiplied = highest_of_pairs >= la::isa_level::avx512_bf16;
  EXPECT_EQ(s.job.sinks_in_pairs, multiplied);
  EXPECT_EQ(s.job.window_in_pairs, multiplied);
  s.job.sinks_in_pairs = s.job.window_in_pairs = true;  // room is counted on any machine
  la::detail::pair_kernels<float> in_steps = {2, 1, nullptr, nullptr, nullptr, nullptr};
  s.job.pairs = &in_steps;
  EXPECT_EQ(la::detail::window_value_ring_rows(s.job), (99 + queries_per_chunk) / 2 + 1);
  // A step may begin 31 keys before the first and end as many behind the last, in rings of whole steps.
  in_steps.keys_per_step = 32;
  EXPECT_EQ(la::detail::key_ring_rows(s.job, key_kind::window_near), 224);
  EXPECT_EQ(la::detail::window_value_ring_rows(s.job), 112);
  EXPECT_EQ(la::detail::sink_value_ring_rows(s.job), 32);
  EXPECT_EQ(la::detail::words_of_keys(true, 20), 10);
  EXPECT_EQ(la::detail::words_of_keys(true, 33), 17);
  const auto store = la::detail::store_of<float>(la::detail::erase(la::head_major(s.k.data(), tokens, heads, dim)));
  EXPECT_TRUE(la::detail::readable_in_place(store, row_rotation::none, true));
  EXPECT_FALSE(la::detail::readable_in_place(store, row_rotation::to_zero, true));
  EXPECT_FALSE(la::detail::values_in_place(true, store));
  s.job.rows.keys[static_cast<int>(key_kind::window_near)] = store;
  EXPECT_FALSE(la::detail::keys_in_place(s.job, key_kind::window_near));  // rows of a step that are not there
  in_steps.keys_per_step = 2;
  EXPECT_TRUE(la::detail::keys_in_place(s.job, key_kind::window_near));
  for (const auto& misfit : {la::detail::erase(la::head_major(s.k.data() + 1, tokens - 1, heads, dim)),
                             la::detail::erase(la::head_major(s.k.data(), tokens, heads, dim - 1))})
    EXPECT_FALSE(la::detail::readable_in_place(la::detail::store_of<float>(misfit), row_rotation::none, true));
}

// A block's columns would else fall into few sets of the cache.
TEST(TaskRows, LieNoMultipleOfAKibibyteApart) {
  for (index_t words = 1; words <= la::max_head_dim; ++words) {
    for (const index_t bytes :
         {la::detail::ring_stride<float>(words) * 4, la::detail::ring_stride<double>(words) * 8}) {
      EXPECT_NE(bytes % 1024, 0) << words;
      EXPECT_EQ(bytes % 64, 0) << words;
    }
    EXPECT_GE(la::detail::ring_stride<float>(words), words);
    EXPECT_LE(la::detail::ring_stride<float>(words), words + 31);
  }
}

// Heads whose rows share pages of memory go through the chunks together, as many as their rings leave in the cache.
TEST(TaskRows, OfNeighbouringHeadsAreTakenTogether) {
  sequence<la::half> s(la::lm_infinite(5, 100));
  EXPECT_EQ(la::detail::heads_per_task(s.job, 1), heads);
  EXPECT_EQ(la::detail::heads_per_task(s.job, heads), 1) << "as many workers";
  for (auto& keys : s.job.rows.keys) keys.head_bytes = 1 << 20;
  EXPECT_EQ(la::detail::heads_per_task(s.job, 1), 1);

  sequence<la::half> wide(la::full_causal());
  wide.job.q.tokens = 20000;  // two rings of 20000 rows of 32 floats: 5 MB
  for (auto& keys : wide.job.rows.keys) keys.capacity = 20000;
  EXPECT_EQ(la::detail::heads_per_task(wide.job, 1), 1);
}
