// Keys and values in runs of the caller's: their checks, the job they become, and the tables in which it looks rows up.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/heap.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/numbered_name.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/run.hpp>
#include <lambda_attention/detail/task_rows.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/workspace.hpp>

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
  return {queries.first, detail::erase(queries.q), queries.rotation};
}
template <class Run>
auto runs_at(const Run* runs, const char* where) {
  if (runs == nullptr) refuse("%s: expected runs, got a null pointer", where);
  return [runs](index_t r) {
    return erased_run{runs[r].first, detail::erase(runs[r].k), detail::erase(runs[r].v), runs[r].rotation};
  };
}

// What one call is about. run_at(r) is run r of num_runs.
template <class RunAt>
struct runs_call {
  const char* where;
  erased_queries queries;
  index_t num_runs;
  RunAt run_at;
  tensor out;
  tensor lse;  // no data: not wanted
  index_range part;
};
template <class RunAt>
runs_call(const char*, erased_queries, index_t, RunAt, tensor, tensor, index_range) -> runs_call<RunAt>;

// Indices so far below int64's end that no sum of a few of them overflows.
inline constexpr index_t most_tokens = index_t{1} << 62;
inline constexpr index_t most_keys_seen = index_t{1} << 40;

inline void check_indices(index_t first, index_t tokens, index_t first_position, const char* name, const char* where) {
  if (first < 0) refuse("%s: expected %s.first >= 0, got %lld", where, name, printable(first));
  if (tokens > most_tokens - first)
    refuse("%s: expected indices below 2^62 in %s, got first = %lld and %lld tokens", where, name, printable(first),
           printable(tokens));
  check_positions(first_position, first + tokens, where);
}

inline void check_rotation(row_rotation rotation, row_rotation last, const encoding_limits& limits, const char* name,
                           const char* where) {
  if (rotation < row_rotation::none || rotation > last)
    refuse("%s: expected %s.rotation to be none%s, got %d", where, name,
           last == row_rotation::to_zero ? ", to_position or to_zero" : " or to_position", static_cast<int>(rotation));
  if (rotation != row_rotation::none && limits.data.has_function())
    refuse("%s: expected %s.rotation to be none, as the encoding turns rows by a function, got %d", where, name,
           static_cast<int>(rotation));
}

// Run r of a call, of which `model` is the first.
inline void check_run(const erased_run& run, index_t r, const erased_run& model, const tensor& out,
                      const encoding_limits& limits, const attention_options& options, const char* where) {
  const numbered_name name("runs[", r, "]"), k("runs[", r, "].k"), v("runs[", r, "].v");
  check_tensor(run.k, where, k);
  check_tensor(run.v, where, v);
  if (run.v.tokens != run.k.tokens || run.v.heads != run.k.heads)
    refuse("%s: expected %s with the tokens and heads of its k, [%lld, %lld], got [%lld, %lld]", where,
           static_cast<const char*>(v), printable(run.k.tokens), printable(run.k.heads), printable(run.v.tokens),
           printable(run.v.heads));
  if (run.k.heads != model.k.heads || run.k.dim != model.k.dim || run.v.dim != model.v.dim)
    refuse("%s: expected %s with heads, k.dim and v.dim as runs[0], %lld, %lld and %lld, got %lld, %lld and %lld",
           where, static_cast<const char*>(name), printable(model.k.heads), printable(model.k.dim),
           printable(model.v.dim), printable(run.k.heads), printable(run.k.dim), printable(run.v.dim));
  check_indices(run.first, run.k.tokens, options.first_position, name, where);
  check_rotation(run.rotation, row_rotation::to_zero, limits, name, where);
  check_alias(out, run.k, where, k);
  check_alias(out, run.v, where, v);
  check_not_k_or_v(erase(options.weights), "options.weights", run.k, run.v, where);
}

// All that can be wrong with a call but for its lse, and for keys that are missing, or there twice.
template <class RunAt>
void check_runs(const runs_call<RunAt>& call, const lambda_shape& shape, const encoding_limits& limits,
                const attention_options& options) {
  const char* const where = call.where;
  check_shape(shape, where);
  if (call.num_runs < 1)
    refuse("%s: expected num_runs >= 1, got %lld (a run may have no tokens)", where, printable(call.num_runs));
  const erased_run model = call.run_at(0);
  check_keys(model.k, model.v, where);
  const tensor &q = call.queries.q, &out = call.out;
  check_queries(q, out, {model.k.heads, model.k.dim, model.v.dim, "k.heads", "k.dim", "v.dim"}, limits, options, where);
  check_indices(call.queries.first, q.tokens, options.first_position, "q", where);
  check_weights(options, shape, call.queries.first + q.tokens, model.k.heads, q, out, where);
  check_rotation(call.queries.rotation, row_rotation::to_position, limits, "q", where);
  for (index_t r = 0; r < call.num_runs; ++r) check_run(call.run_at(r), r, model, out, limits, options, where);
}

template <class RunAt>
void check_lse_of_runs(const runs_call<RunAt>& call, const char* name) {
  for (index_t r = 0; r < call.num_runs && call.lse.data != nullptr; ++r) {
    const erased_run run = call.run_at(r);
    if (overlap(call.lse, run.k) || overlap(call.lse, run.v))
      refuse("%s: expected %s not to overlap runs[%lld].k or .v, got overlapping memory", call.where, name,
             printable(r));
  }
}

// A rotation as those that a job wants of its keys: none where the encoding has none, or where it leaves position 0 as it is.
template <class Real>
row_rotation effective_rotation(const attention_job<Real>& job, row_rotation rotation) {
  const bool leaves_zero = job.encoding.rotation.factor == 1 && rotation == row_rotation::to_zero;
  return !job.encoding.rotates() || leaves_zero ? row_rotation::none : rotation;
}

// Whether the kernels for a few queries know rows of this format that end where their numbers do.
template <class Real>
bool known_by_position(const tensor& t) {
  const bool narrow = sizeof(Real) == sizeof(float) && (t.format == row_format::f16 || t.format == row_format::bf16);
  return (narrow || t.format == native_format<Real>)&&t.dim % row_multiple == 0;
}

// Pairs of numbers are read as words.
inline bool rows_begin_at_words(const tensor& t) {
  constexpr index_t word = 4;
  return reinterpret_cast<std::uintptr_t>(t.data) % word == 0 && t.token_bytes() % word == 0 &&
         t.head_bytes() % word == 0;
}

// Whether all keys that a job's queries see of a kind, and their values, can be read where they lie.
template <class Real, class RunAt>
bool readable_as_stored(const attention_job<Real>& job, const runs_call<RunAt>& call, key_kind kind) {
  const index_range seen = job.plan.band(kind, job.first_query, job.num_tokens()).keys;
  for (index_t r = 0; r < call.num_runs; ++r) {
    const erased_run run = call.run_at(r);
    const bool turned = effective_rotation(job, run.rotation) == job.rows.wanted[static_cast<int>(kind)];
    const bool readable = turned && rows_begin_at_words(run.k) && rows_begin_at_words(run.v);
    if (!readable && common(run.keys(), seen).size() > 0) return false;
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
  const auto store_of_runs = [](const tensor& t, placed_rows placed_run::*rows) {
    row_store<Real> store = store_of<Real>(t);
    store.in_runs = true;
    store.rows_of_run = rows;
    return store;
  };
  for (row_store<Real>& keys : job.rows.keys) keys = store_of_runs(model.k, &placed_run::keys);
  job.rows.sink_values = job.rows.window_values = store_of_runs(model.v, &placed_run::values);
  choose_rotations(job);
  const bool known =
      known_by_position<Real>(model.k) && known_by_position<Real>(model.v) && model.k.format == model.v.format;
  const auto as_stored = [&](key_kind near, key_kind far) {
    return known && readable_as_stored(job, call, near) && readable_as_stored(job, call, far);
  };
  job.rows.sinks_as_stored = as_stored(key_kind::sinks_near, key_kind::sinks_far);
  job.rows.window_as_stored = as_stored(key_kind::window_near, key_kind::window_far);
  choose_kernels(job, pairs == nullptr ? nullptr : pairs(options.isa), options.isa);
  return job;
}

// A call's runs in the order of their keys, without those that have no tokens.
class run_table {
 public:
  static index_t bytes(index_t num_runs, const char* where) {
    index_t bytes = 0;
    if (!multiply(num_runs, static_cast<index_t>(sizeof(placed_run)), &bytes) || bytes > (INT64_MAX >> 8))
      refuse("%s: expected runs that fit in memory, got %lld", where, printable(num_runs));
    return round_up(bytes, buffer_alignment);
  }

  template <class Real, class RunAt>
  run_table(const attention_job<Real>& job, const runs_call<RunAt>& call, void* memory)
      : where_(call.where), runs_(static_cast<placed_run*>(memory)) {
    for (index_t r = 0; r < call.num_runs; ++r) {
      const erased_run run = call.run_at(r);
      if (run.k.tokens == 0) continue;
      ::new (static_cast<void*>(runs_ + size_++))
          placed_run{run.keys(), effective_rotation(job, run.rotation), place(run.k), place(run.v)};
    }
    heap_sort(runs_, size_, [](const placed_run& a, const placed_run& b) { return a.indices.first < b.indices.first; });
  }

  void check_each_key_once() const {
    for (index_t r = 1; r < size_; ++r)
      if (runs_[r].indices.first < runs_[r - 1].indices.last)
        refuse("%s: expected every key in one run, got key %lld in two", where_, printable(runs_[r].indices.first));
  }

  // That the runs hold all of `seen`, keys that queries from first_query on see.
  void check_that_hold(index_range seen, index_t first_query) const {
    index_t key = seen.first;
    for (index_t r = 0; r < size_ && key < seen.last && runs_[r].indices.first <= key; ++r)
      key = max(key, runs_[r].indices.last);
    if (key < seen.last)
      refuse("%s: expected a run with key %lld, which query %lld sees, got none that has it", where_, printable(key),
             printable(max(key, first_query)));
  }

  template <class Real>
  void enter(key_value_rows<Real>& rows) const {
    for (row_store<Real>& keys : rows.keys) enter(keys);
    enter(rows.sink_values);
    enter(rows.window_values);
  }

 private:
  static placed_rows place(const tensor& t) { return {t.data, t.token_bytes(), t.head_bytes()}; }
  template <class Real>
  void enter(row_store<Real>& store) const {
    store.runs = runs_;
    store.num_runs = size_;
  }

  const char* where_;
  placed_run* runs_;
  index_t size_ = 0;
};

// A call that was checked, but for keys that are missing, or there twice: the table tells.
template <class Real, class RunAt, class Executor>
void attend_runs(const runs_call<RunAt>& call, const lambda_shape& shape, const position_data& encoding,
                 const attention_options& options, const pair_kernels<Real>* (*pairs)(isa_level), Executor& executor) {
  attention_job<Real> job = runs_job<Real>(call, shape, encoding, options, pairs);
  const index_t seen = job.q.tokens > 0 ? job.keys_seen() : 0;
  if (seen > most_keys_seen)
    refuse("%s: expected queries that see at most 2^40 keys together, got %lld", call.where, printable(seen));
  workspace own;
  workspace& memory = options.workspace != nullptr ? *options.workspace : own;
  const kernel_table<Real>& kernels = kernels_for<Real>(options.isa);
  const job_list<Real> list(&job, 1, checked_workers(executor, call.where));
  const index_t table_bytes = run_table::bytes(call.num_runs, call.where);
  memory.reserve(table_bytes + call_scratch<Real>(kernels, list).bytes());
  const run_table table(job, call, memory.data());
  table.check_each_key_once();
  if (job.q.tokens > 0) {
    table.check_that_hold(sinks_seen(job.plan, job.num_tokens()), job.first_query);
    table.check_that_hold(window_seen(job.plan, job.first_query, job.num_tokens()), job.first_query);
  }
  table.enter(job.rows);
  detail::run_jobs(kernels, list, memory, table_bytes, executor);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
