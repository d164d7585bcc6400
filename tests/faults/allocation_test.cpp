// Memory runs out: the first allocation of a call fails, then its second, and so on until none does. Each time
// std::bad_alloc comes out and nothing is leaked or changed; and the call that then succeeds gives the bits of one that
// nothing has happened to.
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>

#ifdef _OPENMP
#include <lambda_attention/executor/openmp.hpp>
#endif

#include <faults/streams.hpp>
#include <support/heap.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <ios>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace faults;
namespace heap = support::heap;

/// Whether a call that failed may keep memory, as a middle_store does that has made room.
enum class keeps { nothing, room };

/// Looks, by look(), at what the call must have left alone after each failure. Returns how many there were before it
/// succeeded.
template <class Error = std::bad_alloc, class Call, class Look>
long fail_each_allocation(Call&& call, Look&& look, keeps failed_call = keeps::nothing) {
  for (long number = 1;; ++number) {
    SCOPED_TRACE("allocation " + std::to_string(number) + " fails");
    const long live = heap::num_live;
    bool failed = false;
    heap::num_until_failure = number;
    try {
      call();
    } catch (const Error&) {
      failed = true;
    }
    const bool reached = heap::num_until_failure.exchange(0) <= 0;
    EXPECT_EQ(failed, reached) << "whether the call fails, and whether an allocation has";
    if (!failed) return number - 1;
    if (failed_call == keeps::nothing) {
      EXPECT_EQ(heap::num_live, live) << "leaked";
    }
    look();
  }
}
template <class Call>
long fail_each_allocation(Call&& call) {
  return fail_each_allocation(call, [] {});
}

/// Of call(results), which changes nothing else.
template <class Results>
void expect_no_trace(const Results& room, long num_failures, const std::function<void(Results&)>& call) {
  Results expected = room, actual = room;
  call(expected);
  EXPECT_EQ(fail_each_allocation([&] { call(actual); }, [&] { EXPECT_TRUE(same(actual, room)); }), num_failures);
  EXPECT_TRUE(same(actual, expected));
  EXPECT_FALSE(same(actual, room)) << "nothing is written";
}

/// Of call(cache, results).
template <class Storage>
void expect_no_trace(
    const stream<Storage>& s, const typename stream<Storage>::cache& before, long num_failures,
    const std::function<void(typename stream<Storage>::cache&, results<typename stream<Storage>::real>&)>& call) {
  auto twin = before, cache = before;
  const auto room = s.room();
  auto expected = room, actual = room;
  const std::string saved = saved_bytes(before);
  call(twin, expected);
  const auto look = [&] {
    EXPECT_TRUE(saved_bytes(cache) == saved);
    EXPECT_TRUE(s.go_on_the_same(cache, before));
    EXPECT_TRUE(same(actual, room));
  };
  EXPECT_EQ(fail_each_allocation([&] { call(cache, actual); }, look), num_failures);
  EXPECT_TRUE(saved_bytes(cache) == saved_bytes(twin));
  EXPECT_TRUE(s.go_on_the_same(cache, twin));
  EXPECT_TRUE(same(actual, expected));
  EXPECT_FALSE(same(actual, room)) << "nothing is written";
}

/// Options with a workspace that is too small, or without one: the second allocation of a call, or its first, is of
/// scratch.
struct scratch {
  explicit scratch(bool is_given) {
    if (!is_given) return;
    memory.emplace(100);
    options.workspace = &*memory;
  }
  std::optional<workspace> memory;
  attention_options options;
};

TEST(a_failed_allocation, leaves_a_step_undone) {
  for_each_stream([](const auto& s) {
    for (const index_t moment : moments) {
      const auto before = s.after(moment);
      for (const index_t count : steps) {
        for (const bool in_workspace : {false, true}) {
          for (const index_t workers : {1, 3}) {
            SCOPED_TRACE(std::to_string(count) + " tokens after " + std::to_string(moment) + ", workers " +
                         std::to_string(workers) + (in_workspace ? ", in a workspace" : ""));
            expect_no_trace(s, before, in_workspace ? 2 : 1, [&](auto& cache, auto& r) {
              const scratch own(in_workspace);
              s.step(cache, count, r, own.options, some_executor(workers));
            });
          }
        }
      }
    }
  });
}

TEST(a_failed_allocation, leaves_queries_of_a_cache_unanswered) {
  for_each_stream([](const auto& s) {
    const auto before = s.after(53);
    for (const index_t count : {1, 3, 10}) {
      const index_t first = before.num_tokens() - count;
      const auto q = s.in().q.view().slice(first, count);
      for (const bool in_workspace : {false, true}) {
        SCOPED_TRACE(std::to_string(count) + (in_workspace ? " queries, in a workspace" : " queries"));
        expect_no_trace(s, before, in_workspace ? 2 : 1, [&](auto& cache, auto& r) {
          scratch own(in_workspace);
          own.options.lse = r.lse.view().slice(first, count);
          if (count <= 4) own.options.weights = r.weights.view().slice(first, count);
          attend(q, cache, r.out.view().slice(first, count), own.options, some_executor(3));
        });
        expect_no_trace(s, before, in_workspace ? 2 : 1, [&](auto& cache, auto& r) {
          const scratch own(in_workspace);
          attend_partial(q, cache, {1, 48},
                         partial_result{r.out.view().slice(first, count), r.lse.view().slice(first, count)},
                         own.options, some_executor(3));
        });
      }
    }
  });
}

// Streams that end in different rounds, of which the last takes the most scratch.
TEST(a_failed_allocation, leaves_a_step_of_many_streams_undone) {
  for_each_stream([](const auto& s) {
    using cache = typename std::decay_t<decltype(s)>::cache;
    using real = typename std::decay_t<decltype(s)>::real;
    struct part {
      index_t seen;
      index_t count;
    };
    constexpr part parts[] = {{0, 40}, {53, 1}, {2, 20}};
    const auto call = [&](std::vector<cache>& caches, std::vector<results<real>>& r) {
      const auto step = [&](std::size_t i) {
        const auto [first, count] = parts[i];
        return stream_step{s.in().q.view().slice(first, count), s.in().k.view().slice(first, count),
                           s.in().v.view().slice(first, count), &caches[i], r[i].out.view().slice(first, count)};
      };
      const std::array list = {step(0), step(1), step(2)};
      attend(list.data(), 3, {}, some_executor(3));
    };
    std::vector<cache> before;
    for (const part& p : parts) before.push_back(s.after(p.seen));
    std::vector<cache> twins = before, caches = before;
    std::vector<results<real>> expected(3, s.room()), actual = expected;
    call(twins, expected);
    const auto expect_same = [&](const std::vector<cache>& others) {
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(saved_bytes(caches[i]) == saved_bytes(others[i])) << "stream " << i;
        EXPECT_TRUE(s.go_on_the_same(caches[i], others[i])) << "stream " << i;
      }
    };
    EXPECT_EQ(fail_each_allocation([&] { call(caches, actual); }, [&] { expect_same(before); }),
              2);  // to compare the streams; scratch
    expect_same(twins);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same(actual[i], expected[i])) << "stream " << i;
  });
}

TEST(a_failed_allocation, cannot_happen_where_nothing_is_allocated) {
  for_each_stream([](const auto& s) {
    auto cache = s.after(20);
    EXPECT_EQ(fail_each_allocation([&] { append(s.in().k.view(), s.in().v.view(), cache); }), 0);
    EXPECT_EQ(fail_each_allocation([&] { cache.rewind(max_rewind); }), 0);
    EXPECT_EQ(fail_each_allocation([&] { cache.clear(); }), 0);
  });
  generator random(41);
  const tensor<float> out = random_tensor<float>(random, 3, 4, 20), lse = random_tensor<float>(random, 3, 4, 1);
  tensor<float> merged(3, 4, 20);
  const partial_result<const float, const float> parts[] = {{out.view(), lse.view()}, {out.view(), lse.view()}};
  const partial_result<float> result = {merged.view(), {}};
  EXPECT_EQ(fail_each_allocation([&] { merge(parts, 2, result); }), 0);
  EXPECT_EQ(fail_each_allocation([&] { merge(parts[0], parts[1], result); }), 0);
}

// Forks, and what takes the place of a stream. The other has another geometry: what is left of one must not meet the
// memory of the other.
template <class Cache>
void expect_no_trace_of_copies(const Cache& original, const Cache& other) {
  const std::string saved = saved_bytes(original), of_other = saved_bytes(other);
  ASSERT_TRUE(saved != of_other);
  const auto position = original.position();
  const long of_position = fail_each_allocation([&] { [[maybe_unused]] const auto copy(position); });
  const auto made = [&] {
    Cache(original.shape(), position, original.num_kv_heads(), original.head_dim(), original.v_head_dim());
  };
  EXPECT_EQ(fail_each_allocation(made), of_position + 1);
  EXPECT_EQ(fail_each_allocation([&] { const Cache fork(original); }), of_position + 1);

  Cache assigned = original;
  const auto is = [&](const Cache& expected) {
    EXPECT_TRUE(saved_bytes(assigned) == saved_bytes(expected));
    EXPECT_EQ(assigned.shape().window, expected.shape().window);
    EXPECT_EQ(assigned.bytes(), expected.bytes());
  };
  EXPECT_EQ(fail_each_allocation([&] { assigned = other; }, [&] { is(original); }), of_position + 1);
  is(other);
  EXPECT_EQ(fail_each_allocation([&] { assigned = original; }, [&] { is(other); }), of_position + 1);
  is(original);
  EXPECT_TRUE(saved_bytes(original) == saved);
  EXPECT_TRUE(saved_bytes(other) == of_other);
}
TEST(a_failed_allocation, leaves_both_sides_of_a_copy_as_they_were) {
  lambda_shape wider = lm_infinite(5, 70);
  for_each_stream([&](const auto& s) {
    using cache = typename std::decay_t<decltype(s)>::cache;
    cache other(wider, s.position(), size.kv_heads, size.head_dim, size.v_head_dim, {40, 3});
    append(s.in().k.view(), s.in().v.view(), other);
    expect_no_trace_of_copies(s.after(53), other);
  });
  const auto with = [&](const auto& position) {
    using cache = kv_cache<f16, std::decay_t<decltype(position)>>;
    expect_no_trace_of_copies(cache(lm_infinite(3, 11), position, 2, 12, 20), cache(wider, position, 1, 12, 20));
  };
  with(rope(12));
  with(alibi(4));
  with(none());
}

TEST(a_failed_allocation, leaves_a_stream_that_was_to_be_loaded_over) {
  for_each_stream([](const auto& s) {
    const auto original = s.after(53), before = s.after(7);
    const std::string saved = saved_bytes(original), own = saved_bytes(before);
    auto cache = before;
    std::istringstream file(saved);
    const auto call = [&] {
      file.clear();
      file.seekg(0);
      cache.load(file);
    };
    const auto look = [&] {
      EXPECT_TRUE(saved_bytes(cache) == own);
      EXPECT_TRUE(s.go_on_the_same(cache, before));
    };
    EXPECT_EQ(fail_each_allocation(call, look), 1);
    EXPECT_TRUE(saved_bytes(cache) == saved);
    EXPECT_TRUE(s.go_on_the_same(cache, original));
  });
}

// A stream of the standard library takes memory that it does not find for a failure of its own, unless it is told to
// throw.
TEST(a_failed_allocation, of_the_stream_is_a_refusal_of_save) {
  for_each_stream([](const auto& s) {
    const auto cache = s.after(53);
    const std::string saved = saved_bytes(cache);
    const auto save_to_string = [&](std::ios::iostate that_throw) {
      std::ostringstream out;
      out.exceptions(that_throw);
      cache.save(out);
    };
    const auto look = [&] { EXPECT_TRUE(saved_bytes(cache) == saved); };
    EXPECT_GT(fail_each_allocation<std::invalid_argument>([&] { save_to_string(std::ios::goodbit); }, look), 2);
    EXPECT_GT(fail_each_allocation([&] { save_to_string(std::ios::badbit); }, look), 2);
  });
}

template <class T>
void expect_no_trace_of_sequences() {
  constexpr int seed = 42;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  constexpr extents e = {90, 2, 2, 16, 32};
  const inputs<T> in = random_inputs<T>(random, e);
  const lambda_shape shape = {3, 11, 5};
  const auto run = [&](index_t first, index_t last) {
    return key_run{first, in.k.view().slice(first, last - first), in.v.view().slice(first, last - first)};
  };
  const std::vector<key_run<const T, const T>> runs = {run(40, 90), run(0, 7), run(7, 40)};
  const index_t num_runs = static_cast<index_t>(runs.size());
  using tensors = results<float>;
  const some_executor executor(3);
  for (const some_encoding& position : {some_encoding(rope(16)), some_encoding(alibi(4)), some_encoding()}) {
    for (const bool in_workspace : {false, true}) {
      const auto expect = [&](index_t count, const auto& call) {
        const tensors room = {tensor<float>(count, e.heads(), e.v_head_dim), tensor<float>(count, e.heads(), 1),
                              tensor<float>(count, e.heads(), shape.num_sinks + shape.window)};
        expect_no_trace<tensors>(room, in_workspace ? 2 : 1, [&](tensors& r) {
          scratch own(in_workspace);
          call(r, own.options);
        });
      };
      expect(e.tokens, [&](tensors& r, attention_options& options) {
        options.lse = r.lse.view();
        attend(in.q.view(), in.k.view(), in.v.view(), shape, position, r.out.view(), options, executor);
      });
      expect(e.tokens, [&](tensors& r, const attention_options& options) {
        attend_partial(in.q.view(), in.k.view(), in.v.view(), shape, position, {1, 60},
                       partial_result{r.out.view(), r.lse.view()}, options, executor);
      });
      for (const index_t count : {1, 3, 40}) {
        const query_run newest = {e.tokens - count, in.q.view().slice(e.tokens - count, count)};
        expect(count, [&](tensors& r, attention_options& options) {
          options.lse = r.lse.view();
          if (count <= 4) options.weights = r.weights.view();
          attend(newest, runs.data(), num_runs, shape, position, r.out.view(), options, executor);
        });
        expect(count, [&](tensors& r, const attention_options& options) {
          attend_partial(newest, runs.data(), num_runs, shape, position, {1, 88},
                         partial_result{r.out.view(), r.lse.view()}, options, executor);
        });
      }
    }
  }
}
TEST(a_failed_allocation, leaves_outputs_of_sequences_and_runs_alone) {
  expect_no_trace_of_sequences<float>();
  expect_no_trace_of_sequences<half>();
  expect_no_trace_of_sequences<bfloat16>();
}

// A store may keep the room that it has made.
TEST(a_failed_allocation, leaves_the_tokens_of_a_middle_store) {
  constexpr int seed = 43;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  constexpr index_t n = 400, first_part = 70, queries = 3;
  const inputs<> in = random_inputs(random, {n, 2, 2});
  const lambda_shape shape = lm_infinite(3, 11);
  for_each_storage([&](auto storage, const char* name) {
    SCOPED_TRACE(name);
    using store = middle_store<decltype(storage), rope>;
    using output = tensor<typename store::compute_type>;
    const rope position(12);
    const auto add = [&](store& s, index_t last) {
      const index_t first = s.num_tokens();
      append(in.k.view().slice(first, last - first), in.v.view().slice(first, last - first), s);
    };
    const auto made = [&](index_t tokens) {
      store s(shape, position, 2, 12, 20);
      add(s, tokens);
      return s;
    };
    tensor<float> lse(queries, 4, 1);
    const auto best = [&](const store& s, output& out, const attention_options& options) {
      attend_top_k(in.q.view().slice(s.num_tokens() - queries, queries), s, {5, 20},
                   partial_result{out.view(), lse.view()}, options, some_executor(3));
    };
    const auto expect_same = [&](const store& a, const store& b) {
      ASSERT_EQ(a.num_tokens(), b.num_tokens());
      output of_a(queries, 4, 20), of_b = of_a;
      best(a, of_a, {});
      best(b, of_b, {});
      EXPECT_TRUE(same(of_a, of_b));
    };

    const long live = heap::num_live;
    {
      const long of_position = fail_each_allocation([&] { const rope copy(position); });
      EXPECT_EQ(fail_each_allocation([&] { store(shape, position, 2, 12, 20); }), of_position);
      const store part = made(first_part), whole = made(n);
      store grown = part;
      EXPECT_GT(fail_each_allocation([&] { add(grown, n); }, [&] { expect_same(grown, part); }, keeps::room), 2);
      expect_same(grown, whole);
      grown.rewind(n - first_part);
      expect_same(grown, part);

      EXPECT_GT(fail_each_allocation([&] { const store copy(whole); }), of_position + 2);
      store assigned = part;
      EXPECT_GT(fail_each_allocation([&] { assigned = whole; }, [&] { expect_same(assigned, part); }), of_position + 2);
      expect_same(assigned, whole);
      EXPECT_GT(fail_each_allocation([&] { assigned = part; }, [&] { expect_same(assigned, whole); }), of_position + 2);
      expect_same(assigned, part);

      for (const bool in_workspace : {false, true})
        expect_no_trace<output>(output(queries, 4, 20), in_workspace ? 2 : 1, [&](output& out) {
          const scratch own(in_workspace);
          best(whole, out, own.options);
        });
    }
    EXPECT_EQ(heap::num_live, live) << "leaked";
  });
}

/// An encoding that is made, copied and assigned: a small one, and a large one that takes its place.
template <class Small, class Large>
void expect_no_trace_of_encodings(const Small& small, const Large& large) {
  generator random(44);
  const inputs<> narrow = random_inputs(random, {40, 1, 2, 8}), wide = random_inputs(random, {40, 1, 6, 16});
  EXPECT_GT(fail_each_allocation([&] { large(); }), 0);
  const auto from = large(), before = small();
  EXPECT_GT(fail_each_allocation([&] { const auto copy(from); }), 0);
  auto assigned = before;
  const auto is = [&](const auto& expected, const inputs<>& in) {
    ASSERT_EQ(assigned.num_heads(), expected.num_heads());
    const lambda_shape shape = {3, 11, 5};
    EXPECT_TRUE(same(attend_sequence<float>(in, shape, assigned), attend_sequence<float>(in, shape, expected)));
    const std::vector<long double> row(16, 1);
    for (const index_t distance : {0, 3, 30}) {
      const index_t head = std::max<index_t>(assigned.num_heads(), 1) - 1, dim = in.q.view().dim;
      EXPECT_EQ(assigned.bias(head, distance), expected.bias(head, distance));
      EXPECT_EQ(assigned.score(row.data(), row.data(), dim, distance),
                expected.score(row.data(), row.data(), dim, distance));
    }
  };
  EXPECT_GT(fail_each_allocation([&] { assigned = from; }, [&] { is(before, narrow); }), 0);
  is(from, wide);
  EXPECT_GT(fail_each_allocation([&] { assigned = before; }, [&] { is(from, wide); }), 0);
  is(before, narrow);
}
TEST(a_failed_allocation, leaves_encodings_as_they_were) {
  const double frequencies[] = {1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003}, slopes[] = {0.5, 0.4, 0.3, 0.2, 0.1, 0};
  generator random(45);
  const tensor<float> weights = random_tensor<float>(random, 32, 1, 6);
  const float* const w = weights.view().data;
  expect_no_trace_of_encodings([] { return rope(8); }, [] { return rope(16); });
  expect_no_trace_of_encodings([&] { return rope(8, frequencies, 3); }, [&] { return rope(16, frequencies, 8); });
  expect_no_trace_of_encodings([] { return scaled_rope(8, 10000, yarn_scaling{4}); },
                               [] { return scaled_rope(16, 500000, llama3_scaling{}); });
  expect_no_trace_of_encodings([] { return alibi(2); }, [] { return alibi(6); });
  expect_no_trace_of_encodings([&] { return alibi(slopes, 2); }, [&] { return alibi(slopes, 6); });
  expect_no_trace_of_encodings([&] { return t5_bias(w, 4, 2, 5); }, [&] { return t5_bias(w, 32, 6); });
}

TEST(a_failed_allocation, leaves_a_table_of_biases_as_it_was) {
  bias_table small(1, 2), large(3, 50);
  small.set(0, 1, 2);
  large.set(2, 49, 7);
  bias_table assigned = small;
  const auto is = [&](const bias_table& other) {
    ASSERT_EQ(assigned.num_heads(), other.num_heads());
    ASSERT_EQ(assigned.num_distances(), other.num_distances());
    const index_t head = other.num_heads() - 1, distance = other.num_distances() - 1;
    EXPECT_EQ(assigned.row(head, float())[distance], other.row(head, float())[distance]);
    EXPECT_EQ(assigned.row(head, double())[distance], other.row(head, double())[distance]);
  };
  EXPECT_EQ(fail_each_allocation([] { bias_table(3, 50); }), 2);
  EXPECT_EQ(fail_each_allocation([&] { assigned = large; }, [&] { is(small); }), 2);
  is(large);
  EXPECT_EQ(fail_each_allocation([&] { assigned = small; }, [&] { is(large); }), 2);
  is(small);
}

TEST(a_failed_allocation, leaves_a_workspace_as_it_was) {
  EXPECT_EQ(fail_each_allocation([] { workspace(1000); }), 1);
  workspace small(10), assigned;
  const workspace large(1000);
  EXPECT_EQ(fail_each_allocation([&] { small.reserve(20); }, [&] { EXPECT_EQ(small.bytes(), 10); }), 1);
  EXPECT_EQ(small.bytes(), 20);
  EXPECT_EQ(fail_each_allocation([&] { assigned = large; }, [&] { EXPECT_EQ(assigned.bytes(), 0); }), 1);
  EXPECT_EQ(assigned.bytes(), 1000);
}

// What an executor allocates to start its workers would fail too, once some of them run.
template <class Executor>
void expect_no_trace_of_workers(const Executor& executor) {
  generator random(46);
  const inputs<> in = random_inputs(random, {600, 2, 2});
  const lambda_shape shape = lm_infinite(3, 60);
  const rope position(12);
  using output = tensor<float>;
  expect_no_trace<output>(output_for<float>(in), 1, [&](output& out) {
    attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), {}, executor);
  });
  const auto cache = cache_for<f16>(in, shape, position);
  const long of_fork = fail_each_allocation([&] { const auto fork(cache); });
  expect_no_trace<output>(output_for<float>(in), of_fork + 1, [&](output& out) {
    auto fork = cache;
    attend(in.q.view(), in.k.view(), in.v.view(), fork, out.view(), {}, executor);
  });
}
TEST(a_failed_allocation, leaves_no_worker_behind) {
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    expect_no_trace_of_workers(eigen_thread_pool(pool));
  }
#ifdef _OPENMP
  for (const int threads : {1, 3}) expect_no_trace_of_workers(openmp_executor(threads));
#endif
}

}  // namespace
