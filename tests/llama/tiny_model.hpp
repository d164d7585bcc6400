// Models of a few numbers, whole in memory: a config.json and the tensors that it asks for.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "files.hpp"
#include "load_model.hpp"

namespace tiny {

struct model {
  json config;
  std::vector<tensor> tensors;

  tensor& at(const std::string& name) {
    for (tensor& each : tensors)
      if (each.name == name) return each;
    throw std::out_of_range(name);
  }
};

namespace detail {
/// Adds tensors of random numbers to a model.
class writer {
 public:
  explicit writer(model& to) : to_(&to) {}

  /// Around 0, small enough that no softmax is all but one-hot.
  void weight(const std::string& name, std::vector<std::int64_t> shape) { add(name, std::move(shape), 0, 0.5f); }
  void norm(const std::string& name, std::int64_t width) { add(name, {width}, 1, 0.1f); }
  void linear(const std::string& name, std::int64_t outputs, std::int64_t inputs, bool with_bias) {
    weight(name + ".weight", {outputs, inputs});
    if (with_bias) weight(name + ".bias", {outputs});
  }

 private:
  // The numbers of a tensor depend on its name only, so that models have what they share in common.
  void add(const std::string& name, std::vector<std::int64_t> shape, float mean, float range) {
    std::uint32_t seed = 1;
    for (const char c : name) seed = seed * 31 + static_cast<unsigned char>(c);
    std::mt19937 generator(seed);
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = mean + range * (static_cast<float>(generator() >> 8) * 0x1p-23f - 1);
    to_->tensors.push_back({name, std::move(shape), std::move(numbers)});
  }

  model* to_;
};

inline model model_of(json config, const json& changes) {
  config.update(changes);
  return {std::move(config), {}};
}
}  // namespace detail

/// Two heads of four, one of keys and values, eight tokens; `changes` are made to its config, and the tensors follow
/// it.
inline model llama_model(const json& changes = json::object()) {
  model made = detail::model_of({{"model_type", "llama"},
                                 {"vocab_size", 8},
                                 {"hidden_size", 8},
                                 {"intermediate_size", 12},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", 2},
                                 {"num_key_value_heads", 1},
                                 {"max_position_embeddings", 16},
                                 {"hidden_act", "silu"},
                                 {"rms_norm_eps", 1e-5},
                                 {"rope_theta", 100.0},
                                 {"tie_word_embeddings", false}},
                                changes);
  const auto number = [&](const char* key) { return made.config[key].get<std::int64_t>(); };
  const std::int64_t vocabulary = number("vocab_size"), width = number("hidden_size"),
                     inner = number("intermediate_size"), heads = number("num_attention_heads"),
                     head_dim = made.config.value("head_dim", width / heads),
                     kv_width = made.config.value("num_key_value_heads", heads) * head_dim;
  const bool o_bias = made.config.value("attention_bias", false), mlp_bias = made.config.value("mlp_bias", false);
  const bool qkv_bias = o_bias || made.config["model_type"] == "qwen2";

  detail::writer add(made);
  add.weight("model.embed_tokens.weight", {vocabulary, width});
  add.norm("model.norm.weight", width);
  if (!made.config["tie_word_embeddings"].get<bool>()) add.weight("lm_head.weight", {vocabulary, width});
  for (std::int64_t i = 0; i < number("num_hidden_layers"); ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add.norm(layer + "input_layernorm.weight", width);
    add.norm(layer + "post_attention_layernorm.weight", width);
    add.linear(layer + "self_attn.q_proj", heads * head_dim, width, qkv_bias);
    add.linear(layer + "self_attn.k_proj", kv_width, width, qkv_bias);
    add.linear(layer + "self_attn.v_proj", kv_width, width, qkv_bias);
    add.linear(layer + "self_attn.o_proj", width, heads * head_dim, o_bias);
    add.linear(layer + "mlp.gate_proj", inner, width, mlp_bias);
    add.linear(layer + "mlp.up_proj", inner, width, mlp_bias);
    add.linear(layer + "mlp.down_proj", width, inner, mlp_bias);
  }
  return made;
}

/// Three heads of four, eight tokens.
inline model mpt_model(const json& changes = json::object()) {
  model made = detail::model_of({{"model_type", "mpt"},
                                 {"vocab_size", 8},
                                 {"d_model", 12},
                                 {"n_layers", 1},
                                 {"n_heads", 3},
                                 {"max_seq_len", 16},
                                 {"expansion_ratio", 4},
                                 {"no_bias", true},
                                 {"attn_config", {{"alibi", true}, {"alibi_bias_max", 8}}}},
                                changes);
  const std::int64_t vocabulary = made.config["vocab_size"], width = made.config["d_model"];
  detail::writer add(made);
  add.weight("transformer.wte.weight", {vocabulary, width});
  add.norm("transformer.norm_f.weight", width);
  for (std::int64_t i = 0; i < made.config["n_layers"].get<std::int64_t>(); ++i) {
    const std::string layer = "transformer.blocks." + std::to_string(i) + ".";
    add.norm(layer + "norm_1.weight", width);
    add.norm(layer + "norm_2.weight", width);
    add.linear(layer + "attn.Wqkv", 3 * width, width, false);
    add.linear(layer + "attn.out_proj", width, width, false);
    add.linear(layer + "ffn.up_proj", 4 * width, width, false);
    add.linear(layer + "ffn.down_proj", width, 4 * width, false);
  }
  return made;
}

/// A model loaded from a config's text and a file's bytes, which are to outlive it.
class loaded {
 public:
  loaded(std::string_view config, std::string_view file)
      : config_(llama::parse_object(config, "config.json")), weights_(file_of(file)) {
    model_ = llama::make_model({config_, "config.json"}, weights_);
  }

  const llama::language_model& operator*() const { return *model_; }
  const llama::language_model* operator->() const { return model_.get(); }

 private:
  static llama::weights file_of(std::string_view file) {
    llama::weights source;
    source.add(file, "model.safetensors");
    return source;
  }

  json config_;
  llama::weights weights_;
  std::unique_ptr<llama::language_model> model_;
};

inline Eigen::RowVectorXf logits(const llama::language_model& model) {
  return llama::stream(model, {}, 4).next_logits({0, 1, 2});
}

/// Of a model that was written to a file and loaded from it.
inline Eigen::RowVectorXf logits(const model& made, llama::element type = llama::element::f32, std::size_t gap = 0) {
  const std::string config = made.config.dump(), file = safetensors(made.tensors, type, gap);
  return logits(*loaded(config, file));
}

}  // namespace tiny
