// Runs tasks on an Eigen::ThreadPool.
#pragma once

#include <lambda_attention/executor.hpp>

#include <unsupported/Eigen/CXX11/ThreadPool>

#include <atomic>
#include <functional>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// As many workers as the pool has threads; the caller waits. The pool must outlive the executor, and run() must not be
/// called from one of the pool's own threads, which would wait for itself.
class eigen_thread_pool {
 public:
  explicit eigen_thread_pool(Eigen::ThreadPoolInterface& pool) : pool_(&pool) {}

  index_t num_workers() const { return detail::max(1, pool_->NumThreads()); }

  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    const index_t workers = detail::min(num_workers(), num_tasks);
    if (workers <= 1) return serial_executor{}.run(num_tasks, f);
    std::atomic<index_t> next_task{0}, next_worker{0};
    Eigen::Barrier finished(static_cast<unsigned>(workers));
    const auto work = [&] {
      const index_t worker = next_worker++;
      for (index_t task = next_task++; task < num_tasks; task = next_task++) f(task, worker);
      finished.Notify();
    };
    // A reference is what std::function keeps without memory of its own.
    for (workers_to_start rest{finished, workers}; rest.count > 0; --rest.count) pool_->Schedule(std::cref(work));
  }

 private:
  // Waits at the end for those that were started: also when the pool throws, for they use what is on the stack of run().
  struct workers_to_start {
    Eigen::Barrier& finished;
    index_t count;

    ~workers_to_start() {
      for (; count > 0; --count) finished.Notify();
      finished.Wait();
    }
  };

  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
