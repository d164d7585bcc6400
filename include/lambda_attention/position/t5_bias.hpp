// The bucketed relative bias of T5.
#pragma once

#include <lambda_attention/position.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// score = <q, k>, bias = weights[bucket(d)][head], with the buckets of a causal (unidirectional) T5 layer: the first half
/// of them hold one distance each, the rest grow logarithmically up to max_distance, the last takes all that is farther.
/// T5 was trained without 1/sqrt(head_dim): give options.scale = 1 for its weights.
/// Source: Raffel et al., T5 (arXiv:1910.10683), section 2.1.
class t5_bias : public position_encoding {
 public:
  /// weights: [num_buckets, num_heads], as checkpoints store relative_attention_bias.
  /// Errors: num_heads < 1 or above 2^20, num_buckets < 2, odd or above 2^20, max_distance <= num_buckets / 2 or above 2^24, a
  /// weight that is not within +-1e30.
  t5_bias(const float* weights, index_t num_buckets, index_t num_heads, index_t max_distance = 128)
      : num_buckets_(num_buckets),
        max_distance_(checked_distance(num_buckets, num_heads, max_distance)),
        biases_(num_heads, max_distance + 1) {
    weights_ = detail::buffer<float>(num_buckets * num_heads);
    for (index_t i = 0; i < num_buckets * num_heads; ++i) weights_[i] = checked_weight(weights[i]);
    for (index_t head = 0; head < num_heads; ++head)
      for (index_t distance = 0; distance <= max_distance; ++distance)
        biases_.set(head, distance, static_cast<double>(weights_[bucket(distance) * num_heads + head]));
  }

  // Where memory runs out in the middle of a copy, nothing is assigned.
  t5_bias(const t5_bias&) = default;
  t5_bias(t5_bias&&) = default;
  t5_bias& operator=(const t5_bias& other) { return *this = t5_bias(other); }
  t5_bias& operator=(t5_bias&&) = default;

  index_t num_heads() const { return biases_.num_heads(); }

  /// The bucket of a distance >= 0.
  index_t bucket(index_t distance) const {
    const index_t exact = num_buckets_ / 2;
    if (distance < exact) return distance;
    if (distance >= max_distance_) return num_buckets_ - 1;
    // In float, as the published implementations compute it: at the edge of a bucket the rounding decides.
    const float grown =
        __builtin_logf(static_cast<float>(distance) / static_cast<float>(exact)) /
        static_cast<float>(__builtin_log(static_cast<double>(max_distance_) / static_cast<double>(exact))) *
        static_cast<float>(num_buckets_ - exact);
    return detail::min(exact + static_cast<index_t>(grown), num_buckets_ - 1);
  }

  position_data data() const {
    position_data data;
    data.biases = &biases_;
    return data;
  }

  long double bias(index_t head, index_t distance) const { return weights_[bucket(distance) * num_heads() + head]; }

 private:
  static float checked_weight(float weight) {
    if (!detail::is_within(static_cast<double>(weight), detail::largest_factor))
      detail::refuse("t5_bias: expected weights within +-1e30, got %g", static_cast<double>(weight));
    return weight;
  }
  static index_t checked_distance(index_t num_buckets, index_t num_heads, index_t max_distance) {
    if (num_heads < 1 || num_heads > (index_t{1} << 20))
      detail::refuse("t5_bias: expected 1 <= num_heads <= 2^20, got %lld", detail::printable(num_heads));
    if (num_buckets < 2 || num_buckets % 2 != 0 || num_buckets > (index_t{1} << 20))
      detail::refuse("t5_bias: expected an even num_buckets from 2 to 2^20, got %lld", detail::printable(num_buckets));
    if (max_distance <= num_buckets / 2 || max_distance > (index_t{1} << 24))
      detail::refuse("t5_bias: expected num_buckets / 2 < max_distance <= 2^24, got %lld",
                     detail::printable(max_distance));
    return max_distance;
  }

  index_t num_buckets_;
  index_t max_distance_;
  bias_table biases_;
  detail::buffer<float> weights_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
