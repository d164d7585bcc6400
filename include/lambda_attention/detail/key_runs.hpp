// Keys and values in runs of the caller's: their checks, the job they become, and the tables in which it looks rows up.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/run.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <new>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Runs without their types.
struct erased_queries {
  index_t first;
  tensor q;
  row_rotation rotation;
};
struct erased_run {
  index_t first;
  tensor k;
  tensor v;
  row_rotation rotation;

  index_range keys() const { return {first, first + k.tokens}; }
};

template <class Queries>
erased_queries erase_queries(const Queries& queries) {
  return {queries.first, erase(queries.q), queries.rotation};
}
template <class Run>
auto runs_at(const Run* runs) {
  if (runs == nullptr) refuse("attend: expected runs, got a null pointer");
  return [runs](index_t r) { return erased_run{runs[r].first, erase(runs[r].k), erase(runs[r].v), runs[r].rotation}; };
}

// What one call is about. run_at(r) is run r of num_runs.
template <class RunAt>
struct runs_call {
  erased_queries queries;
  index_t num_runs;
  RunAt run_at;
  tensor out;
  tensor lse;  // no data: not wanted
  index_range part;
};
template <class RunAt>
runs_call(erased_queries, index_t, RunAt, tensor, tensor, index_range) -> runs_call<RunAt>;

inline void check_tokens(index_t first, index_t tokens, index_t first_position, const char* name) {
  if (first < 0) refuse("attend: expected %s.first >= 0, got %lld", name, printable(first));
  if (tokens > unlimited - first || first + tokens > unlimited - first_position)
    refuse("attend: expected positions below 2^63 in %s, got first = %lld, %lld tokens and first_position = %lld", name,
           printable(first), printable(tokens), printable(first_position));
}

inline void check_rotation(row_rotation rotation, row_rotation last, const encoding_limits& limits, const char* name) {
  if (rotation < row_rotation::none || rotation > last)
    refuse("attend: expected %s with rotation none%s, got %d", name,
           last == row_rotation::to_zero ? ", to_position or to_zero" : " or to_position", static_cast<int>(rotation));
  if (rotation != row_rotation::none && limits.data.function.self != nullptr)
    refuse("attend: expected %s with rotation none, as the encoding turns rows by a function, got %d", name,
           static_cast<int>(rotation));
}

// All that can be wrong with a call but for its lse, and for keys that are missing, or there twice.
template <class RunAt>
void check_runs(const runs_call<RunAt>& call, const lambda_shape& shape, const encoding_limits& limits,
                const attention_options& options) {
  check_shape(shape, "attend");
  if (call.num_runs < 1)
    refuse("attend: expected num_runs >= 1, got %lld (a run may have no tokens)", printable(call.num_runs));
  const erased_run model = call.run_at(0);
  check_keys(model.k, model.v, "attend");
  const tensor &q = call.queries.q, &out = call.out;
  check_queries(q, out, {model.k.heads, model.k.dim, model.v.dim, "k.heads", "k.dim", "v.dim"}, limits, options);
  check_positions(options.first_position, 0, "attend");
  check_tokens(call.queries.first, q.tokens, options.first_position, "q");
  check_rotation(call.queries.rotation, row_rotation::to_position, limits, "q");
  for (index_t r = 0; r < call.num_runs; ++r) {
    const erased_run run = call.run_at(r);
    check_keys(run.k, run.v, "attend");
    check_equal(run.k.heads, model.k.heads, "attend", "k.heads of a run", "k.heads of the first");
    check_equal(run.k.dim, model.k.dim, "attend", "k.dim of a run", "k.dim of the first");
    check_equal(run.v.dim, model.v.dim, "attend", "v.dim of a run", "v.dim of the first");
    check_tokens(run.first, run.k.tokens, options.first_position, "a run");
    check_rotation(run.rotation, row_rotation::to_zero, limits, "a run");
    check_alias(out, run.k, "attend", "k");
    check_alias(out, run.v, "attend", "v");
  }
}

template <class RunAt>
void check_lse_of_runs(const runs_call<RunAt>& call) {
  for (index_t r = 0; r < call.num_runs; ++r) {
    const erased_run run = call.run_at(r);
    if (overlap(call.lse, run.k) || overlap(call.lse, run.v))
      refuse("attend: expected lse not to overlap k or v, got overlapping memory");
  }
}

// A rotation as those that a job wants of its keys: none where the encoding has none, or where it leaves position 0 as it is.
template <class Real>
row_rotation effective_rotation(const attention_job<Real>& job, row_rotation rotation) {
  const bool leaves_zero = job.encoding.rotation.factor == 1 && rotation == row_rotation::to_zero;
  return !job.encoding.rotates() || leaves_zero ? row_rotation::none : rotation;
}

// Whether the kernels for single positions know rows of this format that end where their numbers do.
template <class Real>
bool known_by_position(const tensor& t) {
  const bool narrow = sizeof(Real) == sizeof(float) && (t.format == row_format::f16 || t.format == row_format::bf16);
  return (narrow || t.format == native_format<Real>)&&t.dim % row_multiple == 0;
}

// Whether no key that a job's queries see of a kind needs to be turned.
template <class Real, class RunAt>
bool turned_as_wanted(const attention_job<Real>& job, const runs_call<RunAt>& call, key_kind kind) {
  const index_range seen = job.plan.band(kind, job.first_query, job.num_tokens()).keys;
  for (index_t r = 0; r < call.num_runs; ++r) {
    const erased_run run = call.run_at(r);
    const bool wanted = effective_rotation(job, run.rotation) == job.rows.wanted[static_cast<int>(kind)];
    if (!wanted && common(run.keys(), seen).size() > 0) return false;
  }
  return true;
}

// The job of a call that was checked, as yet without its tables.
template <class Real, class RunAt>
attention_job<Real> runs_job(const runs_call<RunAt>& call, const lambda_shape& shape, const position_data& encoding,
                             const attention_options& options, const pair_kernels<Real>* (*pairs)(isa_level)) {
  const erased_run model = call.run_at(0);
  attention_job<Real> job = job_of<Real>(call.queries.q, call.out, options);
  job.lse = call.lse;
  job.first_query = call.queries.first;
  job.num_kv_heads = model.k.heads;
  job.first_position = static_cast<std::uint64_t>(options.first_position);
  job.plan = {shape, encoding.rotates() || encoding.has_bias(), call.part};
  job.encoding = encoding;
  job.query_rotation = encoding.rotates() ? call.queries.rotation : row_rotation::none;
  job.one_position = &position_kernels_for<Real>(options.isa);
  const auto store_of_runs = [&](const tensor& t) {
    row_store<Real> store = store_of<Real>(t);
    store.num_runs = call.num_runs;
    return store;
  };
  for (row_store<Real>& keys : job.rows.keys) keys = store_of_runs(model.k);
  job.rows.sink_values = job.rows.window_values = store_of_runs(model.v);
  choose_rotations(job);
  const bool known =
      known_by_position<Real>(model.k) && known_by_position<Real>(model.v) && model.k.format == model.v.format;
  const auto as_stored = [&](key_kind near, key_kind far) {
    return known && turned_as_wanted(job, call, near) && turned_as_wanted(job, call, far);
  };
  job.rows.sinks_as_stored = as_stored(key_kind::sinks_near, key_kind::sinks_far);
  job.rows.window_as_stored = as_stored(key_kind::window_near, key_kind::window_far);
  choose_pairs(job, pairs == nullptr ? nullptr : pairs(options.isa));
  return job;
}

// Two tables of a call's runs, in the order of their keys: of rows of keys, and of values.
class run_tables {
 public:
  static index_t bytes(index_t num_runs) {
    index_t bytes = 0;
    if (!multiply(num_runs, 2 * static_cast<index_t>(sizeof(placed_run)), &bytes) || bytes > (INT64_MAX >> 8))
      refuse("attend: expected runs that fit in memory, got %lld", printable(num_runs));
    return round_up(bytes, buffer_alignment);
  }

  template <class Real, class RunAt>
  run_tables(const attention_job<Real>& job, const runs_call<RunAt>& call, void* memory)
      : keys_(static_cast<placed_run*>(memory)), values_(keys_ + call.num_runs) {
    for (index_t r = 0; r < call.num_runs; ++r) {
      const erased_run run = call.run_at(r);
      if (run.k.tokens == 0) continue;
      const row_rotation rotation = effective_rotation(job, run.rotation);
      ::new (static_cast<void*>(keys_ + size_)) placed_run(place(run, run.k, rotation));
      ::new (static_cast<void*>(values_ + size_)) placed_run(place(run, run.v, row_rotation::none));
      ++size_;
    }
    const auto earlier = [](const placed_run& a, const placed_run& b) { return a.keys.first < b.keys.first; };
    std::sort(keys_, keys_ + size_, earlier);
    std::sort(values_, values_ + size_, earlier);
  }

  void check_each_key_once() const {
    for (index_t r = 1; r < size_; ++r)
      if (keys_[r].keys.first < keys_[r - 1].keys.last)
        refuse("attend: expected every key in one run, got key %lld in two", printable(keys_[r].keys.first));
  }

  // That the runs hold all of `seen`, keys that queries from first_query on see.
  void check_that_hold(index_range seen, index_t first_query) const {
    index_t key = seen.first;
    for (index_t r = 0; r < size_ && key < seen.last; ++r) {
      if (keys_[r].keys.first > key) break;
      key = max(key, keys_[r].keys.last);
    }
    if (key < seen.last)
      refuse("attend: expected a run with key %lld, which query %lld sees, got none that has it", printable(key),
             printable(max(key, first_query)));
  }

  template <class Real>
  void enter(attention_job<Real>& job) const {
    for (row_store<Real>& keys : job.rows.keys) enter(keys, keys_);
    enter(job.rows.sink_values, values_);
    enter(job.rows.window_values, values_);
  }

 private:
  static placed_run place(const erased_run& run, const tensor& rows, row_rotation rotation) {
    return {run.keys(), rows.data, rows.token_bytes(), rows.head_bytes(), rotation};
  }
  template <class Real>
  void enter(row_store<Real>& store, const placed_run* runs) const {
    store.runs = runs;
    store.num_runs = size_;
  }

  placed_run* keys_;
  placed_run* values_;
  index_t size_ = 0;
};

// A call that was checked, but for keys that are missing, or there twice: the tables tell.
template <class Real, class RunAt, class Executor>
void attend_runs(const runs_call<RunAt>& call, const lambda_shape& shape, const position_data& encoding,
                 const attention_options& options, const pair_kernels<Real>* (*pairs)(isa_level), Executor& executor) {
  attention_job<Real> job = runs_job<Real>(call, shape, encoding, options, pairs);
  workspace own;
  workspace& memory = options.workspace != nullptr ? *options.workspace : own;
  const kernel_table<Real>& kernels = kernels_for<Real>(options.isa);
  const job_list<Real> list(&job, 1, executor.num_workers());
  const index_t table_bytes = run_tables::bytes(call.num_runs);
  memory.reserve(table_bytes + call_scratch<Real>(kernels, list).bytes());
  const run_tables tables(job, call, memory.data());
  tables.check_each_key_once();
  if (job.q.tokens > 0) {
    tables.check_that_hold(sinks_seen(job.plan, job.num_tokens()), job.first_query);
    tables.check_that_hold(window_seen(job.plan, job.first_query, job.num_tokens()), job.first_query);
  }
  tables.enter(job);
  run_jobs(kernels, list, memory, table_bytes, executor);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
