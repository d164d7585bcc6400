#include "parallel.hpp"

#include <support/lsan.hpp>

#include <gtest/gtest.h>

#include <omp.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <vector>

#include "files.hpp"

namespace {

using llama::for_each_in_parallel;

TEST(Parallel, EachOnce) {
  for (const int threads : {1, 2, 5})
    for (const int count : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      for_each_in_parallel(count, threads, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      for (const auto& number : calls) EXPECT_EQ(number, 1);
    }
}

TEST(Parallel, OnSeveralThreads) {
  std::atomic<int> most{0};
  for_each_in_parallel(100, 3, [&](std::int64_t) { most = omp_get_num_threads(); });
  EXPECT_EQ(most, 3);
}

TEST(Parallel, AnExceptionReachesTheCallerAndEndsTheWork) {
  for (const int threads : {1, 3}) {
    std::atomic<int> calls{0};
    const auto fails = [&](std::int64_t i) {
      ++calls;
      if (i == 1) throw std::bad_alloc();
    };
    EXPECT_THROW(for_each_in_parallel(1000, threads, fails), std::bad_alloc);
    if (threads == 1) {
      EXPECT_EQ(calls, 2);
    }
    EXPECT_THROW(for_each_in_parallel(3, threads, [](std::int64_t) -> void { throw std::runtime_error("all"); }),
                 std::runtime_error);
  }
}

}  // namespace
