// The keys and values that a task sees, where a kernel can read them, and the scratch that takes.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The rows that one task reads, where a kernel can read them.
template <class Real>
struct task_rows {
  row_window<Real> keys[num_key_kinds];
  row_window<Real> sink_values;
  row_window<Real> window_values;

  const row_window<Real>& values(key_kind kind) const { return is_sink(kind) ? sink_values : window_values; }
};

// Sinks and keys of the window that the queries [first, last) may see, at any distance: those whose values they need.
template <class Real>
index_range sinks_seen(const attention_job<Real>& job, index_t last) {
  return job.plan.shape.sink_keys(last - 1);
}
template <class Real>
index_range window_seen(const attention_job<Real>& job, index_t first, index_t last) {
  return {job.plan.shape.window_keys(first).first, last};
}

template <class Real>
task_rows<Real> rows_for(const kernel_table<Real>& kernels, const attention_job<Real>& job, index_t kv_head,
                         index_t first, index_t last, worker_scratch<Real>& scratch) {
  const key_value_rows<Real>& rows = job.rows;
  row_turner<Real> turner(kernels, job.encoding, job.head_dim(), scratch.angles);
  task_rows<Real> result;
  for (int k = 0; k < num_key_kinds; ++k) {
    const index_range seen = job.plan.band(static_cast<key_kind>(k), first, last).keys;
    if (seen.size() > 0)
      result.keys[k] = window_of(kernels, rows.keys[k], rows.treatment[k], kv_head, seen, job.first_position, turner,
                                 scratch.keys[k], scratch.row);
  }
  result.sink_values = window_of(kernels, rows.sink_values, row_treatment::as_stored, kv_head, sinks_seen(job, last), 0,
                                 turner, scratch.sink_values, scratch.row);
  result.window_values = window_of(kernels, rows.window_values, row_treatment::as_stored, kv_head,
                                   window_seen(job, first, last), 0, turner, scratch.window_values, scratch.row);
  return result;
}

// Enlarges `sizes` to what the copies of one task's rows take.
template <class Real>
void add_row_sizes(const attention_job<Real>& job, index_t first, index_t last, scratch_sizes& sizes) {
  const key_value_rows<Real>& rows = job.rows;
  const index_t padded_dim = round_up(job.head_dim(), row_multiple);
  const index_t padded_v_dim = round_up(job.v_head_dim(), row_multiple);
  for (int k = 0; k < num_key_kinds; ++k) {
    if (readable_in_place(rows.keys[k], rows.treatment[k])) continue;
    const index_t seen = job.plan.band(static_cast<key_kind>(k), first, last).keys.size();
    sizes.key_elements[k] = max(sizes.key_elements[k], seen * padded_dim);
  }
  if (!readable_in_place(rows.sink_values, row_treatment::as_stored))
    sizes.sink_value_elements = max(sizes.sink_value_elements, sinks_seen(job, last).size() * padded_v_dim);
  if (!readable_in_place(rows.window_values, row_treatment::as_stored))
    sizes.window_value_elements = max(sizes.window_value_elements, window_seen(job, first, last).size() * padded_v_dim);
}

// Enlarges `sizes` to what `job` takes.
template <class Real>
void add_sizes(const kernel_table<Real>& kernels, const attention_job<Real>& job, scratch_sizes& sizes) {
  sizes.head_dim = max(sizes.head_dim, round_up(job.head_dim(), row_multiple));
  sizes.v_head_dim = max(sizes.v_head_dim, round_up(job.v_head_dim(), row_multiple));
  sizes.width = max(kernels.lanes * kernels.tile_vectors, max_tile_vectors);
  sizes.scores = max(sizes.scores, keys_per_block * sizes.width);
  const index_t step = job.queries_per_task();
  for (index_t first = job.first_query; first < job.num_tokens(); first += step) {
    const index_t last = min(first + step, job.num_tokens());
    if (!job.as_stored()) add_row_sizes(job, first, last, sizes);
    if (!job.by_position()) continue;
    const index_t keys = sinks_seen(job, last).size() + window_seen(job, first, last).size();
    sizes.scores = max(sizes.scores, max_tile_vectors * round_up(keys + row_multiple, row_multiple));
  }
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
