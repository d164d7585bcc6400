// Runs the tasks of one or more jobs on an executor.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/attend_positions.hpp>
#include <lambda_attention/detail/attend_tiles.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/workspace.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// KV heads and queries of a job that a worker takes in one go.
template <class Real>
struct task {
  const attention_job<Real>* job;
  index_t first_kv_head;
  index_t num_kv_heads;
  index_t first_query;
  index_t last_query;
};

// The queries [first, last), those of a chunk, of all query heads of a KV head.
template <class Real>
void attend_chunk(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
                  const row_turner<Real>& turner, worker_scratch<Real>& scratch, index_t kv_head, index_t first,
                  index_t last) {
  const index_t first_head = kv_head * job.group();
  if (job.by_position()) {
    for (index_t done = 0; done < job.group(); done += most_heads_by_position)
      position_driver<Real>(kernels, job, rows, turner, scratch, kv_head, first_head + done,
                            min(most_heads_by_position, job.group() - done))
          .run(first, last);
    return;
  }
  for (index_t done = 0; done < job.group();) {
    const int heads = heads_at_once(job.group() - done, kernels.tile_vectors);
    tile_driver<Real>(kernels, job, rows, turner, scratch, first_head + done, heads).run(first, last);
    done += heads;
  }
}

template <class Real>
void run_task(const kernel_table<Real>& kernels, const task<Real>& t, worker_scratch<Real>& scratch) noexcept {
  const attention_job<Real>& job = *t.job;
  row_turner<Real> turner(kernels, job.encoding, job.head_dim(), scratch.angles);
  index_t before = t.first_query;
  for (index_t first = t.first_query, last = first; first < t.last_query; before = first, first = last) {
    last = min(first + queries_per_chunk, t.last_query);
    for (index_t place = 0; place < t.num_kv_heads; ++place) {
      const index_t kv_head = t.first_kv_head + place;
      task_rows<Real> rows(kernels, job, kv_head, place, turner, scratch);
      if (!job.as_stored()) rows.advance(before, first, last);
      turner.move_to(job.first_position + static_cast<std::uint64_t>(first), last - first);
      attend_chunk(kernels, job, rows, turner, scratch, kv_head, first, last);
    }
  }
}

// All jobs of a call, cut into tasks. A task has a few KV heads and a run of queries: all of them where that keeps the
// workers busy, else so many that copying the window anew, which costs as much as some 50 queries, stays little beside them.
// Where the cuts lie changes no bit of a result: they lie between chunks.
template <class Real>
class job_list {
 public:
  job_list(const attention_job<Real>* jobs, index_t count, index_t num_workers)
      : jobs_(jobs), count_(count), num_workers_(max(1, num_workers)) {
    index_t head_sets = 0;
    for (index_t j = 0; j < count; ++j) head_sets += num_head_sets(jobs[j]);
    const index_t wanted = num_workers_ == 1 ? 1 : tasks_per_worker * num_workers_;
    runs_wanted_ = head_sets == 0 ? 1 : (wanted + head_sets - 1) / head_sets;
  }

  index_t num_workers() const { return num_workers_; }

  index_t num_tasks() const {
    index_t sum = 0;
    for (index_t j = 0; j < count_; ++j) sum += num_tasks(jobs_[j]);
    return sum;
  }

  scratch_sizes sizes(const kernel_table<Real>& kernels) const {
    scratch_sizes sizes;
    for (index_t j = 0; j < count_; ++j) add_sizes(kernels, jobs_[j], sizes);
    return sizes;
  }

  task<Real> at(index_t number) const {
    const attention_job<Real>* job = jobs_;
    for (; number >= num_tasks(*job); ++job) number -= num_tasks(*job);
    const index_t queries = queries_per_task(*job), heads = heads_per_task(*job);
    task<Real> t;
    t.job = job;
    t.first_kv_head = number % num_head_sets(*job) * heads;
    t.num_kv_heads = min(heads, job->num_kv_heads - t.first_kv_head);
    t.first_query = job->first_query + number / num_head_sets(*job) * queries;
    t.last_query = min(t.first_query + queries, job->num_tokens());
    return t;
  }

 private:
  static constexpr index_t tasks_per_worker = 4;
  static constexpr index_t fewest_queries = 512;

  static index_t num_head_sets(const attention_job<Real>& job) {
    const index_t heads = heads_per_task(job);
    return (job.num_kv_heads + heads - 1) / heads;
  }
  index_t queries_per_task(const attention_job<Real>& job) const {
    const index_t even_share = (job.q.tokens + runs_wanted_ - 1) / runs_wanted_;
    return round_up(max(even_share, fewest_queries), queries_per_chunk);
  }
  index_t num_tasks(const attention_job<Real>& job) const {
    const index_t queries = queries_per_task(job);
    return (job.q.tokens + queries - 1) / queries * num_head_sets(job);
  }

  const attention_job<Real>* jobs_;
  index_t count_;
  index_t num_workers_;
  index_t runs_wanted_;
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

  void operator()(index_t number, index_t worker) const noexcept {
    scratch_arena arena(memory + worker * bytes_per_worker);
    worker_scratch<Real> scratch(arena, sizes);
    run_task(kernels, list.at(number), scratch);
  }
};

// What a call takes of its workspace, jobs aside.
template <class Real>
index_t call_bytes(const kernel_table<Real>& kernels, const job_list<Real>& list) {
  return worker_bytes<Real>(list.sizes(kernels)) * list.num_workers();
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
