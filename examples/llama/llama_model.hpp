// Llama, and what is like it: RMSNorm, RoPE, grouped heads, SwiGLU.
#pragma once

#include "json.hpp"
#include "language_model.hpp"
#include "linear.hpp"
#include "rope_config.hpp"
#include "weights.hpp"

#include <lambda_attention/eigen.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llama {

class llama_model final : public language_model {
 public:
  /// Reads a config.json of model_type llama, mistral (whose own window gives way to --attention) or qwen2.
  llama_model(const json_reader& config, const weights& source) : llama_model(config, source, shape_in(config)) {}

  void apply_layer(std::int64_t layer, matrix& x, layer_attention& attention, bool retrieve) const override {
    const layer_weights& w = layers_[static_cast<std::size_t>(layer)];
    const heads_of_layer& heads = shape().heads;
    matrix y = normalized(x, w.attention_norm), q, k, v, attended(x.rows(), heads.heads * heads.head_dim);
    w.q.apply(y, q);
    w.k.apply(y, k);
    w.v.apply(y, v);
    attention.attend(la::from_eigen(std::as_const(q), heads.heads), la::from_eigen(std::as_const(k), heads.kv_heads),
                     la::from_eigen(std::as_const(v), heads.kv_heads), la::from_eigen(attended, heads.heads), retrieve);
    w.o.apply(attended, y);
    x += y;

    matrix gate, up;
    y = normalized(x, w.mlp_norm);
    w.gate.apply(y, gate);
    w.up.apply(y, up);
    gate.array() *= up.array() / (1 + (-gate.array()).exp());  // SiLU of the gate, times up
    w.down.apply(gate, y);
    x += y;
  }

 private:
  struct layer_weights {
    Eigen::RowVectorXf attention_norm, mlp_norm;
    linear q, k, v, o, gate, up, down;
  };

  llama_model(const json_reader& config, const weights& source, const model_shape& shape)
      : language_model(shape, rope_of(config, shape.heads.head_dim, shape.training_length),
                       weight_matrix(source, "model.embed_tokens.weight", shape.vocabulary, shape.width),
                       weight_matrix(source, output_name(config), shape.vocabulary, shape.width)),
        epsilon_(static_cast<float>(config.non_negative("rms_norm_eps", 1e-6))),
        norm_(source.vector("model.norm.weight", shape.width)) {
    config.expect("hidden_act", "silu");
    const std::int64_t width = shape.width, inner = config.integer("intermediate_size", 1, 1 << 24);
    const std::int64_t q_width = shape.heads.heads * shape.heads.head_dim;
    const std::int64_t kv_width = shape.heads.kv_heads * shape.heads.head_dim;
    const bool qwen2 = config.text("model_type", "") == "qwen2";
    const bool output_bias = config.flag("attention_bias", false), qkv_bias = output_bias || qwen2;
    const bool mlp_bias = config.flag("mlp_bias", false);
    for (std::int64_t i = 0; i < shape.layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".", attention = layer + "self_attn.";
      layers_.push_back({source.vector(layer + "input_layernorm.weight", width),
                         source.vector(layer + "post_attention_layernorm.weight", width),
                         {source, attention + "q_proj", q_width, width, qkv_bias},
                         {source, attention + "k_proj", kv_width, width, qkv_bias},
                         {source, attention + "v_proj", kv_width, width, qkv_bias},
                         {source, attention + "o_proj", width, q_width, output_bias},
                         {source, layer + "mlp.gate_proj", inner, width, mlp_bias},
                         {source, layer + "mlp.up_proj", inner, width, mlp_bias},
                         {source, layer + "mlp.down_proj", width, inner, mlp_bias}});
    }
  }

  static model_shape shape_in(const json_reader& config) {
    model_shape shape;
    shape.vocabulary = config.integer("vocab_size", 1, 1 << 24);
    shape.width = config.integer("hidden_size", 1, 1 << 20);
    shape.layers = config.integer("num_hidden_layers", 1, 4096);
    shape.heads.heads = config.integer("num_attention_heads", 1, 1 << 16);
    shape.heads.kv_heads = config.integer("num_key_value_heads", 1, shape.heads.heads, shape.heads.heads);
    shape.heads.head_dim = config.integer("head_dim", 1, la::max_head_dim, shape.width / shape.heads.heads);
    shape.training_length = config.integer("max_position_embeddings", 1, 1 << 28, 2048);
    if (config.has("bos_token_id"))
      shape.bos = static_cast<token>(config.integer("bos_token_id", 0, shape.vocabulary - 1));
    if (shape.heads.heads % shape.heads.kv_heads != 0)
      fail("config.json: expected num_attention_heads to be a multiple of num_key_value_heads");
    if (shape.heads.head_dim < 1 || shape.heads.head_dim > la::max_head_dim)
      fail("config.json: expected hidden_size to be 1 to %lld times num_attention_heads",
           static_cast<long long>(la::max_head_dim));
    return shape;
  }

  static std::string output_name(const json_reader& config) {
    return config.flag("tie_word_embeddings", false) ? "model.embed_tokens.weight" : "lm_head.weight";
  }

  matrix final_norm(const matrix& x) const override { return normalized(x, norm_); }

  matrix normalized(const matrix& x, const Eigen::RowVectorXf& weight) const {
    const Eigen::ArrayXf factors =
        (x.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + epsilon_).rsqrt();
    return (x.array().colwise() * factors).rowwise() * weight.array();
  }

  float epsilon_;
  Eigen::RowVectorXf norm_;
  std::vector<layer_weights> layers_;
};

}  // namespace llama
