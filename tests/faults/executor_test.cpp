// Executors that fail, before the first task, between any two, or after the last; and executors of all sizes, inside
// each other.
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>

#ifdef _OPENMP
#include <lambda_attention/executor/openmp.hpp>
#endif

#include <faults/streams.hpp>
#include <support/lsan.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace faults;

/// Calls attempt(executor) with one that fails before its first task, then with one that fails after it, and so on
/// until none does. After each failure look() is called. Returns how many there were.
template <class Attempt, class Look>
index_t fail_each_task(index_t num_workers, Attempt&& attempt, Look&& look) {
  for (index_t number = 0;; ++number) {
    SCOPED_TRACE("fails after " + std::to_string(number) + " tasks, workers " + std::to_string(num_workers));
    index_t tasks_until_failure = number;
    bool failed = false;
    try {
      attempt(some_executor(num_workers, &tasks_until_failure));
    } catch (const engine_error&) {
      failed = true;
    }
    EXPECT_EQ(failed, tasks_until_failure < 0) << "whether the call fails, and whether the executor has";
    if (!failed) return number;
    look();
  }
}

// Rounds that were done before the failure stay; the rest of the tokens then gives what it would have given.
TEST(an_executor_that_fails, leaves_the_tokens_before_the_step_that_fails) {
  for_each_stream([](const auto& s) {
    for (const index_t moment : moments) {
      const auto before = s.after(moment);
      for (const index_t count : steps) {
        SCOPED_TRACE(std::to_string(count) + " tokens after " + std::to_string(moment));
        auto twin = before;
        auto expected = s.room();
        s.step(twin, count, expected);
        for (const index_t workers : {1, 3}) {
          workspace memory;  // which a call that fails leaves in any state
          attention_options options;
          options.workspace = &memory;
          auto cache = before;
          auto actual = expected;
          const auto attempt = [&](const some_executor& executor) {
            cache = before;
            actual = s.room();
            s.step(cache, count, actual, options, executor);
          };
          const auto look = [&] {
            const index_t taken_in = cache.num_tokens() - moment;
            ASSERT_GE(taken_in, 0);
            ASSERT_LT(taken_in, count);
            ASSERT_EQ(taken_in % max_append, 0) << "a part of a step";
            s.step(cache, count - taken_in, actual, options, some_executor(workers));
            EXPECT_TRUE(same(actual.out, expected.out));
            EXPECT_TRUE(same(actual.lse, expected.lse));
            EXPECT_TRUE(s.go_on_the_same(cache, twin));
          };
          EXPECT_GE(fail_each_task(workers, attempt, look), 2 * lambda_attention::detail::divide_up(count, max_append));
          EXPECT_TRUE(same(actual, expected));
          EXPECT_TRUE(saved_bytes(cache) == saved_bytes(twin));
        }
      }
    }
  });
}

// As documented: max_rewind tokens can be taken back, more may be refused, and so may their outputs; what is not
// refused is right.
TEST(an_executor_that_fails, leaves_a_past_that_can_be_gone_back_to) {
  for_each_stream([](const auto& s) {
    for (const index_t moment : moments) {
      const auto before = s.after(moment);
      for (const index_t written : {index_t{1}, max_append}) {
        SCOPED_TRACE(std::to_string(written) + " tokens after " + std::to_string(moment));
        auto failed = before;
        auto unused = s.room();
        index_t tasks_until_failure = 0;
        EXPECT_THROW(s.step(failed, written, unused, {}, some_executor(1, &tasks_until_failure)), engine_error);
        ASSERT_EQ(failed.num_tokens(), moment);

        for (index_t tokens = 0; tokens <= std::min(moment, max_append + max_rewind); ++tokens) {
          SCOPED_TRACE(std::to_string(tokens) + " tokens back");
          auto fork = failed, twin = before;
          try {
            fork.rewind(tokens);
          } catch (const std::invalid_argument&) {
            EXPECT_GT(tokens, max_rewind);
            continue;
          }
          twin.rewind(tokens);
          EXPECT_TRUE(s.go_on_the_same(fork, twin));
        }
        for (index_t queries = 1; queries <= std::min(moment, max_append); ++queries) {
          SCOPED_TRACE(std::to_string(queries) + " queries");
          const auto q = s.in().q.view().slice(moment - queries, queries);
          auto out = s.room().out, expected = out;
          attend(q, before, expected.view().slice(0, queries), {}, some_executor(1));
          try {
            attend(q, failed, out.view().slice(0, queries), {}, some_executor(1));
          } catch (const std::invalid_argument&) {
            EXPECT_GT(queries, max_rewind);
            continue;
          }
          EXPECT_TRUE(same(out, expected));
        }

        // A file has what the cache has.
        std::stringstream file;
        failed.save(file);
        auto loaded = s.after(20);
        loaded.load(file);
        EXPECT_TRUE(s.go_on_the_same(loaded, before));
        const index_t back = std::min(moment, max_rewind);
        auto twin = before;
        loaded.rewind(back);
        twin.rewind(back);
        EXPECT_TRUE(s.go_on_the_same(loaded, twin));
      }
    }
  });
}

// Of different lengths: each keeps whole rounds.
TEST(an_executor_that_fails, leaves_many_streams_with_whole_rounds) {
  for_each_stream([](const auto& s) {
    using cache = typename std::decay_t<decltype(s)>::cache;
    constexpr std::array<index_t, 3> seen = {0, 53, 2}, counts = {40, 1, 20};
    std::vector<cache> before;
    for (const index_t tokens : seen) before.push_back(s.after(tokens));
    std::vector<cache> caches = before, twins = before;
    std::vector expected(3, s.room()), actual = expected;
    const auto go_to_the_end = [&](std::vector<cache>& streams, auto& r, const some_executor& executor) {
      const auto step = [&](std::size_t i) {
        const index_t first = streams[i].num_tokens(), count = seen[i] + counts[i] - first;
        return stream_step{s.in().q.view().slice(first, count), s.in().k.view().slice(first, count),
                           s.in().v.view().slice(first, count), &streams[i], r[i].out.view().slice(first, count)};
      };
      const std::array list = {step(0), step(1), step(2)};
      attend(list.data(), 3, {}, executor);
    };
    go_to_the_end(twins, expected, some_executor(1));
    const auto expect_the_end = [&] {
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(same(actual[i].out, expected[i].out)) << "stream " << i;
        EXPECT_TRUE(s.go_on_the_same(caches[i], twins[i])) << "stream " << i;
      }
    };
    const auto attempt = [&](const some_executor& executor) {
      caches = before;
      go_to_the_end(caches, actual, executor);
    };
    const auto look = [&] {
      index_t rounds = 0;
      for (std::size_t i = 0; i < 3; ++i)
        rounds = std::max(rounds, lambda_attention::detail::divide_up(caches[i].num_tokens() - seen[i], max_append));
      ASSERT_LT(rounds, 3);
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_EQ(caches[i].num_tokens(), seen[i] + std::min(counts[i], rounds * max_append)) << "stream " << i;
      go_to_the_end(caches, actual, some_executor(3));
      expect_the_end();
    };
    EXPECT_GE(fail_each_task(3, attempt, look), 9);
    expect_the_end();
  });
}

// Calls that change no cache: the same call again gives what it would have given.
TEST(an_executor_that_fails, leaves_nothing_behind_in_the_workspace) {
  constexpr int seed = 50;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  // Keys enough for several parts, which the workers share; the last that is done joins them.
  constexpr index_t n = 2600, group = 2;
  const inputs<> in = random_inputs(random, {n, 1, group, 16, 16});
  const lambda_shape shape = {3, 2500, unlimited};
  const rope position(16);
  auto cache = cache_for<f32>(in, shape, position);
  append(in.k.view(), in.v.view(), cache);
  middle_store<f32, rope> middle({3, 60, 60}, position, 1, 16, 16);
  append(in.k.view(), in.v.view(), middle);
  const key_run<const float, const float> runs[] = {
      {1000, in.k.view().slice(1000, n - 1000), in.v.view().slice(1000, n - 1000)},
      {0, in.k.view().slice(0, 1000), in.v.view().slice(0, 1000)}};
  workspace memory;
  attention_options options;
  options.workspace = &memory;
  const auto expect = [&](const char* name, index_t count, const auto& call) {
    SCOPED_TRACE(name);
    const auto q = in.q.view().slice(n - count, count);
    tensor<float> expected(count, group, 16), actual = expected, lse(count, group, 1);
    call(q, partial_result{expected.view(), lse.view()}, some_executor(1));
    for (const index_t workers : {1, 2, 5}) {
      const auto attempt = [&](const some_executor& e) { call(q, partial_result{actual.view(), lse.view()}, e); };
      const auto look = [&] {
        attempt(some_executor(workers));
        EXPECT_TRUE(same(actual, expected));
      };
      EXPECT_GE(fail_each_task(workers, attempt, look), 2);
      look();
    }
  };
  for (const index_t count : {1, 3, 200}) {
    SCOPED_TRACE(std::to_string(count) + " queries");
    expect("cache", count,
           [&](const auto& q, const auto& r, const some_executor& e) { attend(q, cache, r.out, options, e); });
    expect("part of a cache", count, [&](const auto& q, const auto& r, const some_executor& e) {
      attend_partial(q, cache, {0, n - 1}, r, options, e);
    });
    expect("runs", count, [&](const auto& q, const auto& r, const some_executor& e) {
      attend(query_run{n - count, q}, runs, 2, shape, position, r.out, options, e);
    });
    expect("part of runs", count, [&](const auto& q, const auto& r, const some_executor& e) {
      attend_partial(query_run{n - count, q}, runs, 2, shape, position, {0, n - 1}, r, options, e);
    });
    expect("the best of the middle", count, [&](const auto& q, const auto& r, const some_executor& e) {
      attend_top_k(q, middle, {5, 100}, r, options, e);
    });
  }
  expect("sequence", n, [&](const auto& q, const auto& r, const some_executor& e) {
    attend(q, in.k.view(), in.v.view(), shape, position, r.out, options, e);
  });
  expect("part of a sequence", n, [&](const auto& q, const auto& r, const some_executor& e) {
    attend_partial(q, in.k.view(), in.v.view(), shape, position, {5, 900}, r, options, e);
  });
}

// A pool of somebody else's, whose Schedule() fails at some call: the workers that it has started are waited for.
class failing_pool : public Eigen::ThreadPoolInterface {
 public:
  explicit failing_pool(int failing_call) : failing_call_(failing_call) {}
  ~failing_pool() override { join(); }

  void Schedule(std::function<void()> f) override {
    if (num_calls_++ == failing_call_) throw engine_error{};
    threads_.emplace_back(std::move(f));
  }
  int NumThreads() const override { return 3; }
  int CurrentThreadId() const override { return -1; }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  int failing_call_;
  int num_calls_ = 0;
  std::vector<std::thread> threads_;
};

TEST(an_executor_that_fails, waits_for_the_workers_that_it_has_started) {
  for (const int failing_call : {0, 1, 2, 3}) {
    SCOPED_TRACE("call " + std::to_string(failing_call));
    failing_pool pool(failing_call);
    const index_t started = failing_call;
    std::atomic<index_t> begun{0}, running{0}, done{0};
    std::array<std::atomic<int>, 3> first_tasks = {};
    const auto run = [&] {
      eigen_thread_pool(pool).run(50, [&](index_t task, index_t worker) {
        ++running;
        if (task < started) {  // as many at the same time as there are workers: each is another
          ++first_tasks[static_cast<std::size_t>(worker)];
          for (++begun; begun < started;) std::this_thread::yield();
        }
        ++done;
        --running;
      });
    };
    if (failing_call < 3) {
      EXPECT_THROW(run(), engine_error);
    } else {
      run();
    }
    EXPECT_EQ(running, 0);
    EXPECT_EQ(done, started == 0 ? 0 : 50) << "who was started draws all tasks";
    for (index_t worker = 0; worker < 3; ++worker)
      EXPECT_EQ(first_tasks[static_cast<std::size_t>(worker)], worker < started ? 1 : 0) << "worker " << worker;
  }
}

/// What a call is to give whoever runs it: that of the serial executor.
class known_call {
 public:
  known_call() : in_(random()), expected_(output_for<float>(in_)) { run(expected_, serial_executor{}); }

  template <class Executor>
  bool is_right_on(const Executor& executor) const {
    tensor<float> out = output_for<float>(in_);
    run(out, executor);
    return same(out, expected_);
  }

 private:
  static inputs<> random() {
    constexpr int seed = 51;
    generator numbers(seed);
    return random_inputs(numbers, {300, 2, 2});
  }
  // A prompt, a few tokens and one more.
  template <class Executor>
  void run(tensor<float>& out, const Executor& executor) const {
    kv_cache<bf16, rope> cache({3, 40, 20}, rope(12), 2, 12, 20, {100});
    for (const index_t count : {296, 3, 1}) {
      const index_t first = cache.num_tokens();
      attend(in_.q.view().slice(first, count), in_.k.view().slice(first, count), in_.v.view().slice(first, count),
             cache, out.view().slice(first, count), {}, executor);
    }
  }

  inputs<> in_;
  tensor<float> expected_;
};

TEST(executors_of_any_size, give_the_bits_of_the_serial_one) {
  const known_call call;
  for (const index_t workers : {1, 2, 7, 64, 1000}) EXPECT_TRUE(call.is_right_on(some_executor(workers))) << workers;
  // A pool of one, also from its own thread, which nobody has to wait for.
  Eigen::ThreadPool one(1), many(16);
  EXPECT_TRUE(call.is_right_on(eigen_thread_pool(one)));
  bool is_right = false;
  Eigen::Notification done;
  one.Schedule([&] {
    is_right = call.is_right_on(eigen_thread_pool(one));
    done.Notify();
  });
  done.Wait();
  EXPECT_TRUE(is_right);
  EXPECT_TRUE(call.is_right_on(eigen_thread_pool(many)));
#ifdef _OPENMP
  for (const int workers : {1, 16, 200}) EXPECT_TRUE(call.is_right_on(openmp_executor(workers))) << workers;
#endif
}

/// Calls inside the tasks of another executor, a cache for each, on executors of their own.
template <class Outer>
void expect_calls_inside(const Outer& outer) {
  const known_call call;
  constexpr index_t num_calls = 8;
  std::array<bool, num_calls> is_right = {};
  Eigen::ThreadPool inner_pool(2);
  outer.run(num_calls, [&](index_t task, index_t) {
    bool& result = is_right[static_cast<std::size_t>(task)];
    switch (task % 4) {
      case 0:
        result = call.is_right_on(serial_executor{});
        break;
      case 1:
        result = call.is_right_on(some_executor(3));
        break;
      case 2:
        result = call.is_right_on(eigen_thread_pool(inner_pool));  // from several threads at a time
        break;
      default:
#ifdef _OPENMP
        result = call.is_right_on(openmp_executor(2));
#else
        result = call.is_right_on(some_executor(2));
#endif
    }
  });
  for (index_t task = 0; task < num_calls; ++task) EXPECT_TRUE(is_right[static_cast<std::size_t>(task)]) << task;
}

TEST(executors_inside_each_other, give_the_bits_of_the_serial_one) {
  expect_calls_inside(serial_executor{});
  Eigen::ThreadPool pool(3);
  expect_calls_inside(eigen_thread_pool(pool));
#ifdef _OPENMP
  expect_calls_inside(openmp_executor(3));
  // Where regions inside regions have threads of their own.
  const int levels = omp_get_max_active_levels();
  for (const int more : {1, 2}) {
    omp_set_max_active_levels(more);
    expect_calls_inside(openmp_executor(3));
#pragma omp parallel num_threads(2)
    {
#pragma omp single
      expect_calls_inside(openmp_executor(2));
    }
  }
  omp_set_max_active_levels(levels);
#endif
}

}  // namespace
