// A very long text through one stream: constant memory, constant time a token, and the attention that the formula says.
#pragma once

#include "../commands.hpp"
#include "../language_model.hpp"
#include "../progress.hpp"
#include "../report.hpp"

#include <lambda_attention/reference.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llama::experiments {

/// The attention of a layer, and beside it the sinks and the newest keys and values, from which the newest query is
/// worked out anew by the reference whenever `check` is called before.
///
///     all keys        s s . . . . . . . w w w w q      the sinks at the limit, the window at its true distances
///     these           s s w w w w q                     the same distances: reference::attend() over these alone
class checked_attention final : public layer_attention {
 public:
  checked_attention(std::unique_ptr<layer_attention> inner, const la::lambda_shape& shape,
                    const position_variant& position, const heads_of_layer& heads)
      : inner_(std::move(inner)), shape_(shape), position_(&position), heads_(heads) {}

  void check_next() { check_ = true; }
  /// NMSE: the squared error over the squared size of all rows that were checked.
  double error() const { return error_ / size_; }

  void attend(const la::tensor_view<const float>& q, const la::tensor_view<const float>& k,
              const la::tensor_view<const float>& v, const la::tensor_view<float>& out, bool retrieve) override {
    inner_->attend(q, k, v, out, retrieve);
    keep(k, keys_);
    keep(v, values_);
    if (std::exchange(check_, false)) compare(q, out);
  }
  la::index_t bytes() const override { return inner_->bytes(); }

 private:
  using rows = std::vector<std::vector<float>>;

  // Appends rows, and forgets those that are neither sinks nor in the window.
  void keep(const la::tensor_view<const float>& tokens, rows& kept) const {
    for (la::index_t i = 0; i < tokens.tokens; ++i) {
      std::vector<float> row;
      for (la::index_t head = 0; head < tokens.heads; ++head)
        row.insert(row.end(), tokens.row(i, head), tokens.row(i, head) + tokens.dim);
      kept.push_back(std::move(row));
    }
    const auto most = static_cast<std::size_t>(shape_.num_sinks + shape_.window);
    if (kept.size() > most)
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(shape_.num_sinks),
                 kept.end() - static_cast<std::ptrdiff_t>(shape_.window));
  }

  void compare(const la::tensor_view<const float>& q, const la::tensor_view<float>& out) {
    const auto tokens = static_cast<la::index_t>(keys_.size());
    const std::vector<float> k = flat(keys_), v = flat(values_);
    la::attention_options options;
    options.scale = heads_.scale;
    std::vector<long double> row(static_cast<std::size_t>(q.dim));
    for (la::index_t head = 0; head < q.heads; ++head) {
      const auto attend = [&](const auto& position) {
        la::reference::attend_row(q.row(q.tokens - 1, head), tokens - 1, head, q.heads,
                                  la::token_major(k.data(), tokens, heads_.kv_heads, q.dim),
                                  la::token_major(v.data(), tokens, heads_.kv_heads, q.dim), shape_, position, options,
                                  row.data());
      };
      std::visit(attend, *position_);
      for (std::size_t i = 0; i < row.size(); ++i) {
        const long double got = out.row(out.tokens - 1, head)[i];
        error_ += static_cast<double>((got - row[i]) * (got - row[i]));
        size_ += static_cast<double>(row[i] * row[i]);
      }
    }
  }

  static std::vector<float> flat(const rows& kept) {
    std::vector<float> numbers;
    for (const auto& row : kept) numbers.insert(numbers.end(), row.begin(), row.end());
    return numbers;
  }

  std::unique_ptr<layer_attention> inner_;
  la::lambda_shape shape_;
  const position_variant* position_;
  heads_of_layer heads_;
  rows keys_, values_;
  bool check_ = false;
  double error_ = 0, size_ = 0;
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

/// Reads `total` tokens, `text` again and again, in chunks of 512, and takes ten samples; 5120 tokens at
/// least. Threads share out each chunk. The times have the copies in them that checked_attention makes.
inline stream_result read_endless_stream(const language_model& model, const attention_settings& settings,
                                         const std::vector<token>& text, std::int64_t total, bool with_progress) {
  constexpr std::int64_t chunk = 512;
  const model_shape& shape = model.shape();
  const attention_settings complete = completed(settings, shape.training_length);
  std::vector<std::unique_ptr<layer_attention>> layers;
  std::vector<checked_attention*> checked;
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    layers.push_back(std::make_unique<checked_attention>(
        make_attention(complete, total, model.position(), shape.heads, i, shape.layers), shape_of(complete, total),
        model.position(), shape.heads));
    checked.push_back(static_cast<checked_attention*>(layers.back().get()));
  }
  stream reading(model, std::move(layers));

  const auto token_at = [&](std::int64_t i) {
    return i == 0 && shape.bos ? *shape.bos : text[static_cast<std::size_t>(i) % text.size()];
  };
  const std::int64_t every = std::max(chunk, total / 10 / chunk * chunk);
  stream_result result{{}, 0};
  progress shown(total, with_progress);
  stopwatch watch;
  double nats = 0;
  for (std::int64_t first = 0; first + chunk <= total; first += chunk) {
    std::vector<token> tokens;
    for (std::int64_t i = first; i < first + chunk; ++i) tokens.push_back(token_at(i));
    const bool sampled = (first + chunk) % every == 0;
    if (sampled)
      for (checked_attention* layer : checked) layer->check_next();
    reading.read(tokens, false, [&](std::int64_t, const matrix& x) {
      const matrix logits = model.logits(x);
      for (Eigen::Index row = 0; row < logits.rows(); ++row)
        nats += static_cast<double>(surprise(logits.row(row), token_at(first + row + 1)));
    });
    shown.advance(chunk);
    if (!sampled) continue;
    const auto since = static_cast<double>(every);
    result.samples.push_back({first + chunk, watch.seconds() / since, nats / since,
                              static_cast<double>(reading.bytes()), static_cast<double>(resident_memory_bytes())});
    watch = {};
    nats = 0;
  }
  for (const checked_attention* layer : checked)
    if (!(layer->error() <= result.largest_error)) result.largest_error = layer->error();  // a NaN shows
  return result;
}

}  // namespace llama::experiments
