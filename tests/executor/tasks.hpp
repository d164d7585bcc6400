// What every executor must do.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "../tensors.hpp"

/// Each task once; no worker at two tasks at a time; run() returns after the last.
template <class Executor>
void expect_each_task_once(Executor&& executor) {
  using lambda_attention::index_t;
  for (const index_t num_tasks : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(num_tasks));
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(executor.num_workers()));
    std::atomic<bool> well_behaved{true};
    executor.run(num_tasks, [&](index_t task, index_t worker) {
      const bool known = 0 <= worker && worker < executor.num_workers() && 0 <= task && task < num_tasks;
      if (!known || busy[static_cast<std::size_t>(worker)]++ != 0) well_behaved = false;
      if (!known) return;
      ++runs[static_cast<std::size_t>(task)];
      --busy[static_cast<std::size_t>(worker)];
    });
    EXPECT_TRUE(well_behaved) << num_tasks;
    for (const std::atomic<int>& count : runs) ASSERT_EQ(count, 1) << num_tasks;
  }
}

/// Attention, whole and of a stream, to the bit as the serial executor has it.
template <class Executor>
void expect_serial_bits(Executor&& executor) {
  namespace la = lambda_attention;
  const la::lambda_shape shape = la::lm_infinite(4, 40);
  const la::rope position(16);
  sequence<float> s(1500, 6, 3, 16, 16), t = s;
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());
  la::attend(t.q.view(), t.k.view(), t.v.view(), shape, position, t.out.view(), {}, executor);
  EXPECT_TRUE(same_bits(s.out.elements, t.out.elements));

  la::kv_cache<la::f32, la::rope> cache(shape, position, 3, 16, 16), other = cache;
  la::attend(s.q.view(), s.k.view(), s.v.view(), cache, s.out.view());
  la::attend(t.q.view(), t.k.view(), t.v.view(), other, t.out.view(), {}, executor);
  EXPECT_TRUE(same_bits(s.out.elements, t.out.elements));
}
