// What README says of threads: calls that share only what they do not change may run at the same time. Each thread's
// results are, to the bit, those of the same calls one after another; ThreadSanitizer sees the rest. 20 repeats, or 1,000
// where the environment variable LAMBDA_ATTENTION_SOAK is set.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/error.hpp>

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr int num_threads = 4;
constexpr extents sizes = {30, 2, 2, 16, 16};
constexpr lambda_shape shape = lm_infinite(2, 12);

// Calls f(thread) on all threads at once.
void run_together(const std::function<void(int thread)>& f) {
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread)
    threads.emplace_back([&, thread] {
      for (++ready; ready < num_threads;) std::this_thread::yield();
      f(thread);
    });
  for (std::thread& each : threads) each.join();
}

int num_repeats() { return std::getenv("LAMBDA_ATTENTION_SOAK") != nullptr ? 1000 : 20; }

// Everything that is shared is const: inputs, encodings, caches that are only read, a store.
template <class Storage>
struct shared_objects {
  generator random{12};
  const inputs<> in = random_inputs(random, sizes);
  const rope position{sizes.head_dim};
  const kv_cache<Storage, rope> prefix = after_prefix();
  const middle_store<Storage, rope> store = stored();

  kv_cache<Storage, rope> after_prefix() const {
    auto cache = cache_for<Storage>(in, shape, position);
    append(in.k.view().slice(0, 20), in.v.view().slice(0, 20), cache);
    return cache;
  }
  middle_store<Storage, rope> stored() const {
    middle_store<Storage, rope> filled(shape, position, sizes.kv_heads, sizes.head_dim, sizes.v_head_dim);
    append(in.k.view(), in.v.view(), filled);
    return filled;
  }
};

// What one thread computes; different for each.
template <class Storage>
tensor<typename Storage::compute_type> results_of(const shared_objects<Storage>& shared, int thread) {
  using real = typename Storage::compute_type;
  const index_t dim = sizes.v_head_dim, heads = sizes.heads();
  tensor<real> out(sizes.tokens, heads, dim);
  workspace scratch;
  attention_options options;
  options.workspace = &scratch;
  options.scale = 0.1 * (1 + thread);

  // A fork of the prefix goes on by itself; an odd thread begins a stream of its own.
  auto own = thread % 2 == 0 ? shared.prefix : cache_for<Storage>(shared.in, shape, shared.position);
  attend_part(shared.in, 20, 5, own, out, options);

  // The prefix itself is read by all.
  const auto q = shared.in.q.view().slice(15, 5);
  attend(q, shared.prefix, out.view().slice(0, 5), options);

  tensor<float> lse(5, heads, 1), best_lse(5, heads, 1);
  tensor<real> best(5, heads, dim);
  const partial_result near = {out.view().slice(5, 5), lse.view()}, far = {best.view(), best_lse.view()};
  attend_partial(q, shared.prefix, {0, unlimited}, near, options);
  attend_top_k(q, shared.store, {3, 9}, far, options);
  merge(near, far, near);

  options.first_position = thread;
  attend(shared.in.q.view().slice(0, 10), shared.in.k.view().slice(0, 10), shared.in.v.view().slice(0, 10), shape,
         shared.position, out.view().slice(10, 10), options);

  const key_run run = {0, shared.in.k.view().slice(0, 5), shared.in.v.view().slice(0, 5)};
  const query_run newest = {0, shared.in.q.view().slice(0, 5)};
  attend(newest, &run, 1, shape, shared.position, out.view().slice(25, 5), options);
  return out;
}

template <class Storage>
class concurrency : public testing::Test {};
using storages = testing::Types<f64, f32, f16, bf16, int8>;
TYPED_TEST_SUITE(concurrency, storages);

TYPED_TEST(concurrency, calls_that_share_what_they_do_not_change_give_the_bits_of_one_after_another) {
  const shared_objects<TypeParam> shared;
  std::vector<tensor<typename TypeParam::compute_type>> expected;
  for (int thread = 0; thread < num_threads; ++thread) expected.push_back(results_of(shared, thread));
  for (int repeat = 0; repeat < num_repeats(); ++repeat) {
    std::atomic<int> wrong{0};
    run_together([&](int thread) {
      const auto out = results_of(shared, thread);
      wrong += !same_bits(out.view(), expected[static_cast<std::size_t>(thread)].view());
    });
    ASSERT_EQ(wrong, 0) << "repeat " << repeat;
  }
}

// Many streams, more of them than threads, each always with the thread that is free.
TEST(concurrency_of_streams, is_that_of_independent_objects) {
  constexpr int num_streams = 13;
  const shared_objects<f32> shared;
  for (int repeat = 0; repeat < num_repeats(); ++repeat) {
    std::vector<kv_cache<f32, rope>> caches(num_streams, shared.prefix);
    std::vector<tensor<float>> out(num_streams, tensor<float>(sizes.tokens, sizes.heads(), sizes.v_head_dim));
    for (index_t token = 20; token < sizes.tokens; ++token) {
      std::atomic<int> next{0};
      run_together([&](int) {
        for (int stream = next++; stream < num_streams; stream = next++) {
          const auto which = static_cast<std::size_t>(stream);
          attend_part(shared.in, token, 1, caches[which], out[which]);
        }
      });
    }
    for (const auto& each : out)
      ASSERT_TRUE(same_bits(each.view().slice(20, 10), out[0].view().slice(20, 10))) << "repeat " << repeat;
  }
}

}  // namespace
