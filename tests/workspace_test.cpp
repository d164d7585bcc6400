#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>
#include <lambda_attention/storage/int8.hpp>
#include <lambda_attention/workspace.hpp>

#include <support/heap.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
namespace heap = support::heap;
using la::index_t;

namespace {

template <class Function>
long allocations_of(Function&& function) {
  const long before = heap::num_allocations;
  function();
  return heap::num_allocations - before;
}

constexpr index_t heads = 6, kv_heads = 2, dim = 24, v_dim = 10, n = 200, max_append = 32;

template <index_t Workers>
struct workers_in_turn {
  index_t num_workers() const { return Workers; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    for (index_t task = 0; task < num_tasks; ++task) f(task, task % Workers);
  }
};

template <class Cache, class Executor = la::serial_executor>
void feed(sequence<float>& s, Cache& cache, index_t count, const la::attention_options& options,
          Executor&& executor = {}) {
  const index_t first = cache.num_tokens() % (n / 2);
  la::attend(s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), cache,
             s.out.view().slice(first, count), options, executor);
}

}  // namespace

TEST(Workspace, IsEmptyAtFirst) {
  EXPECT_EQ(la::workspace().bytes(), 0);
  EXPECT_EQ(allocations_of([] { la::workspace(); }), 0);
  EXPECT_EQ(la::workspace(1000).bytes(), 1000);
}

TEST(Workspace, GrowsAndDoesNotShrink) {
  la::workspace memory;
  memory.reserve(100);
  EXPECT_EQ(memory.bytes(), 100);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.data()) % 64, 0u);
  const std::byte* const data = memory.data();
  EXPECT_EQ(allocations_of([&] {
              memory.reserve(100);
              memory.reserve(1);
              memory.reserve(0);
            }),
            0);
  EXPECT_EQ(memory.data(), data);
  EXPECT_EQ(memory.bytes(), 100);
  EXPECT_EQ(allocations_of([&] { memory.reserve(101); }), 1);
  EXPECT_EQ(memory.bytes(), 101);
}

TEST(Workspace, IsAsItWasWhenMemoryRunsOut) {
  la::workspace memory(100);
  const std::byte* const data = memory.data();
  heap::is_out = true;
  EXPECT_THROW(memory.reserve(200), std::bad_alloc);
  heap::is_out = false;
  EXPECT_EQ(memory.bytes(), 100);
  EXPECT_EQ(memory.data(), data);
}

TEST(Workspace, ACallWithoutOneAllocatesOnce) {
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  const la::rope position(dim);
  EXPECT_EQ(allocations_of([&] {
              la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(3, 17), position, s.out.view());
            }),
            1);
  la::kv_cache<la::f32, la::rope> cache(la::lm_infinite(3, 17), position, kv_heads, dim, v_dim);
  for (const index_t count : {40, 1}) EXPECT_EQ(allocations_of([&] { feed(s, cache, count, {}); }), 1) << count;
  EXPECT_EQ(allocations_of([&] { la::append(s.k.view(), s.v.view(), cache); }), 0);
  EXPECT_EQ(allocations_of([&] { la::attend(s.q.view().slice(0, 3), cache, s.out.view().slice(0, 3)); }), 1);
}

TEST(Workspace, CallsOfAnyKindShareOne) {
  la::workspace memory;
  la::attention_options options;
  options.workspace = &memory;
  const la::rope position(dim);
  const la::lambda_shape shape = la::lm_infinite(3, 17);
  sequence<float> s(n, heads, kv_heads, dim, v_dim), t = s;
  la::kv_cache<la::f16, la::rope> cache(shape, position, kv_heads, dim, v_dim), other = cache;
  std::vector<std::vector<float>> with, without;
  const auto calls = [&](sequence<float>& in, la::kv_cache<la::f16, la::rope>& stream, const la::attention_options& o,
                         std::vector<std::vector<float>>& outputs) {
    la::attend(in.q.view(), in.k.view(), in.v.view(), shape, position, in.out.view(), o);
    outputs.push_back(in.out.elements);
    for (const index_t count : {40, 1, 4, 5}) {
      feed(in, stream, count, o, workers_in_turn<2>{});
      outputs.push_back(in.out.elements);
    }
    la::attend(in.q.view(), in.k.view(), in.v.view(), la::sliding_window(90), la::none(), in.out.view(), o);
    outputs.push_back(in.out.elements);
  };
  calls(t, other, {}, without);
  calls(s, cache, options, with);
  for (std::size_t i = 0; i < with.size(); ++i) EXPECT_TRUE(same_bits(with[i], without[i])) << "call " << i;

  // Now it is large enough for all of them.
  const index_t bytes = memory.bytes();
  cache.clear();
  with.reserve(100);
  const int of_outputs = 6;  // the copies that calls() keeps
  EXPECT_EQ(allocations_of([&] { calls(s, cache, options, with); }), of_outputs);
  EXPECT_EQ(memory.bytes(), bytes);
}

template <class Storage>
class ScratchBytes : public ::testing::Test {};
using storages = ::testing::Types<la::f64, la::f32, la::f16, la::bf16, la::int8>;
TYPED_TEST_SUITE(ScratchBytes, storages);

// A workspace of that many bytes is enough for any number of tokens up to the one given, whatever came before.
TYPED_TEST(ScratchBytes, AreEnough) {
  const auto never_allocates = [](const auto& position, const la::lambda_shape& shape, auto executor) {
    sequence<float> s(n, heads, kv_heads, dim, v_dim);
    for (const index_t most : {1, 4, 5, 20, 100}) {
      la::kv_cache_options cache_options;
      cache_options.max_append = max_append;
      la::kv_cache<TypeParam, std::decay_t<decltype(position)>> cache(shape, position, kv_heads, dim, v_dim,
                                                                      cache_options);
      const index_t bytes = la::scratch_bytes(cache, heads, most, executor.num_workers());
      la::workspace memory(bytes);
      la::attention_options options;
      options.workspace = &memory;
      for (const index_t count : {1, 2, 4, 5, 3, 20, 1, 33, 64, 65, 100, 1, 4, 5, 20, 100}) {
        if (count > most) continue;
        ASSERT_EQ(allocations_of([&] { feed(s, cache, count, options, executor); }), 0)
            << count << " tokens after " << cache.num_tokens() - count << ", at most " << most;
      }
      ASSERT_EQ(la::scratch_bytes(cache, heads, most, executor.num_workers()), bytes);  // whatever it has seen
    }
  };
  for (const la::lambda_shape& shape : {la::lm_infinite(3, 17), la::lambda_shape{3, 60, 20}, la::streaming_llm(3, 17),
                                        la::sliding_window(70), la::lambda_shape{30, 0, 0}}) {
    never_allocates(la::rope(dim), shape, la::serial_executor{});
    never_allocates(la::alibi(heads), shape, workers_in_turn<2>{});
  }
}

// With a long window single tokens, whose scores are kept all at once, take more than tiles do; and workers may share their
// keys.
TEST(ScratchBytes, AreEnoughForSingleTokensOfALongWindow) {
  la::kv_cache<la::f32, la::none> cache(la::sliding_window(3000), {}, kv_heads, dim, v_dim);
  sequence<float> s(4000, heads, kv_heads, dim, v_dim);
  la::append(s.k.view(), s.v.view(), cache);
  const auto expect_no_allocations = [&](auto executor) {
    la::workspace memory(la::scratch_bytes(cache, heads, 100, executor.num_workers()));
    la::attention_options options;
    options.workspace = &memory;
    for (const index_t count : {1, 4, 5, 100})
      EXPECT_EQ(allocations_of([&] { feed(s, cache, count, options, executor); }), 0)
          << count << " tokens, " << executor.num_workers() << " workers";
  };
  expect_no_allocations(la::serial_executor{});
  expect_no_allocations(workers_in_turn<3>{});
}

// As many queries as are read off the rows together, some keys of which are near to one and far from another.
TEST(ScratchBytes, AreEnoughForDrafts) {
  const la::rope position(dim);
  la::kv_cache<la::f32, la::rope> cache({20, 3000, 1700}, position, heads, dim, v_dim);
  sequence<float> s(4000, heads, heads, dim, v_dim);
  la::append(s.k.view().slice(0, 3050), s.v.view().slice(0, 3050), cache);
  const auto expect_no_allocations = [&](auto executor) {
    la::attention_options options;
    for (const index_t count : {15, 16, 17}) {
      la::workspace memory(la::scratch_bytes(cache, heads, count, executor.num_workers()));
      options.workspace = &memory;
      EXPECT_EQ(allocations_of([&] { feed(s, cache, count, options, executor); }), 0) << count << " tokens";
    }
  };
  expect_no_allocations(la::serial_executor{});
  expect_no_allocations(workers_in_turn<3>{});
}

TEST(ScratchBytes, Refusals) {
  const la::kv_cache<la::f32, la::none> cache(la::lm_infinite(4, 100), {}, 2, dim, v_dim);
  const auto refused = [&](index_t num_heads) { return refusal([&] { la::scratch_bytes(cache, num_heads, 1); }); };
  const std::string expected =
      "scratch_bytes: expected 1 <= num_heads <= 1048576 and num_heads % cache.num_kv_heads == 0, got ";
  EXPECT_EQ(refused(0), expected + "0 and 2");
  EXPECT_EQ(refused(3), expected + "3 and 2");
  EXPECT_EQ(refused(1 << 20), "accepted");
  EXPECT_EQ(refused((1 << 20) + 2), expected + "1048578 and 2");
  EXPECT_EQ(refused(la::unlimited - 1), expected + "9223372036854775806 and 2");
  const auto workers = [&](index_t num_workers) {
    return refusal([&] { la::scratch_bytes(cache, 2, 1, num_workers); });
  };
  EXPECT_EQ(workers(1 << 16), "accepted");
  EXPECT_EQ(workers((1 << 16) + 1), "scratch_bytes: expected num_workers <= 65536, got 65537");
  EXPECT_EQ(workers(la::unlimited), "scratch_bytes: expected num_workers <= 65536, got 9223372036854775807");
}

TEST(ScratchBytes, AreNotWasteful) {
  const la::kv_cache<la::f32, la::none> cache(la::lm_infinite(4, 1000), {}, kv_heads, 64, 64);
  const index_t decode = la::scratch_bytes(cache, heads, 1);
  EXPECT_GT(decode, 0);
  EXPECT_LT(decode, 256 * 1024);  // scores and a few rows, not the keys
  EXPECT_GE(la::scratch_bytes(cache, heads, 1, 2), 2 * decode - 4096);
}

// A fault before anything has been written: the cache is as it was.
// Workers that share the keys of a head count the parts that are done: each call from none.
TEST(Workspace, IsSharedByCallsWhoseWorkersShareKeys) {
  const sequence<float> s(3000, 2, 2, 16, 16);
  la::kv_cache<la::f32, la::none> cache(la::sliding_window(3000), {}, 2, 16, 16);
  la::append(s.k.view(), s.v.view(), cache);
  la::workspace scratch;
  la::attention_options options;
  options.workspace = &scratch;
  dense<float> right(1, 2, 16);
  la::attend(s.q.view().slice(2999, 1), cache, right.view());
  for (int call = 0; call < 3; ++call) {
    dense<float> out(1, 2, 16);
    la::attend(s.q.view().slice(2999, 1), cache, out.view(), options, workers_in_turn<8>());
    EXPECT_TRUE(same_bits(out.elements, right.elements)) << "call " << call;
  }
}

TEST(Workspace, ACallThatFindsNoMemoryChangesNothing) {
  const la::rope position(dim);
  la::kv_cache<la::f32, la::rope> cache(la::lm_infinite(3, 17), position, kv_heads, dim, v_dim), other = cache;
  sequence<float> s(n, heads, kv_heads, dim, v_dim), t = s;
  feed(s, cache, 50, {});
  feed(t, other, 50, {});
  heap::is_out = true;
  EXPECT_THROW(feed(s, cache, 40, {}), std::bad_alloc);
  EXPECT_THROW(feed(s, cache, 1, {}), std::bad_alloc);
  heap::is_out = false;
  EXPECT_EQ(cache.num_tokens(), 50);
  EXPECT_TRUE(same_bits(s.out.elements, t.out.elements));
  feed(s, cache, 50, {});
  feed(t, other, 50, {});
  EXPECT_TRUE(same_bits(s.out.elements, t.out.elements));
}
