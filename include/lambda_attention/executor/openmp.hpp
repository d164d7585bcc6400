// Runs tasks on OpenMP threads.
#pragma once

#include <lambda_attention/executor.hpp>

#ifndef _OPENMP
#error "lambda_attention/executor/openmp.hpp: compile with -fopenmp"
#endif
#include <omp.h>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// As many workers as OpenMP would start here, or the number given.
class openmp_executor {
 public:
  openmp_executor() : num_workers_(omp_get_max_threads()) {}
  explicit openmp_executor(int num_workers) : num_workers_(num_workers > 0 ? num_workers : 1) {}

  index_t num_workers() const { return num_workers_; }

  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_workers_)
    for (index_t task = 0; task < num_tasks; ++task) f(task, index_t{omp_get_thread_num()});
  }

 private:
  int num_workers_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
