// The keys of a few queries in parts, where these are read off the rows as they lie: threads that outnumber the KV heads share
// the parts of a head. Where the cuts lie depends on how many keys the queries of a call see that are taken together, and not on the
// workers, and parts are joined in their order, so no bit of a result tells how many threads there were.
//
//     keys     0 ... 1039 | 1040 ... 2079 | 2080 ... 3119 | 3120 ... 4111      sinks first
//     parts        0      |       1       |       2       |       3            each: max, sum, weighted values
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/scratch.hpp>

#include <atomic>
#include <new>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// So many keys that what a part costs beside them, a query turned and a row joined, is lost in the noise: with half as many
// it is 2 %.
inline constexpr index_t fewest_keys_per_part = 1024;
inline constexpr index_t most_parts = 64;

// Parts of so many keys; of fewer, never more.
constexpr index_t num_parts_of(index_t num_keys) { return max(1, min(most_parts, num_keys / fewest_keys_per_part)); }

// Even parts, each of which begins where a vector of scores does; the last has what is left.
constexpr index_t keys_per_part(index_t num_keys, index_t num_parts) {
  return max(row_multiple, round_up(divide_up(num_keys, num_parts), row_multiple));
}

template <class Real>
index_t num_parts(const attention_job<Real>& job) {
  return num_parts_of(job.keys_seen());
}

// What the parts gave for all queries of a job and all heads of a KV head, and how many parts are done.
template <class Real>
class partial_results {
 public:
  partial_results(scratch_arena& arena, const scratch_sizes& sizes) {
    num_done_ = arena.take<std::atomic<index_t>>(1);
    max_ = arena.take<Real>(sizes.partial_rows);
    sum_ = arena.take<Real>(sizes.partial_rows);
    output_ = arena.take<Real>(sizes.partial_rows * sizes.v_head_dim);
  }

  // Before the first part.
  void begin() { ::new (static_cast<void*>(num_done_)) std::atomic<index_t>(0); }
  // After `count` parts: whether those were the last of `all`. Then what the others wrote is there to be read.
  bool complete(index_t count, index_t all) {
    return num_done_->fetch_add(count, std::memory_order_acq_rel) + count == all;
  }

  // By row [part][query][head]: queries and heads lie side by side, as kernels write them.
  Real& max(index_t row) const { return max_[row]; }
  Real& sum(index_t row) const { return sum_[row]; }
  Real* output(index_t row, index_t padded_v_dim) const { return output_ + row * padded_v_dim; }

 private:
  std::atomic<index_t>* num_done_;
  Real* max_;
  Real* sum_;
  Real* output_;
};

// The weights of one query and head, of whose keys the scores are in their place. `scores` is room for all of them.
template <class Real>
void write_weights(const attention_job<Real>& job, index_t token, index_t head, Real* scores) {
  const index_t query = job.first_query + token;
  const lambda_shape& shape = job.plan.shape;
  float* const row = reinterpret_cast<float*>(job.weights.row(token, head));
  const index_range seen[] = {shape.sink_keys(query), shape.window_keys(query)};
  index_t num_keys = 0;
  for (const index_range keys : seen)
    for (index_t key = keys.first; key < keys.last; ++key)
      scores[num_keys++] = static_cast<Real>(row[weight_column(shape, query, key)]);
  Real sum = 0;
  const Real max = job.one_position->softmax(scores, num_keys, &sum);
  const Real scale = normaliser(sum, max, sink_logit_of(job, head));
  for (index_t column = 0; column < job.weights.dim; ++column) row[column] = 0;
  num_keys = 0;
  for (const index_range keys : seen)
    for (index_t key = keys.first; key < keys.last; ++key)
      row[weight_column(shape, query, key)] = static_cast<float>(scores[num_keys++] * scale);
}

// Writes the output of one query and head. Its partial results are those of first_row and of every rows_per_part on.
//
//     out = sum_p 2^(max_p - max) output_p / sum_p 2^(max_p - max) sum_p
template <class Real>
void join_parts(const kernel_table<Real>& kernels, const attention_job<Real>& job,
                const partial_results<Real>& partials, index_t first_row, index_t token, index_t head, Real* row) {
  const index_t count = num_parts(job), rows_per_part = job.q.tokens * job.group();
  const index_t padded_v_dim = round_up(job.v_head_dim(), row_multiple);
  Real most = partials.max(first_row), sum = 0, weights[most_parts];
  for (index_t p = 1; p < count; ++p) {
    const Real max_of_part = partials.max(first_row + p * rows_per_part);
    if (max_of_part > most) most = max_of_part;
  }
  for (index_t p = 0; p < count; ++p) {
    const index_t partial = first_row + p * rows_per_part;
    weights[p] =
        static_cast<Real>(__builtin_exp2(static_cast<double>(partials.max(partial)) - static_cast<double>(most)));
    sum += weights[p] * partials.sum(partial);
  }
  const Real scale = normaliser(sum, most, sink_logit_of(job, head));
  for (index_t p = 0; p < count; ++p) weights[p] *= scale;

  stored_rows outputs = {};
  outputs.format = native_format<Real>;
  outputs.values = reinterpret_cast<const unsigned char*>(partials.output(first_row, padded_v_dim));
  outputs.value_row_bytes = rows_per_part * padded_v_dim * static_cast<index_t>(sizeof(Real));
  outputs.num_keys = count;
  for (index_t d = 0; d < padded_v_dim; ++d) row[d] = 0;
  job.one_position->add_values(weights, count, 1, padded_v_dim, outputs, row);
  write_tensor_row(kernels, job.out, token, head, row);
  write_lse(job, token, head, sum, most);
}

// Of all queries of a job and all heads of a KV head. `row` is room for one, `scores` for those of one.
template <class Real>
void join_parts(const kernel_table<Real>& kernels, const attention_job<Real>& job,
                const partial_results<Real>& partials, index_t kv_head, Real* row, Real* scores) {
  const index_t group = job.group();
  for (index_t token = 0; token < job.q.tokens; ++token)
    for (index_t h = 0; h < group; ++h) {
      join_parts(kernels, job, partials, token * group + h, token, kv_head * group + h, row);
      if (job.weights.data != nullptr) write_weights(job, token, kv_head * group + h, scores);
    }
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
