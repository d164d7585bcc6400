// Law 6: any executor and any number of workers give the same bits.
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>

#ifdef _OPENMP
#include <lambda_attention/executor/openmp.hpp>
#endif

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/reversed_executor.hpp>

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// Any executor, its type erased: the calls of this file are compiled once for all.
class any_executor {
 public:
  template <class Executor>
  explicit any_executor(const Executor& executor)
      : num_workers_(executor.num_workers()),
        run_([executor](index_t num_tasks, const task& f) { Executor(executor).run(num_tasks, f); }) {}

  index_t num_workers() const { return num_workers_; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    run_(num_tasks, std::cref(f));
  }

 private:
  using task = std::function<void(index_t number, index_t worker)>;
  index_t num_workers_;
  std::function<void(index_t num_tasks, const task& f)> run_;
};

template <class Use>
void for_each_executor(Use&& use) {
  use(any_executor(reversed_executor{}), "reversed");
  for (const int workers : {1, 2, 3, 4}) {
    Eigen::ThreadPool pool(workers);
    use(any_executor(eigen_thread_pool(pool)), "Eigen, " + std::to_string(workers));
#ifdef _OPENMP
    use(any_executor(openmp_executor(workers)), "OpenMP, " + std::to_string(workers));
#endif
  }
}

class threads : public law {};
INSTANTIATE_TEST_SUITE_P(laws, threads, every_encoding_and_group(), name_of_case);

// By the kernels that an instruction set has for elements of that format.
template <class T>
void leave_every_bit_of_a_sequence(const extents& e, encoding encoded, row_format format) {
  constexpr int seed = 6;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const inputs<T> in = random_inputs<T>(random, e);
  const lambda_shape shape = {3, 40, 20};
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      if (!has_own_kernels(isa, format)) continue;
      SCOPED_TRACE(name_of(isa));
      tensor<float> serial_lse(e.tokens, e.heads(), 1), lse = serial_lse;
      attention_options options;
      options.isa = isa;
      options.lse = serial_lse.view();
      const tensor<float> serial = attend_sequence<float>(in, shape, position, options);
      options.lse = lse.view();
      for_each_executor([&](const any_executor& executor, const std::string& name) {
        tensor<float> out = output_for<float>(in);
        attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), options, executor);
        EXPECT_TRUE(same_bits(out.view(), serial.view())) << name;
        EXPECT_TRUE(same_bits(lse.view(), serial_lse.view())) << name;
      });
    }
  });
}

TEST_P(threads, leave_every_bit_of_a_sequence) {
  leave_every_bit_of_a_sequence<float>({700, 2, group()}, encoding_under_test(),
                                       row_format::f32);  // several tasks a head
  leave_every_bit_of_a_sequence<bfloat16>({700, 1, group(), 32, 32}, encoding_under_test(), row_format::bf16);
}

// A call on two streams of unequal length, then one token more for each.
template <class Storage, class Position>
auto attend_streams(const inputs<>& in, const Position& position, isa_level isa, const any_executor& executor) {
  const index_t n = in.q.view().tokens, half = n / 2;
  attention_options options;
  options.isa = isa;
  auto out = output_for<typename Storage::compute_type>(in);
  auto a = cache_for<Storage>(in, {3, 40, 20}, position, {64});
  auto b = a;
  const auto attend_both = [&](index_t first_a, index_t last_a, index_t first_b, index_t last_b) {
    const auto step = [&](index_t first, index_t last, auto& cache) {
      return stream_step{in.q.view().slice(first, last - first), in.k.view().slice(first, last - first),
                         in.v.view().slice(first, last - first), &cache, out.view().slice(first, last - first)};
    };
    const std::vector steps = {step(first_a, last_a, a), step(first_b, last_b, b)};
    attend(steps.data(), 2, options, executor);
  };
  attend_both(0, half - 1, half, n - 1);
  attend_both(half - 1, half, n - 1, n);
  return out;
}

TEST_P(threads, leave_every_bit_of_streams) {
  constexpr int seed = 7;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {201, 2, group()};
  const inputs<> in = random_inputs(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa));
      for_each_storage([&](auto storage, const char* storage_name) {
        using storage_type = decltype(storage);
        if (!has_own_kernels(isa, storage_type::format)) return;
        const auto serial = attend_streams<storage_type>(in, position, isa, any_executor(serial_executor{}));
        for_each_executor([&](const any_executor& executor, const std::string& name) {
          EXPECT_TRUE(same_bits(attend_streams<storage_type>(in, position, isa, executor).view(), serial.view()))
              << storage_name << ", " << name;
        });
      });
    }
  });
}

// Workers that outnumber the KV heads share the keys of few tokens. More tokens at a time
// are taken in tiles, by other code.
class threads_that_share_keys : public law {};
INSTANTIATE_TEST_SUITE_P(laws, threads_that_share_keys,
                         testing::Combine(testing::Values(encoding::rope_half_split, encoding::alibi,
                                                          encoding::t5_bias),
                                          testing::Values<index_t>(1, 3, 4, 19)),
                         name_of_case);

TEST_P(threads_that_share_keys, leave_every_bit) {
  constexpr int seed = 8;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {3200, 1, group()};
  const inputs<> in = random_inputs(random, e);
  const lambda_shape shape = {3, 3068, 1700};
  const index_t few = group() == 1 ? 15 : 3;  // as many as are taken together
  constexpr index_t more = 20;
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa));
      for_each_storage([&](auto storage, const char* storage_name) {
        using storage_type = decltype(storage);
        if (!has_own_kernels(isa, storage_type::format)) return;
        using real = typename storage_type::compute_type;
        auto cache = cache_for<storage_type>(in, shape, position, {64});
        const index_t first = e.tokens - few;
        append(in.k.view().slice(0, first), in.v.view().slice(0, first), cache, isa);
        auto one_by_one = cache;
        append(in.k.view().slice(first, few), in.v.view().slice(first, few), cache, isa);
        attention_options options;
        options.isa = isa;
        tensor<real> in_tiles(more, e.heads(), e.v_head_dim), serial(few, e.heads(), e.v_head_dim);
        attend(in.q.view().slice(e.tokens - more, more), cache, in_tiles.view(), options);
        tensor<float> serial_lse(few, e.heads(), 1);
        options.lse = serial_lse.view();
        const auto queries = in.q.view().slice(first, few);
        attend(queries, cache, serial.view(), options);
        EXPECT_LE(nmse(serial.view(), in_tiles.view().slice(more - few, few)),
                  between_two(stored_bound<storage_type>(isa)))
            << storage_name;
        options.lse = {};
        tensor<real> alone(few, e.heads(), e.v_head_dim);
        for (index_t t = 0; t < few; ++t)
          attend(in.q.view().slice(first + t, 1), in.k.view().slice(first + t, 1), in.v.view().slice(first + t, 1),
                 one_by_one, alone.view().slice(t, 1), options);
        EXPECT_LE(nmse(alone.view(), serial.view()), between_two(stored_bound<storage_type>(isa)))
            << storage_name << ", one by one";
        for_each_executor([&](const any_executor& executor, const std::string& name) {
          tensor<real> out(few, e.heads(), e.v_head_dim);
          tensor<float> lse(few, e.heads(), 1);
          options.lse = lse.view();
          attend(queries, cache, out.view(), options, executor);
          EXPECT_TRUE(same_bits(out.view(), serial.view())) << storage_name << ", " << name;
          EXPECT_TRUE(same_bits(lse.view(), serial_lse.view())) << storage_name << ", " << name;
        });
      });
    }
  });
}

// Looks at what has been written by then after each task.
template <class Look>
struct watched_executor {
  Look look;

  index_t num_workers() const { return 3; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    for (index_t task = 0; task < num_tasks; ++task) {
      f(task, task % num_workers());
      look(num_tasks - task - 1);
    }
  }
};

// Whoever ends the last part of the keys writes the output, and no one before: it might be reading what others still write.
TEST(workers_that_share_keys, write_no_output_before_all_parts_are_done) {
  constexpr int seed = 9;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {5600, 1, 2};
  const inputs<> in = random_inputs(random, e);
  auto cache = cache_for<f32>(in, lm_infinite(3, 5500), rope(e.head_dim), {64});
  append(in.k.view(), in.v.view(), cache);
  tensor<float> out(1, e.heads(), e.v_head_dim);
  const tensor<float> untouched = out;
  index_t looks = 0;
  const auto look = [&](index_t tasks_left) {
    EXPECT_EQ(same_bits(out.view(), untouched.view()), tasks_left > 0) << tasks_left << " tasks left";
    ++looks;
  };
  attend(in.q.view().slice(e.tokens - 1, 1), cache, out.view(), {}, watched_executor<decltype(look)>{look});
  EXPECT_EQ(looks, 3);
}

}  // namespace
