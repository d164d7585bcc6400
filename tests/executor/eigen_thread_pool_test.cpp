#include <lambda_attention/executor/eigen_thread_pool.hpp>

#include <gtest/gtest.h>

#include <atomic>

#include "tasks.hpp"

namespace la = lambda_attention;

TEST(EigenThreadPool, HasAsManyWorkersAsThePoolHasThreads) {
  for (const int threads : {1, 2, 5}) {
    Eigen::ThreadPool pool(threads);
    EXPECT_EQ(la::eigen_thread_pool(pool).num_workers(), threads);
  }
}

TEST(EigenThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    Eigen::ThreadPool pool(threads);
    expect_each_task_once(la::eigen_thread_pool(pool));
  }
}

TEST(EigenThreadPool, RunsOnThePoolsThreads) {
  Eigen::ThreadPool pool(2);
  std::atomic<int> elsewhere{0};
  la::eigen_thread_pool(pool).run(10, [&](la::index_t, la::index_t) { elsewhere += pool.CurrentThreadId() >= 0; });
  EXPECT_EQ(elsewhere, 10);
}

TEST(EigenThreadPool, GivesTheBitsOfTheSerialExecutor) {
  Eigen::ThreadPool pool(3);
  expect_serial_bits(la::eigen_thread_pool(pool));
}
