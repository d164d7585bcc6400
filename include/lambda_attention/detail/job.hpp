// One stream's share of a call, after the checks: everything the drivers need, no user type left in it.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Keys and values of a stream. `keys` is indexed by key_kind.
template <class Real>
struct key_value_rows {
  row_store<Real> keys[num_key_kinds];
  row_treatment treatment[num_key_kinds];
  row_store<Real> sink_values;
  row_store<Real> window_values;
  bool as_stored_by_a_cache;
};

template <class Real>
struct attention_job {
  tensor q;
  tensor out;
  tensor_view<float> lse;
  index_t first_query;  // index of the token of q's first row
  index_t num_kv_heads;
  std::uint64_t first_position;
  plan_shape plan;
  position_data encoding;
  key_value_rows<Real> rows;
  const float* sink_logits;
  Real scale;     // of scores, log2(e) included
  Real soft_cap;  // log2(e) included

  index_t num_tokens() const { return first_query + q.tokens; }
  index_t head_dim() const { return q.dim; }
  index_t v_head_dim() const { return out.dim; }
  index_t group() const { return q.heads / num_kv_heads; }

  // A task is one KV head and a run of queries, long enough that copying the keys it sees is little beside using them.
  // It depends on the shape alone: the same tasks whatever executes them.
  index_t queries_per_task() const {
    constexpr index_t fewest = 256, most = 2048;
    const index_t wanted = max(plan.shape.window, plan.shape.num_sinks);
    return min(max(wanted, fewest), most);
  }
  index_t tasks_per_head() const { return (q.tokens + queries_per_task() - 1) / queries_per_task(); }
  index_t num_tasks() const { return num_kv_heads * tasks_per_head(); }

  // Queries at so few positions are better read off the rows one position at a time than in tiles that stay empty.
  bool by_position() const { return rows.as_stored_by_a_cache && q.tokens <= most_by_position; }
  static constexpr index_t most_by_position = 4;

  // Keys of one kind that the queries [first, last) may see.
  index_range keys_seen(key_kind kind, index_t first, index_t last) const {
    const bool sinks = kind == key_kind::sinks_near || kind == key_kind::sinks_far;
    const bool near = kind == key_kind::sinks_near || kind == key_kind::window_near;
    const index_t limit = plan.slots() ? unlimited : plan.limit();
    index_range range =
        sinks ? index_range{0, min(plan.shape.num_sinks, last)} : index_range{plan.shape.num_sinks, last};
    if (kind == key_kind::window_far && limit >= plan.shape.window - 1) return {0, 0};
    if (!sinks) range.first = max(range.first, plan.shape.window_keys(first).first);
    if (sinks && plan.slots()) return range;
    if (near && first > limit) range.first = max(range.first, first - limit);
    if (!near) range.last = limit < last ? min(range.last, last - limit - 1) : range.first;
    if (range.last < range.first) range.last = range.first;
    return range;
  }
};

// 1 / (sum of the weights of a row), with a learned sink's weight where there is one; 0 for an empty row. `max` and the
// sink's logit are in log2, weights relative to 2^max. The larger of the two is taken out, so neither overflows.
template <class Real>
Real normaliser(Real sum, Real max, const float* sink_logit) {
  if (sum == 0) return 0;
  if (sink_logit == nullptr) return 1 / sum;
  const double above = static_cast<double>(*sink_logit) * log2_e - static_cast<double>(max);
  if (above <= 0) return 1 / (sum + static_cast<Real>(__builtin_exp2(above)));
  const Real shrink = static_cast<Real>(__builtin_exp2(-above));
  return shrink / (sum * shrink + 1);
}

// Natural log of the sum of exponentials; -inf for an empty row.
template <class Real>
float log_sum_exp(Real sum, Real max) {
  if (sum == 0) return -__builtin_huge_valf();
  return static_cast<float>((static_cast<double>(max) + __builtin_log2(static_cast<double>(sum))) / log2_e);
}

// The distance at which the bias of position 0 of a tile and key `key` is taken, and how it changes along lanes and keys.
struct bias_distance {
  index_t distance;
  int lane_step;
  int key_step;
};
inline bias_distance bias_distance_of(const plan_shape& plan, key_kind kind, index_t first_query, index_t key) {
  const bool far = kind == key_kind::sinks_far || kind == key_kind::window_far;
  if (!far) return {first_query - key, 1, 1};
  if (plan.slots()) return {plan.shape.last_slot() - key, 0, 1};
  return {plan.limit(), 0, 0};
}

// The position that the second copy of a query is turned to: the limit, which meets R(0)k, or that of the last slot, which
// meets sinks that are turned to their own position.
template <class Real>
std::uint64_t far_query_position(const attention_job<Real>& job) {
  if (!job.plan.slots()) return static_cast<std::uint64_t>(job.plan.limit());
  return job.first_position + static_cast<std::uint64_t>(job.plan.shape.last_slot());
}

// Hands out pieces of a block of memory; without one, only counts how much they would take.
class scratch_arena {
 public:
  explicit scratch_arena(unsigned char* memory) : memory_(memory) {}

  template <class T>
  T* take(index_t count) {
    T* const piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ = round_up(used_ + count * static_cast<index_t>(sizeof(T)), buffer_alignment);
    return piece;
  }
  index_t used() const { return used_; }

 private:
  unsigned char* memory_;
  index_t used_ = 0;
};

// What one worker needs to hold, over all jobs of a call.
struct scratch_sizes {
  index_t head_dim = 0;
  index_t v_head_dim = 0;
  index_t key_elements[num_key_kinds] = {};
  index_t sink_value_elements = 0;
  index_t window_value_elements = 0;
  index_t width = 0;
  index_t scores = 0;
};

template <class Real>
struct worker_scratch {
  Real* angles;      // of the position that rows are being turned to
  Real* far_angles;  // of the far query position
  Real* row;
  Real* turned_row;
  Real* keys[num_key_kinds];
  Real* sink_values;
  Real* window_values;
  Real* queries[2];
  Real* output;
  Real* scores;
  Real* running_max;
  Real* sum;
  Real* position;

  worker_scratch(scratch_arena& arena, const scratch_sizes& sizes) {
    constexpr index_t angle_count = row_turner<Real>::angle_count;
    angles = arena.take<Real>(angle_count);
    far_angles = arena.take<Real>(angle_count);
    row = arena.take<Real>(max_head_dim);
    turned_row = arena.take<Real>(max_head_dim);
    for (int kind = 0; kind < num_key_kinds; ++kind) keys[kind] = arena.take<Real>(sizes.key_elements[kind]);
    sink_values = arena.take<Real>(sizes.sink_value_elements);
    window_values = arena.take<Real>(sizes.window_value_elements);
    queries[0] = arena.take<Real>(sizes.head_dim * sizes.width);
    queries[1] = arena.take<Real>(sizes.head_dim * sizes.width);
    output = arena.take<Real>(sizes.v_head_dim * sizes.width);
    scores = arena.take<Real>(sizes.scores);
    running_max = arena.take<Real>(sizes.width);
    sum = arena.take<Real>(sizes.width);
    position = arena.take<Real>(sizes.width);
  }
};

// The rows that one task reads, where a kernel can read them.
template <class Real>
struct task_rows {
  row_window<Real> keys[num_key_kinds];
  row_window<Real> sink_values;
  row_window<Real> window_values;

  const row_window<Real>& values(key_kind kind) const {
    return kind == key_kind::sinks_near || kind == key_kind::sinks_far ? sink_values : window_values;
  }
};

// Values that the queries [first, last) may see.
template <class Real>
index_range values_seen(const attention_job<Real>& job, bool sinks, index_t first, index_t last) {
  if (sinks) return {0, min(job.plan.shape.num_sinks, last)};
  return {max(job.plan.shape.num_sinks, job.plan.shape.window_keys(first).first), last};
}

template <class Real>
task_rows<Real> rows_for(const kernel_table<Real>& kernels, const attention_job<Real>& job, index_t kv_head,
                         index_t first, index_t last, worker_scratch<Real>& scratch) {
  const key_value_rows<Real>& rows = job.rows;
  row_turner<Real> turner(kernels, job.encoding, job.head_dim(), scratch.angles);
  task_rows<Real> result;
  for (int k = 0; k < num_key_kinds; ++k) {
    const index_range seen = job.keys_seen(static_cast<key_kind>(k), first, last);
    if (seen.size() > 0)
      result.keys[k] = window_of(kernels, rows.keys[k], rows.treatment[k], kv_head, seen, job.first_position, turner,
                                 scratch.keys[k], scratch.row);
  }
  result.sink_values = window_of(kernels, rows.sink_values, row_treatment::as_stored, kv_head,
                                 values_seen(job, true, first, last), 0, turner, scratch.sink_values, scratch.row);
  result.window_values = window_of(kernels, rows.window_values, row_treatment::as_stored, kv_head,
                                   values_seen(job, false, first, last), 0, turner, scratch.window_values, scratch.row);
  return result;
}

// Enlarges `sizes` to what `job` takes.
template <class Real>
void add_sizes(const kernel_table<Real>& kernels, const attention_job<Real>& job, scratch_sizes& sizes) {
  const key_value_rows<Real>& rows = job.rows;
  sizes.head_dim = max(sizes.head_dim, round_up(job.head_dim(), row_multiple));
  sizes.v_head_dim = max(sizes.v_head_dim, round_up(job.v_head_dim(), row_multiple));
  sizes.width = max(kernels.lanes * kernels.tile_vectors, max_tile_vectors);
  sizes.scores = max(sizes.scores, keys_per_block * sizes.width);
  const index_t step = job.queries_per_task();
  for (index_t first = job.first_query; first < job.num_tokens(); first += step) {
    const index_t last = min(first + step, job.num_tokens());
    for (int k = 0; k < num_key_kinds; ++k) {
      if (readable_in_place(rows.keys[k], rows.treatment[k])) continue;
      const index_t seen = job.keys_seen(static_cast<key_kind>(k), first, last).size();
      sizes.key_elements[k] = max(sizes.key_elements[k], seen * round_up(job.head_dim(), row_multiple));
    }
    const index_t padded = round_up(job.v_head_dim(), row_multiple);
    if (!readable_in_place(rows.sink_values, row_treatment::as_stored))
      sizes.sink_value_elements = max(sizes.sink_value_elements, values_seen(job, true, first, last).size() * padded);
    if (!readable_in_place(rows.window_values, row_treatment::as_stored))
      sizes.window_value_elements =
          max(sizes.window_value_elements, values_seen(job, false, first, last).size() * padded);
    if (job.by_position()) {
      const index_t keys = values_seen(job, true, first, last).size() + values_seen(job, false, first, last).size();
      sizes.scores = max(sizes.scores, max_tile_vectors * round_up(keys + row_multiple, row_multiple));
    }
  }
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
