// Queries in and outputs out: rows of the caller's tensors to and from the numbers of the kernels.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

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
double log_sum_exp(Real sum, Real max) {
  if (sum == 0) return -__builtin_huge_val();
  return (static_cast<double>(max) + __builtin_log2(static_cast<double>(sum))) / log2_e;
}

// The numbers of a row of the caller's.
template <class Real>
void read_tensor_row(const kernel_table<Real>& kernels, const tensor& t, index_t token, index_t head, Real* row) {
  const unsigned char* const source = t.row(token, head);
  if (t.format == row_format::custom) {
    row_store<Real>::read_custom(t.read, source, t.dim, row);
  } else {
    kernels.read_row(t.format, source, t.dim, Real(1), row);
  }
}

template <class Real>
void write_tensor_row(const kernel_table<Real>& kernels, const tensor& t, index_t token, index_t head,
                      const Real* row) {
  unsigned char* const destination = t.row(token, head);
  if (t.format != row_format::custom) {
    kernels.write_row(t.format, row, t.dim, destination);
    return;
  }
  float narrow[max_head_dim];
  for (index_t d = 0; d < t.dim; ++d) narrow[d] = static_cast<float>(row[d]);
  t.write(narrow, t.dim, destination);
}

// The numbers of q(token, head), where they lie or read into `row`.
template <class Real>
const Real* read_query(const kernel_table<Real>& kernels, const tensor& q, index_t token, index_t head, Real* row) {
  if (q.format == native_format<Real>) return reinterpret_cast<const Real*>(q.row(token, head));
  read_tensor_row(kernels, q, token, head, row);
  return row;
}

// Turns the queries of a chunk: to their own positions, and to where they meet keys that count as farther than they are. What
// has been turned to its own position already is turned on from there, or back.
template <class Real>
class query_turner {
 public:
  query_turner(const kernel_table<Real>& kernels, const attention_job<Real>& job, row_turner<Real>& own,
               Real* far_angles)
      : job_(job), own_(own), far_(kernels, job.encoding, job.head_dim(), far_angles) {}

  static index_t far_angle_count(const attention_job<Real>& job) {
    return row_turner<Real>::angle_count(job.encoding) * (turned(job) ? queries_per_chunk : 1);
  }

  void begin_chunk(index_t first, index_t last) {
    first_ = first;
    last_ = last;
    if (turned(job_)) {
      far_.move_on_by(far_query_position(job_) - position_of(last - 1), last - first);
    } else {
      own_.move_to(position_of(first), last - first);
      far_.move_to(far_query_position(job_));
    }
  }

  void turn_to_own_position(index_t query, const Real* row, Real* result) const {
    if (turned(job_)) {
      std::memcpy(result, row, static_cast<std::size_t>(job_.head_dim()) * sizeof(Real));
    } else {
      own_.turn(row, result, query - first_);
    }
  }
  void turn_to_far_position(index_t query, const Real* row, Real* result) const {
    far_.turn(row, result, turned(job_) ? last_ - 1 - query : 0);
  }

 private:
  static bool turned(const attention_job<Real>& job) { return job.query_rotation != row_rotation::none; }
  std::uint64_t position_of(index_t query) const { return job_.first_position + static_cast<std::uint64_t>(query); }

  const attention_job<Real>& job_;
  row_turner<Real>& own_;  // which may have been elsewhere between chunks
  row_turner<Real> far_;
  index_t first_ = 0;
  index_t last_ = 0;
};

// A row of lse: one number.
inline void write_number(const tensor& lse, index_t token, index_t head, double number) {
  if (lse.format == row_format::f64) {
    *reinterpret_cast<double*>(lse.row(token, head)) = number;
  } else {
    *reinterpret_cast<float*>(lse.row(token, head)) = static_cast<float>(number);
  }
}
inline double read_number(const tensor& lse, index_t token, index_t head) {
  const unsigned char* const row = lse.row(token, head);
  if (lse.format == row_format::f64) return *reinterpret_cast<const double*>(row);
  return static_cast<double>(*reinterpret_cast<const float*>(row));
}

template <class Real>
void write_lse(const attention_job<Real>& job, index_t token, index_t head, Real sum, Real max) {
  if (job.lse.data != nullptr) write_number(job.lse, token, head, log_sum_exp(sum, max));
}

template <class Real>
const float* sink_logit_of(const attention_job<Real>& job, index_t head) {
  return job.sink_logits == nullptr ? nullptr : job.sink_logits + head;
}

template <class Real>
Real slope_of(const attention_job<Real>& job, index_t head) {
  return job.encoding.slopes == nullptr ? Real(0) : static_cast<Real>(job.encoding.slopes[head] * log2_e);
}

template <class Real>
const Real* bias_row_of(const attention_job<Real>& job, index_t head) {
  return job.encoding.biases == nullptr ? nullptr : job.encoding.biases->row(head, Real{});
}

template <class Real>
index_t num_biases_of(const attention_job<Real>& job) {
  return job.encoding.biases == nullptr ? 0 : job.encoding.biases->num_distances();
}

// Query heads of one KV head are taken 4, 2 or 1 at a time, so that a key is read once for all of them.
inline int heads_at_once(index_t heads_left, int most) {
  int heads = most;
  while (heads > heads_left) heads /= 2;
  return heads;
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
