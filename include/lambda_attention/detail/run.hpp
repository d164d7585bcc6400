// Runs the tasks of one or more jobs on an executor.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/attend_positions.hpp>
#include <lambda_attention/detail/attend_tiles.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/key_parts.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/workspace.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

inline constexpr index_t most_workers = 1 << 16;

template <class Executor>
index_t checked_workers(Executor& executor, const char* where) {
  const index_t num_workers = executor.num_workers();
  if (num_workers < 1 || num_workers > most_workers)
    refuse("%s: expected 1 <= executor.num_workers() <= %lld, got %lld", where, printable(most_workers),
           printable(num_workers));
  return num_workers;
}

// KV heads and queries of a job that a worker takes in one go, and parts of their keys where these are read off as they lie.
template <class Real>
struct task {
  const attention_job<Real>* job;
  index_t first_kv_head;
  index_t num_kv_heads;
  index_t first_query;
  index_t last_query;
  index_range parts;
  index_t head_set;  // its number among those of all jobs
};

// The queries [first, last), those of a chunk, of all query heads of a KV head, off the rows as they lie. Whoever ends the last
// part joins them all.
template <class Real>
void attend_parts(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
                  const query_turner<Real>& turner, worker_scratch<Real>& scratch, partial_results<Real>& partials,
                  index_t kv_head, index_t first, index_t last, index_range parts) {
  const index_t first_head = kv_head * job.group(), most_heads = job.one_position->most_queries;
  for (index_t done = 0; done < job.group(); done += most_heads)
    position_driver<Real>(kernels, job, rows, turner, scratch, partials, kv_head, first_head + done,
                          min(most_heads, job.group() - done))
        .run(first, last, parts);
  if (partials.complete(parts.size(), num_parts(job)))
    join_parts(kernels, job, partials, kv_head, scratch.output, scratch.scores);
}

// The same in tiles.
template <class Real>
void attend_chunk(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
                  const query_turner<Real>& turner, worker_scratch<Real>& scratch, index_t kv_head, index_t first,
                  index_t last) {
  const index_t first_head = kv_head * job.group();
  for (index_t done = 0; done < job.group();) {
    const int heads = heads_at_once(job.group() - done, kernels.tile_vectors);
    tile_driver<Real>(kernels, job, rows, turner, scratch, first_head + done, heads).run(first, last);
    done += heads;
  }
}

template <class Real>
void run_task(const kernel_table<Real>& kernels, const task<Real>& t, worker_scratch<Real>& scratch,
              partial_results<Real>& partials) noexcept {
  const attention_job<Real>& job = *t.job;
  row_turner<Real> own(kernels, job.encoding, job.head_dim(), scratch.angles);
  query_turner<Real> turner(kernels, job, own, scratch.far_angles);
  index_t before = t.first_query;
  for (index_t first = t.first_query, last = first; first < t.last_query; before = first, first = last) {
    last = min(first + queries_per_chunk, t.last_query);
    for (index_t place = 0; place < t.num_kv_heads; ++place) {
      const index_t kv_head = t.first_kv_head + place;
      task_rows<Real> rows(kernels, job, kv_head, place, own, scratch);
      rows.advance(before, first, last);
      turner.begin_chunk(first, last);
      if (job.by_position()) {
        attend_parts(kernels, job, rows, turner, scratch, partials, kv_head, first, last, t.parts);
      } else {
        attend_chunk(kernels, job, rows, turner, scratch, kv_head, first, last);
      }
    }
  }
}

template <class Real>
index_t num_head_sets(const attention_job<Real>& job, index_t num_workers) {
  return divide_up(job.num_kv_heads, heads_per_task(job, num_workers));
}

// How many tasks each of a call's sets of KV heads is cut into, along the queries: one where that keeps the workers busy.
inline constexpr index_t tasks_per_worker = 4;
constexpr index_t tasks_per_head_set(index_t head_sets, index_t num_workers) {
  return num_workers <= 1 || head_sets == 0 ? 1 : divide_up(tasks_per_worker * num_workers, head_sets);
}
// The same along the keys of few queries, which are short tasks, and equal in one stream: as few as
// give every worker as much.
constexpr index_t tasks_that_share_keys(index_t head_sets, index_t num_workers) {
  index_t tasks = 1;
  if (head_sets < tasks_per_worker * num_workers)
    while (head_sets * tasks % num_workers != 0) ++tasks;
  return tasks;
}

// All jobs of a call, cut into tasks. A task has a few KV heads and a run of queries: all of them, or so many that copying
// the window anew, which costs as much as some 50 queries, stays little beside them. Where rows are read as they are stored,
// it has a run of parts of the keys instead. Where the cuts lie changes no bit of a result: between chunks, or parts.
template <class Real>
class job_list {
 public:
  job_list(attention_job<Real>* jobs, index_t count, index_t num_workers)
      : jobs_(jobs), count_(count), num_workers_(num_workers) {
    index_t head_sets = 0;
    for (index_t j = 0; j < count; ++j) {
      jobs[j].first_head_set = head_sets;
      head_sets += num_head_sets(jobs[j], num_workers_);
    }
    tasks_per_head_set_ = tasks_per_head_set(head_sets, num_workers_);
    tasks_that_share_keys_ = tasks_that_share_keys(head_sets, num_workers_);
    for (index_t j = 0; j < count; ++j) {
      jobs[j].first_task = num_tasks_;
      num_tasks_ += num_tasks(jobs[j]);
    }
  }

  const attention_job<Real>* begin() const { return jobs_; }
  const attention_job<Real>* end() const { return jobs_ + count_; }
  index_t num_workers() const { return num_workers_; }

  index_t num_tasks() const { return num_tasks_; }

  task<Real> at(index_t number) const {
    const attention_job<Real>& job = job_of(number);
    const index_t place = number - job.first_task, head_sets = num_head_sets(job, num_workers_);
    const index_t head_set = place % head_sets, run = place / head_sets;
    const index_t heads = heads_per_task(job, num_workers_), queries = queries_per_task(job),
                  parts = parts_per_task(job);
    const index_t runs_of_parts = divide_up(parts_of(job), parts);
    task<Real> t = {};
    t.job = &job;
    t.head_set = job.first_head_set + head_set;
    t.first_kv_head = head_set * heads;
    t.num_kv_heads = min(heads, job.num_kv_heads - t.first_kv_head);
    t.first_query = job.first_query + run / runs_of_parts * queries;
    t.last_query = min(t.first_query + queries, job.num_tokens());
    t.parts.first = run % runs_of_parts * parts;
    t.parts.last = min(t.parts.first + parts, parts_of(job));
    return t;
  }

 private:
  // The last that begins with this task or one before it: jobs without tokens, which have none, begin where the next one does.
  const attention_job<Real>& job_of(index_t number) const {
    index_t first = 0;
    for (index_t end = count_; end - first > 1;) {
      const index_t middle = first + (end - first) / 2;
      (jobs_[middle].first_task <= number ? first : end) = middle;
    }
    return jobs_[first];
  }
  index_t queries_per_task(const attention_job<Real>& job) const {
    return round_up(max(divide_up(job.q.tokens, tasks_per_head_set_), fewest_queries_per_task), queries_per_chunk);
  }
  static index_t parts_of(const attention_job<Real>& job) { return job.by_position() ? num_parts(job) : 1; }
  index_t parts_per_task(const attention_job<Real>& job) const {
    return job.as_stored(key_kind::window_near) ? divide_up(parts_of(job), tasks_that_share_keys_) : parts_of(job);
  }
  index_t num_tasks(const attention_job<Real>& job) const {
    return divide_up(job.q.tokens, queries_per_task(job)) * divide_up(parts_of(job), parts_per_task(job)) *
           num_head_sets(job, num_workers_);
  }

  const attention_job<Real>* jobs_;
  index_t count_;
  index_t num_workers_;
  index_t tasks_per_head_set_;
  index_t tasks_that_share_keys_;
  index_t num_tasks_ = 0;
};

// What a call takes of its workspace, jobs aside: scratch for each worker; then partial results, for each set of KV heads
// where workers share their keys, else for each worker.
template <class Real>
class call_scratch {
 public:
  explicit call_scratch(index_t num_workers) : num_workers_(max(1, num_workers)) {}
  call_scratch(const kernel_table<Real>& kernels, const job_list<Real>& list) : call_scratch(list.num_workers()) {
    for (const attention_job<Real>& job : list) add(kernels, job);
  }

  void add(const kernel_table<Real>& kernels, const attention_job<Real>& job) {
    add_sizes(kernels, job, num_workers_, sizes_);
    head_sets_ += num_head_sets(job, num_workers_);
  }

  index_t bytes() const {
    return num_workers_ * bytes_of<worker_scratch<Real>>() + num_partials() * bytes_of<partial_results<Real>>();
  }
  bool keys_are_shared() const { return tasks_that_share_keys(head_sets_, num_workers_) > 1; }
  index_t num_partials() const { return keys_are_shared() ? head_sets_ : num_workers_; }

  worker_scratch<Real> worker(unsigned char* memory, index_t worker) const {
    return cut<worker_scratch<Real>>(memory, worker);
  }
  partial_results<Real> partials(unsigned char* memory, index_t number) const {
    return cut<partial_results<Real>>(memory + num_workers_ * bytes_of<worker_scratch<Real>>(), number);
  }

 private:
  template <class Piece>
  index_t bytes_of() const {
    scratch_arena arena(nullptr);
    Piece unused(arena, sizes_);
    static_cast<void>(unused);
    return arena.used();
  }
  template <class Piece>
  Piece cut(unsigned char* memory, index_t number) const {
    scratch_arena arena(memory + number * bytes_of<Piece>());
    return Piece(arena, sizes_);
  }

  scratch_sizes sizes_;
  index_t head_sets_ = 0;
  index_t num_workers_;
};

// What the executor calls.
template <class Real>
struct task_function {
  const kernel_table<Real>& kernels;
  const job_list<Real>& list;
  const call_scratch<Real>& scratch;
  unsigned char* memory;
  bool keys_are_shared;

  void operator()(index_t number, index_t worker) const noexcept {
    const task<Real> t = list.at(number);
    worker_scratch<Real> own = scratch.worker(memory, worker);
    partial_results<Real> partials = scratch.partials(memory, keys_are_shared ? t.head_set : worker);
    if (!keys_are_shared) partials.begin();
    run_task(kernels, t, own, partials);
  }
};

// `memory` holds what call_scratch says from the offset `used` on.
template <class Real, class Executor>
void run_jobs(const kernel_table<Real>& kernels, const job_list<Real>& list, workspace& memory, index_t used,
              Executor& executor) {
  const call_scratch<Real> scratch(kernels, list);
  unsigned char* const place = reinterpret_cast<unsigned char*>(memory.data()) + used;
  const bool keys_are_shared = scratch.keys_are_shared();
  if (keys_are_shared)
    for (index_t p = 0; p < scratch.num_partials(); ++p) scratch.partials(place, p).begin();
  const task_function<Real> function{kernels, list, scratch, place, keys_are_shared};
  if (const index_t num_tasks = list.num_tasks()) executor.run(num_tasks, function);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
