// What the architectures have in common, and a stream of tokens through one of them.
#pragma once

#include "attention.hpp"
#include "error.hpp"
#include "linear.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace llama {

using token = std::int32_t;

struct model_shape {
  std::int64_t vocabulary, width, layers;
  heads_of_layer heads;
  std::int64_t training_length;
  std::optional<token> bos;  ///< stands first in every text, where the model has one
};

/// A transformer, its weights in place. One model serves any number of streams, one after another.
class language_model {
 public:
  virtual ~language_model() = default;

  const model_shape& shape() const { return shape_; }
  const position_variant& position() const { return position_; }

  /// [tokens, width]: the embeddings.
  matrix embed(const token* tokens, std::int64_t count) const {
    matrix x(count, shape_.width);
    for (std::int64_t i = 0; i < count; ++i) {
      if (tokens[i] < 0 || tokens[i] >= shape_.vocabulary)
        fail("expected tokens from 0 to %lld, got %d", static_cast<long long>(shape_.vocabulary - 1), tokens[i]);
      embedding_.copy_row(tokens[i], x.row(i));
    }
    return x;
  }

  /// Adds to x what a layer adds, its attention being that of `attention`.
  virtual void apply_layer(std::int64_t layer, matrix& x, layer_attention& attention, bool retrieve) const = 0;

  /// [tokens, vocabulary], of what the last layer left.
  matrix logits(const matrix& x) const {
    matrix result;
    output_.multiply(final_norm(x), result);
    return result;
  }

 protected:
  language_model(const model_shape& shape, position_variant position, weight_matrix embedding, weight_matrix output)
      : shape_(shape), position_(std::move(position)), embedding_(std::move(embedding)), output_(std::move(output)) {}

  virtual matrix final_norm(const matrix& x) const = 0;

 private:
  model_shape shape_;
  position_variant position_;
  weight_matrix embedding_, output_;
};

/// One text, read from left to right.
class stream {
 public:
  /// `longest`: no more tokens than this will come. It bounds nothing where attention is bounded by itself.
  stream(const language_model& model, const attention_settings& settings, std::int64_t longest)
      : stream(model, make_layers(model, settings, longest)) {}

  /// One attention for each layer, of whatever kind.
  stream(const language_model& model, std::vector<std::unique_ptr<layer_attention>> layers)
      : model_(&model), layers_(std::move(layers)) {}

  /// Reads tokens, a chunk at a time, and calls each(first, x) with what the last layer left of tokens first, first +
  /// 1, ...
  template <class Function>
  void read(const std::vector<token>& tokens, bool retrieve, Function&& each) {
    constexpr std::int64_t chunk = 512;
    const auto count = static_cast<std::int64_t>(tokens.size());
    for (std::int64_t first = 0; first < count; first += chunk) {
      matrix x = model_->embed(tokens.data() + first, std::min(chunk, count - first));
      for (std::size_t i = 0; i < layers_.size(); ++i)
        model_->apply_layer(static_cast<std::int64_t>(i), x, *layers_[i], retrieve);
      each(first, x);
    }
  }

  /// Reads tokens, and returns the logits of the token that follows them.
  Eigen::RowVectorXf next_logits(const std::vector<token>& tokens, bool retrieve = false) {
    if (tokens.empty()) fail("expected at least one token");
    matrix last;
    read(tokens, retrieve, [&](std::int64_t, const matrix& x) { last = x.bottomRows(1); });
    return model_->logits(last);
  }

  /// Of all caches.
  std::int64_t bytes() const {
    std::int64_t bytes = 0;
    for (const auto& layer : layers_) bytes += layer->bytes();
    return bytes;
  }

 private:
  static std::vector<std::unique_ptr<layer_attention>> make_layers(const language_model& model,
                                                                   const attention_settings& settings,
                                                                   std::int64_t longest) {
    const model_shape& shape = model.shape();
    const attention_settings complete = completed(settings, shape.training_length);
    std::vector<std::unique_ptr<layer_attention>> layers;
    for (std::int64_t i = 0; i < shape.layers; ++i)
      layers.push_back(make_attention(complete, longest, model.position(), shape.heads, i, shape.layers));
    return layers;
  }

  const language_model* model_;
  std::vector<std::unique_ptr<layer_attention>> layers_;
};

}  // namespace llama
