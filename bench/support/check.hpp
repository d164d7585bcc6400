// Rows of an output against the formula, before anything is timed.
#pragma once

#include <lambda_attention/reference.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

namespace bench {

using lambda_attention::index_t;

/// How far numbers are from the ones they should be.
class deviation {
 public:
  void add(long double expected, long double got) {
    const long double difference = got - expected;
    squared_error_ += difference * difference;
    squared_size_ += expected * expected;
    largest_ = std::fmax(largest_, std::fabs(difference));
    if (!std::isfinite(got)) largest_ = squared_error_ = HUGE_VALL;  // fmax would drop a NaN
    ++count_;
  }

  void add(const deviation& other) {
    squared_error_ += other.squared_error_;
    squared_size_ += other.squared_size_;
    largest_ = std::fmax(largest_, other.largest_);
    count_ += other.count_;
  }

  /// Sum of squared differences over sum of squares.
  double nmse() const { return static_cast<double>(squared_error_ / squared_size_); }
  double largest() const { return static_cast<double>(largest_); }
  /// Root of the mean square of what was expected.
  double rms() const { return static_cast<double>(std::sqrt(squared_size_ / static_cast<long double>(count_))); }
  bool within(double bound) const { return count_ > 0 && nmse() <= bound; }

 private:
  long double squared_error_ = 0, squared_size_ = 0, largest_ = 0;
  index_t count_ = 0;
};

/// Float arithmetic on inputs read in place keeps NMSE <= this * max(1, variance of the logits) against the formula. The
/// logits of normal inputs of variance 1 have variance 1.
inline constexpr double float_nmse_bound = 1e-11;
inline constexpr double double_nmse_bound = 1e-24;

/// For a row that sees many thousand keys: a float sum of m terms that are added in order has rounding errors of
/// m * 3e-16 (signs mixed: the values) and m * 2e-16 (signs equal: the weights), squared and relative; four times that.
inline double float_nmse_bound_of(index_t num_keys) {
  return std::fmax(float_nmse_bound, 2e-15 * static_cast<double>(num_keys));
}

/// Two results that each keep NMSE <= e^2 differ by at most 2 e in units of the root mean square. A single difference is
/// taken to be within six standard deviations: of a million normal ones, about one in 500 runs would have one outside.
inline double largest_difference_bound(double rms, double logit_variance = 1) {
  return 6 * 2 * std::sqrt(float_nmse_bound * std::fmax(1, logit_variance)) * rms;
}
inline double difference_nmse_bound(double logit_variance = 1) {
  return 4 * float_nmse_bound * std::fmax(1, logit_variance);
}

/// Compares `count` tokens from `first` on with the formula, for each token one head in turn.
template <class Q, class K, class V, class Position, class Out>
deviation against_formula(const lambda_attention::tensor_view<Q>& q, const lambda_attention::tensor_view<K>& k,
                          const lambda_attention::tensor_view<V>& v, const lambda_attention::lambda_shape& shape,
                          const Position& position, const lambda_attention::tensor_view<Out>& out, index_t first,
                          index_t count) {
  deviation result;
  std::vector<long double> row(static_cast<std::size_t>(v.dim));
  for (index_t i = first; i < first + count; ++i) {
    const index_t head = i % q.heads;
    lambda_attention::reference::attend_row(q.row(i, head), i, head, q.heads, k, v, shape, position, {}, row.data());
    for (index_t d = 0; d < v.dim; ++d)
      result.add(row[static_cast<std::size_t>(d)], lambda_attention::reference::number(out.row(i, head)[d]));
  }
  return result;
}

}  // namespace bench
