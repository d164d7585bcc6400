#ifdef _OPENMP
#include <lambda_attention/executor/openmp.hpp>

#include <support/lsan.hpp>

#include <gtest/gtest.h>

#include <atomic>

#include "tasks.hpp"

namespace la = lambda_attention;

TEST(OpenMP, NumberOfWorkers) {
  EXPECT_EQ(la::openmp_executor().num_workers(), omp_get_max_threads());
  EXPECT_EQ(la::openmp_executor(3).num_workers(), 3);
  EXPECT_EQ(la::openmp_executor(0).num_workers(), 1);
  EXPECT_EQ(la::openmp_executor(-4).num_workers(), 1);
}

TEST(OpenMP, RunsEachTaskOnce) {
  for (const int workers : {1, 2, 5}) expect_each_task_once(la::openmp_executor(workers));
}

TEST(OpenMP, RunsInAParallelRegion) {
  std::atomic<int> elsewhere{0};
  la::openmp_executor(2).run(10, [&](la::index_t, la::index_t) { elsewhere += omp_in_parallel() != 0; });
  EXPECT_EQ(elsewhere, 10);
}

TEST(OpenMP, GivesTheBitsOfTheSerialExecutor) { expect_serial_bits(la::openmp_executor(3)); }

// From an engine's own parallel region, where OpenMP starts no threads of its own.
TEST(OpenMP, RunsInsideAnotherParallelRegion) {
#pragma omp parallel num_threads(2)
  {
#pragma omp critical
    expect_each_task_once(la::openmp_executor(3));
  }
}
#endif
