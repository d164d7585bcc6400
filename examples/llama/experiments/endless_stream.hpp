// A very long text through one stream: constant memory, constant time a token, and the attention that the formula says.
#pragma once

#include "../commands.hpp"
#include "../language_model.hpp"
#include "../linear.hpp"
#include "../progress.hpp"
#include "../report.hpp"
#include "checked_attention.hpp"

#include <lambda_attention/eigen.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

namespace llama::experiments {

/// A text again and again, after the model's BOS where it has one.
class endless_text {
 public:
  endless_text(const language_model& model, const std::vector<token>& text) : text_(&text), bos_(model.shape().bos) {}

  token at(std::int64_t i) const {
    return i == 0 && bos_ ? *bos_ : (*text_)[static_cast<std::size_t>(i) % text_->size()];
  }
  std::vector<token> chunk(std::int64_t first, std::int64_t count) const {
    std::vector<token> tokens;
    for (std::int64_t i = first; i < first + count; ++i) tokens.push_back(at(i));
    return tokens;
  }

 private:
  const std::vector<token>* text_;
  std::optional<token> bos_;
};

/// Of the tokens since the sample before.
struct stream_sample {
  std::int64_t tokens;  ///< that came until then
  double seconds_per_token, nats_per_token;
  double cache_bytes, resident_bytes;
};

struct stream_result {
  std::vector<stream_sample> samples;
  double largest_error;  ///< of the layers' attention at the samples, NMSE
};

namespace detail {
constexpr std::int64_t chunk_tokens = 512;

inline std::unique_ptr<checked_attention> make_checked_attention(const language_model& model,
                                                                 const attention_settings& settings,
                                                                 std::int64_t longest, std::int64_t layer) {
  const model_shape& shape = model.shape();
  const attention_settings complete = completed(settings, shape.training_length);
  return std::make_unique<checked_attention>(
      make_attention(complete, longest, model.position(), shape.heads, layer, shape.layers),
      shape_of(complete, longest), model.position(), shape.heads);
}

/// Calls read(first), which reads a chunk and returns its nats, until `total` tokens are read, and takes ten samples;
/// of 5120 tokens at least. The times have the copies in them that checked_attention makes.
template <class Read>
stream_result read_and_sample(std::int64_t total, const std::vector<checked_attention*>& layers, bool with_progress,
                              Read&& read) {
  const std::int64_t every = std::max(chunk_tokens, total / 10 / chunk_tokens * chunk_tokens);
  stream_result result{{}, 0};
  progress shown(total, with_progress);
  stopwatch watch;
  double nats = 0;
  for (std::int64_t first = 0; first + chunk_tokens <= total; first += chunk_tokens) {
    const bool sampled = (first + chunk_tokens) % every == 0;
    if (sampled)
      for (checked_attention* layer : layers) layer->check_next();
    nats += read(first);
    shown.advance(chunk_tokens);
    if (!sampled) continue;
    double bytes = 0;
    for (const checked_attention* layer : layers) bytes += static_cast<double>(layer->bytes());
    const auto since = static_cast<double>(every);
    result.samples.push_back({first + chunk_tokens, watch.seconds() / since, nats / since, bytes,
                              static_cast<double>(resident_memory_bytes())});
    watch = {};
    nats = 0;
  }
  for (const checked_attention* layer : layers)
    if (!(layer->error() <= result.largest_error)) result.largest_error = layer->error();  // a NaN shows
  return result;
}

inline matrix all_heads(const la::tensor_view<const float>& rows) {
  matrix all(rows.tokens, rows.heads * rows.dim);
  for (la::index_t head = 0; head < rows.heads; ++head)
    all.middleCols(head * rows.dim, rows.dim) = la::to_eigen(rows, head);
  return all;
}

/// Keeps what a layer hands to its attention, [tokens, heads * head_dim] each.
struct kept_rows final : layer_attention {
  void attend(const la::tensor_view<const float>& queries, const la::tensor_view<const float>& keys,
              const la::tensor_view<const float>& values, const la::tensor_view<float>& out, bool) override {
    q = all_heads(queries);
    k = all_heads(keys);
    v = all_heads(values);
    for (la::index_t head = 0; head < out.heads; ++head) la::to_eigen(out, head).setZero();
  }
  la::index_t bytes() const override { return 0; }

  matrix q, k, v;
};
}  // namespace detail

/// Reads `total` tokens, `text` again and again, through a whole model. Threads share out each chunk.
inline stream_result read_endless_stream(const language_model& model, const attention_settings& settings,
                                         const std::vector<token>& text, std::int64_t total, bool with_progress) {
  std::vector<std::unique_ptr<layer_attention>> layers;
  std::vector<checked_attention*> checked;
  for (std::int64_t i = 0; i < model.shape().layers; ++i) {
    auto layer = detail::make_checked_attention(model, settings, total, i);
    checked.push_back(layer.get());
    layers.push_back(std::move(layer));
  }
  stream reading(model, std::move(layers));
  const endless_text endless(model, text);
  return detail::read_and_sample(total, checked, with_progress, [&](std::int64_t first) {
    double nats = 0;
    reading.read(endless.chunk(first, detail::chunk_tokens), false, [&](std::int64_t, const matrix& x) {
      const matrix logits = model.logits(x);
      for (Eigen::Index row = 0; row < logits.rows(); ++row)
        nats += static_cast<double>(surprise(logits.row(row), endless.at(first + row + 1)));
    });
    return nats;
  });
}

/// The same through the attention of the model's first layer alone. What it is given depends on each token alone, so it
/// is worked out once for each that there is.
inline stream_result read_endless_layer(const language_model& model, const attention_settings& settings,
                                        const std::vector<token>& text, std::int64_t total, bool with_progress) {
  const model_shape& shape = model.shape();
  std::vector<token> all_tokens(static_cast<std::size_t>(shape.vocabulary));
  std::iota(all_tokens.begin(), all_tokens.end(), 0);
  matrix x = model.embed(all_tokens.data(), shape.vocabulary);
  detail::kept_rows of_token;
  model.apply_layer(0, x, of_token, false);

  const auto layer = detail::make_checked_attention(model, settings, total, 0);
  const endless_text endless(model, text);
  matrix q, k, v, out(detail::chunk_tokens, of_token.q.cols());
  return detail::read_and_sample(total, {layer.get()}, with_progress, [&](std::int64_t first) {
    const std::vector<token> tokens = endless.chunk(first, detail::chunk_tokens);
    q = of_token.q(tokens, Eigen::all);
    k = of_token.k(tokens, Eigen::all);
    v = of_token.v(tokens, Eigen::all);
    const la::index_t heads = shape.heads.heads, kv_heads = shape.heads.kv_heads;
    layer->attend(la::from_eigen(std::as_const(q), heads), la::from_eigen(std::as_const(k), kv_heads),
                  la::from_eigen(std::as_const(v), kv_heads), la::from_eigen(out, heads), false);
    return 0.0;
  });
}

}  // namespace llama::experiments
