// An executor that takes tasks in another order than any caller would expect.
#pragma once

#include <lambda_attention/config.hpp>

namespace support {

/// The last task first, the workers in turn.
struct reversed_executor {
  lambda_attention::index_t num_workers() const { return 3; }

  template <class Function>
  void run(lambda_attention::index_t num_tasks, Function&& f) const {
    for (lambda_attention::index_t task = num_tasks; task-- > 0;) f(task, task % num_workers());
  }
};

}  // namespace support
