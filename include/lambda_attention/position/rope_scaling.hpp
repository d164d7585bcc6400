// RoPE as models have it that were made to read longer texts: their frequencies, from the fields of their configuration.
#pragma once

#include <lambda_attention/position/rope.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

// A scaling is a type with
//
//     void check() const;                                    // refuses what it cannot be
//     double frequency(const rope_pair& pair) const;         // radians a position, of one pair
//     double row_factor() const;                             // multiplies both rotated rows
//
// Field names are those of rope_scaling (rope_parameters) in Hugging Face's config.json; rope_type is given with each.

/// One pair of a rotation before it is scaled.
struct rope_pair {
  index_t index;
  index_t num_pairs;
  double theta;
  double frequency;  ///< radians a position
};

namespace detail {
inline constexpr double full_turn = 6.283185307179586476925286766559;

inline void check_scaling(double factor, const char* name) {
  if (!(factor >= 1) || !is_finite(factor)) refuse("%s: expected a finite factor >= 1, got %g", name, factor);
}
inline void check_scaling(double factor, double original_max_position_embeddings, const char* name) {
  check_scaling(factor, name);
  if (!(original_max_position_embeddings >= 1) || !is_finite(original_max_position_embeddings))
    refuse("%s: expected original_max_position_embeddings >= 1, got %g", name, original_max_position_embeddings);
}
}  // namespace detail

/// rope_type "linear": all frequencies divided by `factor`.
/// Source: Chen et al., Position Interpolation (arXiv:2306.15595).
struct linear_scaling {
  double factor = 1;

  void check() const { detail::check_scaling(factor, "linear_scaling"); }
  double frequency(const rope_pair& pair) const { return pair.frequency / factor; }
  double row_factor() const { return 1; }
};

/// NTK-aware scaling: theta * factor^(rotary_dim / (rotary_dim - 2)) in place of theta, which leaves the highest frequency as it
/// is and divides the lowest by `factor`. rope_type "dynamic" at n tokens is this with
/// factor * n / max_position_embeddings - (factor - 1) in place of factor, where n is above max_position_embeddings.
/// Source: Peng et al., YaRN (arXiv:2309.00071), section 3.1.
struct ntk_scaling {
  double factor = 1;

  void check() const { detail::check_scaling(factor, "ntk_scaling"); }
  double frequency(const rope_pair& pair) const {
    if (pair.index == 0) return 1;
    return pair.frequency *
           __builtin_pow(factor, -static_cast<double>(pair.index) / static_cast<double>(pair.num_pairs - 1));
  }
  double row_factor() const { return 1; }
};

/// rope_type "llama3" (Llama 3.1 and later): pairs that turn less than low_freq_factor times within the training length are
/// slowed down by `factor`, those that turn more than high_freq_factor times are left alone, and between them it goes over
/// evenly with the number of turns.
/// Source: Grattafiori et al., The Llama 3 Herd of Models (arXiv:2407.21783), and the models' configuration.
struct llama3_scaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_max_position_embeddings = 8192;

  void check() const {
    detail::check_scaling(factor, original_max_position_embeddings, "llama3_scaling");
    if (!(low_freq_factor > 0 && high_freq_factor > low_freq_factor) || !detail::is_finite(high_freq_factor))
      detail::refuse("llama3_scaling: expected 0 < low_freq_factor < high_freq_factor, got %g and %g", low_freq_factor,
                     high_freq_factor);
  }
  double frequency(const rope_pair& pair) const {
    const double turns = original_max_position_embeddings * pair.frequency / detail::full_turn;
    const double kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
    const double share = kept < 0 ? 0 : kept > 1 ? 1 : kept;
    return pair.frequency * (share + (1 - share) / factor);
  }
  double row_factor() const { return 1; }
};

/// rope_type "yarn" (Qwen, DeepSeek, gpt-oss): pairs that turn less than beta_slow times within the training length are slowed
/// down by `factor`, those that turn more than beta_fast times are left alone, and between them it goes over evenly with the
/// number of the pair. Both rotated rows are multiplied by an attention factor, so scores by its square:
///
///     0.1 ln(factor) + 1;  with mscale and mscale_all_dim  (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)
///
/// Source: Peng et al., YaRN (arXiv:2309.00071), section 3, by the number of the pair as the models' code has it. As there, it
/// goes over from pair 0 on and up to pair 2 num_pairs - 1; where no pair turns so often, or so rarely, the words above do
/// not hold.
struct yarn_scaling {
  double factor = 1;
  double original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double attention_factor = 0;  ///< 0: as above
  double mscale = 0;            ///< of use with mscale_all_dim only, as in the models' code
  double mscale_all_dim = 0;
  bool truncate = true;  ///< whether the pairs between which it goes over are rounded outwards to whole ones

  void check() const {
    detail::check_scaling(factor, original_max_position_embeddings, "yarn_scaling");
    if (!(beta_slow > 0 && beta_fast > beta_slow) || !detail::is_finite(beta_fast))
      detail::refuse("yarn_scaling: expected 0 < beta_slow < beta_fast, got %g and %g", beta_slow, beta_fast);
    if (!(row_factor() > 0) || !detail::is_within(row_factor(), detail::largest_factor))
      detail::refuse("yarn_scaling: expected 0 < attention factor <= 1e30, got %g", row_factor());
  }
  double frequency(const rope_pair& pair) const {
    double first = pair_that_turns(beta_fast, pair), last = pair_that_turns(beta_slow, pair);
    if (truncate) {
      first = __builtin_floor(first);
      last = __builtin_ceil(last);
    }
    first = first < 0 ? 0 : first;
    const double most = static_cast<double>(2 * pair.num_pairs - 1);
    last = last > most ? most : last;
    const double width = first == last ? 0.001 : last - first;
    const double slowed = (static_cast<double>(pair.index) - first) / width;
    const double share = slowed < 0 ? 0 : slowed > 1 ? 1 : slowed;
    return pair.frequency * (1 - share + share / factor);
  }
  double row_factor() const {
    if (attention_factor != 0) return attention_factor;
    if (mscale != 0 && mscale_all_dim != 0) return grown(mscale) / grown(mscale_all_dim);
    return grown(1);
  }

 private:
  double grown(double times) const { return 0.1 * times * __builtin_log(factor) + 1; }
  // Where between the pairs one would lie that makes so many turns within the training length.
  double pair_that_turns(double times, const rope_pair& pair) const {
    return static_cast<double>(pair.num_pairs) *
           __builtin_log(original_max_position_embeddings / (times * detail::full_turn)) / __builtin_log(pair.theta);
  }
};

/// rope(head_dim, theta, options) with its frequencies and its factor scaled: scaled_rope(128, 500000, llama3_scaling{}).
/// options.factor, if given, is multiplied by the scaling's.
/// Errors: as for rope, theta <= 1, and numbers that a scaling cannot have.
template <class Scaling>
rope scaled_rope(index_t head_dim, double theta, const Scaling& scaling, rope_options options = {}) {
  if (!(theta > 1) || !detail::is_finite(theta))
    detail::refuse("scaled_rope: expected a finite theta > 1, got %g", theta);
  scaling.check();
  const rope unscaled(head_dim, theta, options);
  const index_t num_pairs = unscaled.num_pairs();
  double frequencies[max_head_dim / 2];
  for (index_t p = 0; p < num_pairs; ++p)
    frequencies[p] = scaling.frequency({p, num_pairs, theta, unscaled.inverse_frequency(p)});
  options.factor *= scaling.row_factor();
  return rope(head_dim, frequencies, num_pairs, options);
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
