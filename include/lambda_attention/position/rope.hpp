// Rotary position embedding.
#pragma once

#include <lambda_attention/position.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// How a model lays out its rotation; the defaults are Llama's.
struct rope_options {
  pair_layout layout = pair_layout::half_split;
  index_t rotary_dim = 0;  ///< the first elements of a row that turn, an even number; 0: all
  double factor = 1;       ///< multiplies both rotated rows (the attention factor of YaRN)
};

/// score = <R(d) q, R(0) k>: pair p of a row turns by position * inverse_frequency(p) radians. Queries and keys are given
/// to the library as the projections leave them, unrotated.
///
/// Angles are kept as 64-bit fractions of a turn that wrap around, so the difference of two positions is exact however
/// far a stream has come.
/// Source: Su et al., RoFormer (arXiv:2104.09864).
class rope : public position_encoding {
 public:
  /// inverse_frequency(p) = theta^(-2p / rotary_dim).
  /// Errors: head_dim outside 1 ... max_head_dim, rotary_dim odd or above head_dim, theta not finite or <= 0, a factor <= 0
  /// or above 1e30.
  explicit rope(index_t head_dim, double theta = 10000, const rope_options& options = {})
      : rope(head_dim, rotary_pairs(head_dim, options), options) {
    if (!(theta > 0) || !detail::is_finite(theta)) detail::refuse("rope: expected a finite theta > 0, got %g", theta);
    for (index_t p = 0; p < num_pairs(); ++p) {
      const long double exponent = -static_cast<long double>(p) / static_cast<long double>(num_pairs());
      set_inverse_frequency(p, __builtin_powl(theta, exponent));
    }
  }

  /// Any frequencies, in radians a position, `num_pairs` of them; options.rotary_dim is then 0 or 2 * num_pairs.
  /// Errors: as above, and a frequency that is not finite.
  rope(index_t head_dim, const double* inverse_frequencies, index_t num_pairs, const rope_options& options = {})
      : rope(head_dim, checked_pairs(head_dim, num_pairs, options), options) {
    for (index_t p = 0; p < num_pairs; ++p) {
      if (!detail::is_finite(inverse_frequencies[p]))
        detail::refuse("rope: expected finite frequencies, got inverse_frequencies[%lld] = %g", detail::printable(p),
                       inverse_frequencies[p]);
      set_inverse_frequency(p, inverse_frequencies[p]);
    }
  }

  // Where memory runs out in the middle of a copy, nothing is assigned.
  rope(const rope&) = default;
  rope(rope&&) = default;
  rope& operator=(const rope& other) { return *this = rope(other); }
  rope& operator=(rope&&) = default;

  index_t head_dim() const { return head_dim_; }
  index_t num_pairs() const { return turns_.size(); }
  pair_layout layout() const { return layout_; }
  double factor() const { return factor_; }
  /// 0 <= pair < num_pairs().
  double inverse_frequency(index_t pair) const { return static_cast<double>(inverse_frequencies_[pair]); }

  position_data data() const {
    position_data data;
    data.rotation = {turns_.data(), num_pairs(), layout_, factor_};
    return data;
  }

  long double score(const long double* query, const long double* key, index_t head_dim, index_t distance) const {
    long double sum = 0;
    for (index_t p = 0; p < num_pairs(); ++p) {
      const index_t a = layout_ == pair_layout::half_split ? p : 2 * p;
      const index_t b = layout_ == pair_layout::half_split ? p + num_pairs() : 2 * p + 1;
      const long double angle = static_cast<long double>(distance) * inverse_frequencies_[p];
      const long double cosine = __builtin_cosl(angle), sine = __builtin_sinl(angle);
      sum += (query[a] * cosine - query[b] * sine) * key[a] + (query[b] * cosine + query[a] * sine) * key[b];
    }
    sum *= static_cast<long double>(factor_) * factor_;
    for (index_t d = 2 * num_pairs(); d < head_dim; ++d) sum += query[d] * key[d];
    return sum;
  }

 private:
  struct pair_count {
    index_t value;
  };

  rope(index_t head_dim, pair_count pairs, const rope_options& options)
      : head_dim_(head_dim),
        layout_(options.layout),
        factor_(options.factor),
        turns_(pairs.value),
        inverse_frequencies_(pairs.value) {
    if (!(factor_ > 0) || !detail::is_within(factor_, detail::largest_factor))
      detail::refuse("rope: expected 0 < factor <= 1e30, got %g", factor_);
  }

  static pair_count rotary_pairs(index_t head_dim, const rope_options& options) {
    const index_t rotary_dim = options.rotary_dim == 0 ? head_dim : options.rotary_dim;
    if (head_dim < 1 || head_dim > max_head_dim)
      detail::refuse("rope: expected 1 <= head_dim <= %lld, got %lld", detail::printable(max_head_dim),
                     detail::printable(head_dim));
    if (rotary_dim < 0 || rotary_dim > head_dim || rotary_dim % 2 != 0)
      detail::refuse("rope: expected an even rotary_dim <= head_dim = %lld, got %lld", detail::printable(head_dim),
                     detail::printable(rotary_dim));
    return {rotary_dim / 2};
  }

  static pair_count checked_pairs(index_t head_dim, index_t num_pairs, rope_options options) {
    if (num_pairs < 1 || num_pairs > head_dim / 2 || (options.rotary_dim != 0 && options.rotary_dim != 2 * num_pairs))
      detail::refuse(
          "rope: expected 1 <= num_pairs <= head_dim / 2, and rotary_dim 0 or 2 * num_pairs, got num_pairs = %lld",
          detail::printable(num_pairs));
    options.rotary_dim = 2 * num_pairs;
    return rotary_pairs(head_dim, options);
  }

  void set_inverse_frequency(index_t pair, long double radians) {
    inverse_frequencies_[pair] = radians;
    const long double turn = radians / 6.283185307179586476925286766559005768L;
    const long double fraction = turn - __builtin_floorl(turn);
    const long double scaled = __builtin_rintl(fraction * 0x1p64L);
    turns_[pair] = scaled >= 0x1p64L ? 0 : static_cast<std::uint64_t>(scaled);
  }

  index_t head_dim_;
  pair_layout layout_;
  double factor_;
  detail::buffer<std::uint64_t> turns_;
  detail::buffer<long double> inverse_frequencies_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
