// One row of one head by the formula, and how far from it a call may be.
#pragma once

#include <lambda_attention/element.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/reference.hpp>
#include <lambda_attention/storage.hpp>

#include <support/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "any_position.hpp"

namespace fuzz {

using lambda_attention::attention_options;
using lambda_attention::isa_level;
using lambda_attention::lambda_shape;
using lambda_attention::row_format;
using lambda_attention::tensor_view;
using lambda_attention::reference::number;

/// The largest relative error that a call makes when it rounds numbers, on top of its arithmetic.
///
/// The bounds of support/error.hpp hold on average over hundreds of normal numbers, and an input may have two. So
/// arithmetic in float or double, which is thousands of times as exact as its bound, keeps to that; and what rounds rows
/// to fewer bits keeps to what no roundings exceed.
struct roundings {
  double queries = 0;
  double keys = 0;
  double values = 0;
  double weights = 0;
  bool bytes =
      false;  // queries, keys and values: relative to the largest number of the row; weights: to the largest one

  // A bfloat16 has 8 bits, so half a unit in the last place is at most 2^-8.
  static constexpr double of_bfloat16 = 0x1p-8;

  static bool has_pairs(isa_level isa) { return level_of(isa) >= isa_level::avx512_bf16; }
  static bool has_bytes(isa_level isa) { return level_of(isa) >= isa_level::avx512_vnni; }
  static isa_level level_of(isa_level isa) { return isa == isa_level::automatic ? lambda_attention::isa() : isa; }

  /// Of a call on tensors whose keys and values are both bfloat16, or are not.
  static roundings of_tensors(bool bfloat16s, isa_level isa) {
    roundings r;
    if (bfloat16s && has_pairs(isa)) r.queries = r.keys = r.weights = of_bfloat16;
    return r;
  }

  /// Of a call on a cache. Rows that are `exact` are not rounded by any storage.
  static roundings of_cache(row_format format, isa_level isa, bool exact) {
    roundings r;
    if (!exact) {
      r.keys = r.values = format == row_format::f16    ? 0x1p-11
                          : format == row_format::bf16 ? of_bfloat16
                          : format == row_format::int8 ? 1 / 254.
                                                       : 0;
    }
    if (format == row_format::bf16 && has_pairs(isa)) r.queries = r.weights = of_bfloat16;
    if (format == row_format::int8) {
      r.bytes = true;
      if (has_bytes(isa)) {
        r.queries = 1 / 16256.;
        r.weights = 1 / 65535.;
      }
    }
    return r;
  }
};

/// What a number loses when it becomes an element.
template <class T>
double element_rounding() {
  using lambda_attention::element_kind;
  constexpr element_kind kind = lambda_attention::element_traits<T>::kind;
  return kind == element_kind::f16    ? 0x1p-11
         : kind == element_kind::bf16 ? roundings::of_bfloat16
         : kind == element_kind::f64  ? 0
                                      : 0x1p-24;
}

class expected_row {
 public:
  template <class Q, class K, class V>
  expected_row(const Q* q, index_t query, index_t head, index_t num_heads, const tensor_view<K>& k,
               const tensor_view<V>& v, const lambda_shape& shape, const any_position& position,
               const attention_options& options)
      : weights_(static_cast<std::size_t>(query + 1)), out_(static_cast<std::size_t>(v.dim)), square_(out_) {
    // Attention over the rows of a unit matrix gives the weights of the keys. Row t of it begins t before the 1.
    std::vector<float> unit(static_cast<std::size_t>(2 * query + 2));
    unit[static_cast<std::size_t>(query)] = 1;
    const index_t kv_head = head / (num_heads / k.heads);
    const tensor_view<const float> unit_rows(unit.data() + query, query + 1, k.heads, query + 1, -1, 0);
    lse_ = lambda_attention::reference::attend_row(q, query, head, num_heads, k, unit_rows, shape, position, options,
                                                   weights_.data());
    for (index_t j = 0; j <= query; ++j) {
      if (!shape.visible(query, j)) continue;
      const long double weight = weights_[static_cast<std::size_t>(j)];
      for (index_t d = 0; d < v.dim; ++d) {
        const long double value = number(v.row(j, kv_head)[d]);
        out_[static_cast<std::size_t>(d)] += weight * value;
        square_[static_cast<std::size_t>(d)] += weight * weight * value * value;
      }
    }
    const std::vector<long double> query_row = lambda_attention::reference::numbers(q, k.dim);
    query_norm_ = norm(query_row);
    query_largest_ = largest(query_row);
    scale_ = std::fabs(options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(k.dim))) *
             position.factor() * position.factor();
    for (index_t j = 0; j <= query; ++j) {
      if (!shape.visible(query, j)) continue;
      seen_.push_back(j);
      const std::vector<long double> key_row = lambda_attention::reference::numbers(k.row(j, kv_head), k.dim);
      key_norm_ = std::max(key_norm_, norm(key_row));
      key_largest_ = std::max(key_largest_, largest(key_row));
      bias_ = std::max(bias_, std::fabs(static_cast<double>(position.bias(head, shape.distance(query, j)))));
      values_.push_back(lambda_attention::reference::numbers(v.row(j, kv_head), v.dim));
      largest_values_.push_back(largest(values_.back()));
      sum_of_weights_ += weight(j);
    }
    root_of_dim_ = std::sqrt(static_cast<double>(k.dim));
    cap_ = options.soft_cap;
  }

  const std::vector<long double>& out() const { return out_; }
  long double lse() const { return lse_; }
  long double weight(index_t key) const { return weights_[static_cast<std::size_t>(key)]; }
  bool empty() const { return seen_.empty(); }

  /// Refuses to see a row that is not the formula's.
  template <class Real, class Out>
  void check(const Out* actual, const roundings& r) const {
    const double worst = logit_error<Real>(r);
    long double error = 0, power = 0;
    for (std::size_t d = 0; d < out_.size(); ++d) {
      const long double expected = out_[d], difference = std::fabs(number(actual[d]) - expected);
      // An element of 16 bits that is not normal is exact to 2^-25.
      const long double allowed = rounding_error(d, worst, r) + summation_error<Real>(d) + vanishing<Real>(d) +
                                  element_rounding<Out>() * std::fabs(expected) + (sizeof(Out) == 2 ? 0x1p-24L : 0);
      if (!(difference <= allowed)) error += std::isnan(difference) ? HUGE_VALL : square(difference - allowed);
      power += square_[d];
    }
    const long double bound = arithmetic<Real>() * power;
    if (!(error <= bound))
      throw failure("expected a row of the formula, got one whose square error, " + text(error) + ", is above " +
                    text(bound) + "; out[0] is " + text(number(actual[0])) + ", not " + text(out_[0]) + ", of " +
                    std::to_string(seen_.size()) + " keys");
  }

  template <class Real>
  void check_lse(float actual, const roundings& r) const {
    if (empty()) {
      if (actual != -HUGE_VALF) throw failure("expected an lse of minus infinity, got " + text(actual));
      return;
    }
    const long double error = std::fabs(static_cast<long double>(actual) - lse_);
    const long double bound = logit_error<Real>(r) + (r.bytes ? r.weights * static_cast<double>(seen_.size()) : 0) +
                              std::sqrt(std::fmax(arithmetic<Real>(), 0x1p-46)) * std::fmax(1, std::fabs(lse_));
    if (!(error <= bound)) throw failure("expected an lse of " + text(lse_) + ", got " + text(actual));
  }

  /// Scores are kept as floats until they become weights, which are floats too, whatever is computed in.
  void check_weight(float actual, index_t key, const roundings& r) const {
    const long double error = std::fabs(static_cast<long double>(actual) - weight(key));
    const long double bound = weight(key) * std::expm1(2 * logit_error<float>(r)) + (r.bytes ? r.weights : 0) +
                              std::sqrt(arithmetic<float>());
    if (!(error <= bound))
      throw failure("expected key " + std::to_string(key) + " to have weight " + text(weight(key)) + ", got " +
                    text(actual));
  }

 private:
  static long double square(long double x) { return x * x; }
  static std::string text(long double x) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.9Lg", x);
    return digits;
  }
  static double norm(const std::vector<long double>& row) {
    long double sum = 0;
    for (const long double x : row) sum += x * x;
    return static_cast<double>(std::sqrt(sum));
  }
  static double largest(const std::vector<long double>& row) {
    long double result = 0;
    for (const long double x : row) result = std::fmax(result, std::fabs(x));
    return static_cast<double>(result);
  }

  // What arithmetic may leave of sum p^2 v^2, see support/error.hpp: sigma is that of <q, k> over random signs.
  template <class Real>
  double arithmetic() const {
    return support::arithmetic_bound<Real>(scale_ * query_norm_ * key_norm_ / root_of_dim_);
  }

  template <class Real>
  static constexpr double unit() {
    return sizeof(Real) == sizeof(double) ? 0x1p-53 : 0x1p-24;
  }

  // What n additions in any order may lose, of sum p v and of sum p. Where rows are all one row, each may round the same
  // way, and the bound above, of independent numbers, does not hold: 67 times 0.730127871 one by one loses 3.5e-7 of it.
  template <class Real>
  long double summation_error(std::size_t d) const {
    long double sum = std::fabs(out_[d]);
    for (std::size_t s = 0; s < seen_.size(); ++s) sum += weight(seen_[s]) * std::fabs(values_[s][d]);
    return unit<Real>() * static_cast<double>(seen_.size()) * sum;
  }

  // What is lost of numbers that are small for a float, see README's limits: 5e-29 for each key, and weights below 2^-100, which
  // those of all keys may be beside a learned sink.
  template <class Real>
  long double vanishing(std::size_t d) const {
    if (sizeof(Real) == sizeof(double)) return 0;
    long double lost = 0;
    for (const std::vector<long double>& value : values_) lost += 5e-29L + 0x1p-100L * std::fabs(value[d]);
    return lost;
  }

  // How far a logit may be off. A row's rounding moves <q, k> by at most the product of one norm and the error's, which
  // turning leaves as they are. A turn may make the largest number of a row larger by sqrt(2).
  template <class Real>
  double logit_error(const roundings& r) const {
    const double query_norm = r.bytes ? root_of_dim_ * std::sqrt(2.) * query_largest_ : query_norm_;
    const double key_norm = r.bytes ? root_of_dim_ * std::sqrt(2.) * key_largest_ : key_norm_;
    const double of_rows =
        scale_ * (r.queries * query_norm * key_norm_ * (1 + r.keys) + r.keys * query_norm_ * key_norm);
    const double of_numbers =
        4 * unit<Real>() * (bias_ + cap_ + static_cast<double>(std::fabs(seen_.empty() ? 0 : lse_)));
    return of_rows + of_numbers + (r.bytes ? 0 : r.weights);
  }

  // How far a number may be off, when no logit is by more than `worst`: each weight is then within exp(+-2 worst) of what
  // it should be, and sum (p' - p) v = sum (p' - p) (v - out), but for a sink's weight.
  long double rounding_error(std::size_t d, double worst, const roundings& r) const {
    const long double spread = std::expm1(2 * worst);
    long double error = 0, largest_product = 0;
    for (std::size_t s = 0; s < seen_.size(); ++s) {
      const long double p = weight(seen_[s]), value = values_[s][d];
      const long double size = r.bytes ? largest_values_[s] : std::fabs(value);
      error += p * (spread * (std::fabs(value - out_[d])) + r.values * size * (1 + spread));
      largest_product = std::fmax(largest_product, p * size);
    }
    error += spread * std::fabs(out_[d]) * std::fmax(0, 1 - sum_of_weights_);
    if (r.bytes) error += r.weights * static_cast<double>(seen_.size()) * largest_product * 2;
    return error;
  }

  std::vector<long double> weights_;  // of all keys up to the query; zero where it does not see one
  std::vector<long double> out_;
  std::vector<long double> square_;  // sum p^2 v^2
  std::vector<index_t> seen_;
  std::vector<std::vector<long double>> values_;  // of the keys it sees
  std::vector<double> largest_values_;
  long double sum_of_weights_ = 0;  // less than 1 where a learned sink takes some
  long double lse_ = 0;
  double query_norm_ = 0, query_largest_ = 0;
  double key_norm_ = 0, key_largest_ = 0;  // of all keys it sees
  double scale_ = 0, cap_ = 0, bias_ = 0, root_of_dim_ = 0;
};

}  // namespace fuzz
