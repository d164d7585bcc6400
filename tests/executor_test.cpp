#include <lambda_attention/attention.hpp>
#include <lambda_attention/executor.hpp>
#include <lambda_attention/key_run.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/retrieval.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

// Tasks from the last to the first, each by another worker.
struct backwards {
  index_t workers = 3;
  index_t* num_runs = nullptr;

  index_t num_workers() const { return workers; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    if (num_runs != nullptr) ++*num_runs;
    for (index_t task = num_tasks; task-- > 0;) f(task, task % workers);
  }
};

}  // namespace

TEST(SerialExecutor, RunsTasksInOrderAsWorker0) {
  std::vector<std::pair<index_t, index_t>> calls;
  const la::serial_executor executor;
  executor.run(3, [&](index_t task, index_t worker) { calls.emplace_back(task, worker); });
  EXPECT_EQ(calls, (std::vector<std::pair<index_t, index_t>>{{0, 0}, {1, 0}, {2, 0}}));
  executor.run(0, [&](index_t, index_t) { calls.clear(); });
  EXPECT_EQ(calls.size(), 3u);
  EXPECT_EQ(executor.num_workers(), 1);
}

TEST(Executor, OrderAndWorkersDoNotMatter) {
  sequence<float> s(1500, 6, 3, 16, 16);
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(4, 40), la::rope(16), s.out.view());
  const std::vector<float> serial = s.out.elements;
  for (const index_t workers : {1, 2, 7}) {
    std::fill(s.out.elements.begin(), s.out.elements.end(), -1.0f);
    la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(4, 40), la::rope(16), s.out.view(), {},
               backwards{workers});
    EXPECT_TRUE(same_bits(s.out.elements, serial)) << workers;
  }
}

// Constants, variables and temporaries; by reference, not by copy.
TEST(Executor, IsTakenInAnyWay) {
  sequence<float> s(20, 2, 1, 16, 16);
  la::kv_cache<la::f32, la::rope> cache(la::lm_infinite(4, 10), la::rope(16), 1, 16, 16);
  index_t num_runs = 0;
  backwards variable{3, &num_runs};
  const backwards constant{3, &num_runs};
  la::attend(s.q.view(), s.k.view(), s.v.view(), cache.shape(), cache.position(), s.out.view(), {}, variable);
  la::attend(s.q.view(), s.k.view(), s.v.view(), cache, s.out.view(), {}, constant);
  la::attend(s.q.view(), cache, s.out.view(), {}, backwards{3, &num_runs});
  EXPECT_EQ(num_runs, 3);
}

// Scratch for more may be more than there is memory.
TEST(Executor, WorkersThatAreNoneOrTooManyAreRefused) {
  sequence<float> s(20, 2, 1, 16, 16);
  const la::lambda_shape shape = la::lm_infinite(4, 10);
  la::kv_cache<la::f32, la::rope> cache(shape, la::rope(16), 1, 16, 16);
  la::middle_store<la::f32, la::rope> store(shape, la::rope(16), 1, 16, 16);
  la::append(s.k.view(), s.v.view(), store);
  const la::key_run run{0, s.k.view(), s.v.view()};
  std::vector<float> lse(20 * 2);
  const la::partial_result part{s.out.view(), la::token_major(lse.data(), 20, 2, 1)};
  for (const index_t workers : {index_t{0}, index_t{65537}, la::unlimited, index_t{3}}) {
    const backwards executor{workers};
    const auto expect = [&](const std::string& where, auto&& call) {
      const std::string refused =
          where + ": expected 1 <= executor.num_workers() <= 65536, got " + std::to_string(workers);
      std::fill(s.out.elements.begin(), s.out.elements.end(), 5.0f);
      EXPECT_EQ(refusal(call), workers == 3 ? "accepted" : refused);
      EXPECT_EQ(s.out.elements == std::vector<float>(s.out.elements.size(), 5.0f), workers != 3);
    };
    const auto q = s.q.view(), k = s.k.view(), v = s.v.view();
    const auto out = s.out.view();
    const la::rope position(16);
    expect("attend", [&] { la::attend(q, k, v, shape, position, out, {}, executor); });
    expect("attend_partial", [&] { la::attend_partial(q, k, v, shape, position, {0, 9}, part, {}, executor); });
    expect("attend", [&] { la::attend(la::query_run{0, q}, &run, 1, shape, position, out, {}, executor); });
    expect("attend_partial", [&] {
      la::attend_partial(la::query_run{0, q}, &run, 1, shape, position, {0, 9}, part, {}, executor);
    });
    expect("attend_top_k", [&] { la::attend_top_k(q, store, {5, 20}, part, {}, executor); });
    expect("attend", [&] { la::attend(q, k, v, cache, out, {}, executor); });
    EXPECT_EQ(cache.num_tokens(), workers == 3 ? 20 : 0);
  }
  const backwards nobody{0};
  EXPECT_EQ(refusal([&] { la::attend(s.q.view(), cache, s.out.view(), {}, nobody); }),
            "attend: expected 1 <= executor.num_workers() <= 65536, got 0");
  EXPECT_EQ(refusal([&] {
              la::attend_partial(s.q.view(), cache, {0, 9}, part, {}, nobody);
            }),
            "attend_partial: expected 1 <= executor.num_workers() <= 65536, got 0");
}
