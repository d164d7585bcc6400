// Attention with linear biases.
#pragma once

#include <lambda_attention/position.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// score = <q, k>, bias = -slope(head) * d.
/// Source: Press et al., ALiBi (arXiv:2108.12409).
class alibi : public position_encoding {
 public:
  /// The standard slopes of `num_heads` query heads. For a power of two they are 2^(-8 (h + 1) / num_heads). Otherwise the
  /// slopes of the next lower power of two come first, then those with an even h of the next higher one, as many as are
  /// missing.
  explicit alibi(index_t num_heads) : slopes_(checked(num_heads)) {
    index_t power = 1;
    while (power * 2 <= num_heads) power *= 2;
    for (index_t h = 0; h < power; ++h) slopes_[h] = slope_of(h + 1, power);
    for (index_t h = power; h < num_heads; ++h) slopes_[h] = slope_of(2 * (h - power) + 1, 2 * power);
  }

  /// Explicit slopes, one for each query head. Errors: one that is not within +-1e30.
  alibi(const double* slopes, index_t num_heads) : slopes_(checked(num_heads)) {
    for (index_t h = 0; h < num_heads; ++h) {
      if (!detail::is_within(slopes[h], detail::largest_factor))
        detail::refuse("alibi: expected slopes within +-1e30, got slopes[%lld] = %g", detail::printable(h), slopes[h]);
      slopes_[h] = slopes[h];
    }
  }

  index_t num_heads() const { return slopes_.size(); }
  /// 0 <= head < num_heads().
  double slope(index_t head) const { return slopes_[head]; }

  position_data data() const {
    position_data data;
    data.slopes = slopes_.data();
    return data;
  }

  long double bias(index_t head, index_t distance) const {
    return -static_cast<long double>(slopes_[head]) * static_cast<long double>(distance);
  }

 private:
  static index_t checked(index_t num_heads) {
    if (num_heads < 1 || num_heads > (index_t{1} << 30))
      detail::refuse("alibi: expected 1 <= num_heads <= 2^30, got %lld", detail::printable(num_heads));
    return num_heads;
  }
  static double slope_of(index_t rank, index_t power) {
    return __builtin_exp2(-8.0 * static_cast<double>(rank) / static_cast<double>(power));
  }

  detail::buffer<double> slopes_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
