// What a call of attend() may be told beyond its tensors.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/tensor_view.hpp>
#include <lambda_attention/workspace.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// One learned logit for each query head (gpt-oss): e^logit is added to the denominator of every row of that head.
struct sink_logits_view {
  const float* data = nullptr;
  index_t size = 0;
};

struct attention_options {
  double scale = 0;  ///< of scores; 0: 1 / sqrt(head_dim)
  /// Scores become soft_cap * tanh(score / soft_cap) before biases are added (Gemma 2); 0: they do not.
  double soft_cap = 0;
  sink_logits_view sink_logits = {};
  index_t first_position = 0;  ///< position of index 0: of a sequence's first token; a cache has its own
  tensor_view<float> lse =
      {};  ///< [n, heads, 1]: the natural log of the sum of e^logit, learned sinks not included; float, whatever is computed in
  /// [n, heads, columns]: how much weight each key has for each query, e^logit over the sum that out is divided by. A sink's is in
  /// the column of its index, a window key's in column num_sinks + index - shape.window_keys(query).first; other columns become
  /// zeros. Logits are rounded to float for it, whatever is computed in. For few queries over a cache or over runs:
  /// n * heads / kv_heads <= 16, or n <= 4.
  tensor_view<float> weights = {};
  isa_level isa = isa_level::automatic;
  lambda_attention::workspace* workspace = nullptr;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
