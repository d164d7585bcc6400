// Runs the tasks of one or more jobs on an executor.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/attend_positions.hpp>
#include <lambda_attention/detail/attend_tiles.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/workspace.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Task `task` of a job.
template <class Real>
void run_task(const kernel_table<Real>& kernels, const attention_job<Real>& job, index_t task,
              worker_scratch<Real>& scratch) noexcept {
  const index_t kv_head = task / job.tasks_per_head();
  const index_t first = job.first_query + task % job.tasks_per_head() * job.queries_per_task();
  const index_t last = min(first + job.queries_per_task(), job.num_tokens());
  const task_rows<Real> rows =
      job.as_stored() ? task_rows<Real>{} : rows_for(kernels, job, kv_head, first, last, scratch);
  for (index_t done = 0; done < job.group();) {
    const index_t head = kv_head * job.group() + done;
    const index_t heads_left = job.group() - done;
    if (job.by_position()) {
      const int heads = heads_at_once(heads_left, max_tile_vectors);
      position_driver<Real> driver(kernels, job, rows, scratch, kv_head, head, heads);
      for (index_t query = first; query < last; ++query) driver.run(query);
      done += heads;
    } else {
      const int heads = heads_at_once(heads_left, kernels.tile_vectors);
      tile_driver<Real>(kernels, job, rows, scratch, head, heads).run(first, last);
      done += heads;
    }
  }
}

// All jobs of a call, and the memory that its workers take.
template <class Real>
struct job_list {
  const attention_job<Real>* jobs;
  index_t count;

  index_t num_tasks() const {
    index_t sum = 0;
    for (index_t j = 0; j < count; ++j) sum += jobs[j].num_tasks();
    return sum;
  }

  scratch_sizes sizes(const kernel_table<Real>& kernels) const {
    scratch_sizes sizes;
    for (index_t j = 0; j < count; ++j) add_sizes(kernels, jobs[j], sizes);
    return sizes;
  }
};

template <class Real>
index_t worker_bytes(const scratch_sizes& sizes) {
  scratch_arena arena(nullptr);
  worker_scratch<Real> unused(arena, sizes);
  static_cast<void>(unused);
  return arena.used();
}

// What the executor calls.
template <class Real>
struct task_function {
  const kernel_table<Real>& kernels;
  const job_list<Real>& list;
  const scratch_sizes& sizes;
  unsigned char* memory;
  index_t bytes_per_worker;

  void operator()(index_t task, index_t worker) const noexcept {
    scratch_arena arena(memory + worker * bytes_per_worker);
    worker_scratch<Real> scratch(arena, sizes);
    const attention_job<Real>* job = list.jobs;
    for (; task >= job->num_tasks(); ++job) task -= job->num_tasks();
    run_task(kernels, *job, task, scratch);
  }
};

// What a call takes of its workspace, jobs aside.
template <class Real>
index_t call_bytes(const kernel_table<Real>& kernels, const job_list<Real>& list, index_t num_workers) {
  return worker_bytes<Real>(list.sizes(kernels)) * max(1, num_workers);
}

// `memory` holds call_bytes from the offset `used` on.
template <class Real, class Executor>
void run_jobs(const kernel_table<Real>& kernels, const job_list<Real>& list, workspace& memory, index_t used,
              Executor& executor) {
  const scratch_sizes sizes = list.sizes(kernels);
  unsigned char* const scratch = reinterpret_cast<unsigned char*>(memory.data()) + used;
  const task_function<Real> function{kernels, list, sizes, scratch, worker_bytes<Real>(sizes)};
  if (const index_t num_tasks = list.num_tasks()) executor.run(num_tasks, function);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
