// What this processor can do: multiplications and additions a second, and bytes read a second. Measured just before what is
// compared with it, for a shared machine is not equally fast at all times.
#pragma once

#include "random.hpp"
#include "timing.hpp"

#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/isa.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace bench {

using lambda_attention::isa_level;

namespace peak_loops {

inline volatile double sink;               // takes results, so that they are computed
inline volatile double factor = 0.999999;  // not known to the compiler

// Twelve sums fill two pipelines that are up to six cycles deep. Eight loads in flight fill a processor's read ports.
// Each level is compiled for its own instruction set, whatever this file is compiled for.
#define LAMBDA_ATTENTION_BENCH_LEVEL(level, target_attribute, vector_bytes)                            \
  struct level {                                                                                       \
    /* Returns the number of multiplications and additions. */                                         \
    template <class Real>                                                                              \
    target_attribute __attribute__((noinline)) static double multiply_add(long rounds) {               \
      typedef Real vector __attribute__((vector_size(vector_bytes)));                                  \
      const vector a = vector{} + static_cast<Real>(factor), b = vector{} + Real(1) / 1024;            \
      vector sums[12];                                                                                 \
      for (int i = 0; i < 12; ++i) sums[i] = b * static_cast<Real>(i);                                 \
      for (long round = 0; round < rounds; ++round) {                                                  \
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; ++i) sums[i] = sums[i] * a + b;               \
      }                                                                                                \
      vector total = b;                                                                                \
      for (const vector& sum : sums) total += sum;                                                     \
      sink = static_cast<double>(total[0]);                                                            \
      return static_cast<double>(rounds) * 12 * 2 * (vector_bytes / sizeof(Real));                     \
    }                                                                                                  \
    /* `size` is a multiple of eight vectors. */                                                       \
    target_attribute __attribute__((noinline)) static void read(const float* data, std::size_t size) { \
      typedef int vector __attribute__((vector_size(vector_bytes), aligned(4), may_alias));            \
      const vector* from = reinterpret_cast<const vector*>(data);                                      \
      const vector* const end = from + size * sizeof(float) / vector_bytes;                            \
      vector sums[8] = {};                                                                             \
      for (; from != end; from += 8) {                                                                 \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) sums[i] ^= from[i];                        \
      }                                                                                                \
      for (int i = 1; i < 8; ++i) sums[0] ^= sums[i];                                                  \
      sink = static_cast<double>(sums[0][0]);                                                          \
    }                                                                                                  \
  };

#if defined(__x86_64__)
LAMBDA_ATTENTION_BENCH_LEVEL(baseline, __attribute__((target("sse2"))), 16)
LAMBDA_ATTENTION_BENCH_LEVEL(avx2, __attribute__((target("avx2,fma"))), 32)
LAMBDA_ATTENTION_BENCH_LEVEL(avx512, __attribute__((target("avx512f"))), 64)
#else
LAMBDA_ATTENTION_BENCH_LEVEL(baseline, , 16)
using avx2 = baseline;
using avx512 = baseline;
#endif
#undef LAMBDA_ATTENTION_BENCH_LEVEL

/// Calls work(the loops of that level).
template <class Work>
auto at_level(isa_level level, Work&& work) {
  if (level == isa_level::automatic) level = lambda_attention::isa();
  if (level >= isa_level::avx512) return work(avx512{});
  if (level == isa_level::avx2) return work(avx2{});
  return work(baseline{});
}

/// Multiplications and additions a second of one thread: the best of a few short runs.
template <class Real>
double flops_of_this_thread(isa_level level) {
  double best = 0;
  for (int run = 0; run < 8; ++run) {
    const double start = thread_now();
    const double flops =
        at_level(level, [](auto loops) { return decltype(loops)::template multiply_add<Real>(400000); });
    best = std::max(best, flops / (thread_now() - start));
  }
  return best;
}

}  // namespace peak_loops

/// The sum of measure(thread) on `num_threads` threads at the same time.
template <class Measure>
double sum_over_threads(int num_threads, Measure&& measure) {
  if (num_threads == 1) return measure(0);
  std::vector<double> results(static_cast<std::size_t>(num_threads));
  std::vector<std::thread> threads;
  std::atomic<int> waiting{num_threads};
  for (int thread = 0; thread < num_threads; ++thread) {
    threads.emplace_back([&, thread] {
      for (--waiting; waiting > 0;) {
      }
      results[static_cast<std::size_t>(thread)] = measure(thread);
    });
  }
  for (std::thread& thread : threads) thread.join();
  double sum = 0;
  for (const double result : results) sum += result;
  return sum;
}

/// Multiplications and additions a second of `num_threads` at the same time; Real is float or double.
template <class Real>
double peak_flops(isa_level level, int num_threads = 1) {
  return sum_over_threads(num_threads, [&](int) { return peak_loops::flops_of_this_thread<Real>(level); });
}

/// Memory to read: as large as what is compared with it, so that it lies in the same cache, or in none; and of the same
/// pages.
class read_buffer {
 public:
  explicit read_buffer(index_t bytes) : values_(std::max<index_t>(1, bytes / (block * 4)) * block) {
    const std::vector<float> numbers = normal_values<float>(block, 9);
    for (index_t i = 0; i < values_.size(); i += block) std::copy(numbers.begin(), numbers.end(), values_.data() + i);
  }

  /// Bytes a second of threads that each read a part of it from end to end: the best of a few passes.
  double bandwidth(isa_level level, int num_threads = 1) const {
    // Where threads outnumber the blocks, some read the same.
    const index_t part = std::max<index_t>(1, values_.size() / block / num_threads) * block;
    const index_t num_parts = values_.size() / part;
    return sum_over_threads(num_threads, [&](int thread) {
      return bandwidth_of_part(level, values_.data() + thread % num_parts * part, part);
    });
  }

 private:
  static constexpr index_t block = 4096;

  static double bandwidth_of_part(isa_level level, const float* values, index_t count) {
    const double bytes = static_cast<double>(count) * sizeof(float);
    const int passes = static_cast<int>(std::max(1.0, 2e7 / bytes));
    double best = 0;
    for (int run = 0; run < 8; ++run) {
      const double start = thread_now();
      for (int pass = 0; pass < passes; ++pass)
        peak_loops::at_level(level,
                             [&](auto loops) { decltype(loops)::read(values, static_cast<std::size_t>(count)); });
      best = std::max(best, bytes * passes / (thread_now() - start));
    }
    return best;
  }

  lambda_attention::detail::buffer<float> values_;
};

}  // namespace bench
