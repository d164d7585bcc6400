// MPT: LayerNorm, ALiBi, q, k and v of one projection, GELU.
#pragma once

#include "json.hpp"
#include "language_model.hpp"
#include "linear.hpp"
#include "weights.hpp"

#include <lambda_attention/eigen.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llama {

class mpt_model final : public language_model {
 public:
  /// Reads a config.json of model_type mpt.
  mpt_model(const json_reader& config, const weights& source) : mpt_model(config, source, shape_in(config)) {}

  void apply_layer(std::int64_t layer, matrix& x, layer_attention& attention, bool retrieve) const override {
    const layer_weights& w = layers_[static_cast<std::size_t>(layer)];
    const heads_of_layer& heads = shape().heads;
    const std::int64_t width = shape().width;
    matrix y = normalized(x, w.attention_norm), qkv, attended(x.rows(), width);
    w.qkv.apply(y, qkv);
    const auto part = [&](std::int64_t which) {
      return la::tensor_view<const float>(qkv.data() + which * width, qkv.rows(), heads.heads, heads.head_dim,
                                          3 * width, heads.head_dim);
    };
    attention.attend(part(0), part(1), part(2), la::from_eigen(attended, heads.heads), retrieve);
    w.out.apply(attended, y);
    x += y;

    matrix inner;
    w.up.apply(normalized(x, w.mlp_norm), inner);
    inner = inner.unaryExpr([](float z) { return 0.5f * z * (1 + std::erf(z * 0.70710678f)); });  // GELU
    w.down.apply(inner, y);
    x += y;
  }

 private:
  struct layer_weights {
    Eigen::RowVectorXf attention_norm, mlp_norm;
    linear qkv, out, up, down;
  };

  mpt_model(const json_reader& config, const weights& source, const model_shape& shape)
      : language_model(shape, alibi_of(config, shape.heads.heads),
                       weight_matrix(source, "transformer.wte.weight", shape.vocabulary, shape.width),
                       weight_matrix(source, "transformer.wte.weight", shape.vocabulary, shape.width)),
        epsilon_(static_cast<float>(config.non_negative("layer_norm_epsilon", 1e-5))),
        norm_(source.vector("transformer.norm_f.weight", shape.width)) {
    refuse_other_models(config);
    const std::int64_t width = shape.width, inner = 4 * width;
    for (std::int64_t i = 0; i < shape.layers; ++i) {
      const std::string layer = "transformer.blocks." + std::to_string(i) + ".";
      layers_.push_back({source.vector(layer + "norm_1.weight", width),
                         source.vector(layer + "norm_2.weight", width),
                         {source, layer + "attn.Wqkv", 3 * width, width, false},
                         {source, layer + "attn.out_proj", width, width, false},
                         {source, layer + "ffn.up_proj", inner, width, false},
                         {source, layer + "ffn.down_proj", width, inner, false}});
    }
  }

  static void refuse_other_models(const json_reader& config) {
    config.expect("expansion_ratio", 4);
    config.expect("no_bias", true);
    config.expect("tie_word_embeddings", true);
    config.expect("logit_scale", nullptr);
    const json_reader attention = config.object("attn_config");
    attention.expect("alibi", true);
    attention.expect("attn_type", "multihead_attention");
    attention.expect("clip_qkv", nullptr);
    attention.expect("prefix_lm", false);
    attention.expect("qk_ln", false);
  }

  static model_shape shape_in(const json_reader& config) {
    model_shape shape;
    shape.vocabulary = config.integer("vocab_size", 1, 1 << 24);
    shape.width = config.integer("d_model", 1, 1 << 20);
    shape.layers = config.integer("n_layers", 1, 4096);
    shape.heads.heads = shape.heads.kv_heads = config.integer("n_heads", 1, 1 << 16);
    shape.heads.head_dim = shape.width / shape.heads.heads;
    shape.heads.scale = config.object("attn_config").non_negative("softmax_scale", 0);
    shape.training_length = config.integer("max_seq_len", 1, 1 << 28, 2048);
    if (config.has("bos_token_id"))
      shape.bos = static_cast<token>(config.integer("bos_token_id", 0, shape.vocabulary - 1));
    if (shape.width % shape.heads.heads != 0 || shape.heads.head_dim > la::max_head_dim)
      fail("config.json: expected d_model to be a multiple of n_heads, and no more than %lld times that",
           static_cast<long long>(la::max_head_dim));
    return shape;
  }

  // 2^(-m (h + 1) / p), p the power of two that is no less than the number of heads: heads 1, 3, 5, ... of p first,
  // then 0, 2, 4, ..., as many as there are.
  static la::alibi alibi_of(const json_reader& config, std::int64_t heads) {
    const double largest = config.object("attn_config").non_negative("alibi_bias_max", 8);
    std::int64_t power = 1;
    while (power < heads) power *= 2;
    std::vector<double> slopes;
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t of_power = power == heads ? h : h < power / 2 ? 2 * h + 1 : 2 * (h - power / 2);
      slopes.push_back(std::exp2(-largest * static_cast<double>(of_power + 1) / static_cast<double>(power)));
    }
    return la::alibi(slopes.data(), heads);
  }

  matrix final_norm(const matrix& x) const override { return normalized(x, norm_); }

  matrix normalized(const matrix& x, const Eigen::RowVectorXf& weight) const {
    const matrix centered = x.colwise() - x.rowwise().mean();
    const Eigen::ArrayXf factors =
        (centered.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + epsilon_).rsqrt();
    return (centered.array().colwise() * factors).rowwise() * weight.array();
  }

  float epsilon_;
  Eigen::RowVectorXf norm_;
  std::vector<layer_weights> layers_;
};

}  // namespace llama
