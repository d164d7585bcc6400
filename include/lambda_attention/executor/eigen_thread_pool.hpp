// Runs tasks on an Eigen::ThreadPool.
#pragma once

#include <lambda_attention/executor.hpp>

#include <unsupported/Eigen/CXX11/ThreadPool>

#include <atomic>

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
    std::atomic<index_t> next_task{0};
    Eigen::Barrier finished(static_cast<unsigned>(workers));
    for (index_t worker = 0; worker < workers; ++worker) {
      pool_->Schedule([&, worker] {
        for (index_t task = next_task++; task < num_tasks; task = next_task++) f(task, worker);
        finished.Notify();
      });
    }
    finished.Wait();
  }

 private:
  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
