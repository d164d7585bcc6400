// The contract of "run these tasks", and the executor that runs them here and now. Others are in executor/.
#pragma once

#include <lambda_attention/config.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// An executor is any object with
///
///     index_t num_workers() const;                  // 1 to 65536: how many tasks may run at the same time
///     template <class Function>
///     void run(index_t num_tasks, Function&& f);    // calls f(task, worker) once for every task in [0, num_tasks)
///
/// f(task, worker) may be called from any thread, with 0 <= worker < num_workers(); two calls that run at the same time
/// must be given different workers. run() returns when all calls have returned. f does not throw; run() may, when every call
/// that it has made has returned: see attend() for what is left then. What attend() writes does not depend on the executor,
/// on the number of workers or on the order of the tasks.
///
/// An engine that owns its threads lets them draw tasks from a counter and passes each thread's number as the worker.
struct serial_executor {
  index_t num_workers() const { return 1; }

  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    for (index_t task = 0; task < num_tasks; ++task) f(task, index_t{0});
  }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
