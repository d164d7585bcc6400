// What the formula gives for some rows of a call.
#pragma once

#include <lambda_attention/reference.hpp>

#include <support/error.hpp>
#include <support/random_tensor.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace support {

/// One head of each query, drawn at random; of at most `most` queries. The reference takes long for a row, and an error
/// seldom keeps to one.
class expected_rows {
 public:
  template <class Q, class K, class V, class Position>
  expected_rows(generator& random, const tensor<Q>& q, const tensor<K>& k, const tensor<V>& v,
                const lambda_attention::lambda_shape& shape, const Position& position,
                const lambda_attention::attention_options& options = {}, index_t most = lambda_attention::unlimited) {
    const tensor_view<const Q> queries = q.view();
    for (index_t i = 0; i < std::min(most, queries.tokens); ++i) {
      row r;
      r.query = most < queries.tokens ? draw(random, 0, queries.tokens - 1) : i;
      r.head = draw(random, 0, queries.heads - 1);
      r.out.resize(static_cast<std::size_t>(v.view().dim));
      r.lse = lambda_attention::reference::attend_row(queries.row(r.query, r.head), r.query, r.head, queries.heads,
                                                      k.view(), v.view(), shape, position, options, r.out.data());
      rows_.push_back(std::move(r));
    }
  }

  template <class Out>
  void add_errors(const tensor<Out>& actual, error_sum& sum) const {
    for (const row& r : rows_)
      for (std::size_t d = 0; d < r.out.size(); ++d)
        sum.add(lambda_attention::reference::number(actual.view().row(r.query, r.head)[d]), r.out[d]);
  }

  template <class Out>
  double nmse(const tensor<Out>& actual) const {
    error_sum sum;
    add_errors(actual, sum);
    return sum.nmse();
  }

  /// The same of log-sum-exps. Where one is below 1 its error is that of a weight, so it counts as 1.
  void add_lse_errors(const tensor<float>& actual, error_sum& sum) const {
    for (const row& r : rows_) {
      const long double lse = *actual.view().row(r.query, r.head);
      const long double size = std::fmax(1, std::fabs(r.lse));
      if (lse != r.lse) sum.add(size + lse - r.lse, size);  // equal where the row is empty: minus infinity
    }
  }

 private:
  struct row {
    index_t query;
    index_t head;
    long double lse;
    std::vector<long double> out;
  };
  std::vector<row> rows_;
};

/// Mean square about the mean, of numbers given one by one.
class variance {
 public:
  void add(double number) {
    count_ += 1;
    sum_ += number;
    sum_of_squares_ += number * number;
  }
  double value() const {
    return count_ == 0 ? 0 : std::fmax(0, sum_of_squares_ / count_ - sum_ / count_ * (sum_ / count_));
  }

 private:
  double count_ = 0, sum_ = 0, sum_of_squares_ = 0;
};

/// Variances over visible pairs drawn at random: of scores, times the scale, and of logits, which have biases too.
struct variances {
  double scores = 0;
  double logits = 0;
};

template <class Q, class K, class Position>
variances variances_of(generator& random, const tensor<Q>& q, const tensor<K>& k,
                       const lambda_attention::lambda_shape& shape, const Position& position, double scale,
                       int num_pairs) {
  using lambda_attention::reference::numbers;
  const tensor_view<const Q> queries = q.view();
  const tensor_view<const K> keys = k.view();
  variance scores, logits;
  for (int pair = 0; pair < num_pairs && queries.tokens > 0; ++pair) {
    const index_t query = draw(random, 0, queries.tokens - 1), head = draw(random, 0, queries.heads - 1);
    const index_t num_sinks = shape.sink_keys(query).size(), num_keys = num_sinks + shape.window_keys(query).size();
    if (num_keys == 0) continue;
    const index_t drawn = draw(random, 0, num_keys - 1);
    const index_t key = drawn < num_sinks ? drawn : shape.window_keys(query).first + drawn - num_sinks;
    const index_t distance = shape.distance(query, key);
    const double score =
        scale * static_cast<double>(position.score(
                    numbers(queries.row(query, head), queries.dim).data(),
                    numbers(keys.row(key, head / (queries.heads / keys.heads)), keys.dim).data(), keys.dim, distance));
    scores.add(score);
    logits.add(score + static_cast<double>(position.bias(head, distance)));
  }
  return {scores.value(), logits.value()};
}

/// The standard deviation of the logits.
template <class Q, class K, class Position>
double sigma_of(generator& random, const tensor<Q>& q, const tensor<K>& k, const lambda_attention::lambda_shape& shape,
                const Position& position, double scale, int num_pairs) {
  return std::sqrt(variances_of(random, q, k, shape, position, scale, num_pairs).logits);
}

}  // namespace support
