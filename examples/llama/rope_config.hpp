// The rotation that a config.json describes.
#pragma once

#include "error.hpp"
#include "json.hpp"

#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/rope_scaling.hpp>

#include <cstdint>
#include <string>

namespace llama {

/// Reads rope_theta and rope_scaling, or rope_parameters, which has both in newer files.
/// Errors: a rope_type other than default, linear, llama3 and yarn; numbers that a scaling cannot have.
inline lambda_attention::rope rope_of(const json_reader& config, std::int64_t head_dim, std::int64_t training_length) {
  namespace la = lambda_attention;
  const json_reader scaling = config.object(config.has("rope_parameters") ? "rope_parameters" : "rope_scaling");
  const double theta = scaling.number("rope_theta", config.number("rope_theta", 10000));
  const double share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1));
  if (!(share > 0 && share <= 1)) fail("config.json: expected 0 < \"partial_rotary_factor\" <= 1, got %g", share);
  la::rope_options options;
  options.rotary_dim = static_cast<la::index_t>(share * static_cast<double>(head_dim));
  if (options.rotary_dim == 0) fail("config.json: \"partial_rotary_factor\" %g leaves nothing to turn", share);

  const std::string type = scaling.text("rope_type", scaling.text("type", "default").c_str());
  const double trained = scaling.number("original_max_position_embeddings", static_cast<double>(training_length));
  try {
    if (type == "default") return la::rope(head_dim, theta, options);
    if (type == "linear")
      return la::scaled_rope(head_dim, theta, la::linear_scaling{scaling.number("factor")}, options);
    if (type == "llama3")
      return la::scaled_rope(head_dim, theta,
                             la::llama3_scaling{scaling.number("factor"), scaling.number("low_freq_factor"),
                                                scaling.number("high_freq_factor"), trained},
                             options);
    if (type == "yarn") {
      la::yarn_scaling yarn;
      yarn.factor = scaling.number("factor");
      yarn.original_max_position_embeddings = trained;
      yarn.beta_fast = scaling.number("beta_fast", yarn.beta_fast);
      yarn.beta_slow = scaling.number("beta_slow", yarn.beta_slow);
      yarn.attention_factor = scaling.number("attention_factor", yarn.attention_factor);
      yarn.mscale = scaling.number("mscale", yarn.mscale);
      yarn.mscale_all_dim = scaling.number("mscale_all_dim", yarn.mscale_all_dim);
      yarn.truncate = scaling.flag("truncate", yarn.truncate);
      return la::scaled_rope(head_dim, theta, yarn, options);
    }
  } catch (const std::invalid_argument& problem) {
    fail("config.json: %s", problem.what());
  }
  fail("config.json: rope_type \"%s\" is not supported: expected default, linear, llama3 or yarn", type.c_str());
}

}  // namespace llama
