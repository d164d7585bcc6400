// What --attention and its settings mean, and the attention of one layer over its stream.
#pragma once

#include "error.hpp"

#include <lambda_attention/executor/openmp.hpp>
#include <lambda_attention/lambda_attention.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace llama {

namespace la = lambda_attention;

enum class policy { lm_infinite, full, window, streaming_llm, no_clamp, rerope };
enum class storage { f32, f16, bf16, int8 };

inline const std::map<std::string, policy> policies = {
    {"lm-infinite", policy::lm_infinite},     {"full", policy::full},         {"window", policy::window},
    {"streaming-llm", policy::streaming_llm}, {"no-clamp", policy::no_clamp}, {"rerope", policy::rerope}};
inline const std::map<std::string, storage> storages = {
    {"f32", storage::f32}, {"f16", storage::f16}, {"bf16", storage::bf16}, {"int8", storage::int8}};

struct attention_settings {
  policy attention = policy::lm_infinite;
  la::index_t sinks = 4;
  la::index_t window = 0;          ///< 0: the length that the model was trained on
  la::index_t distance_limit = 0;  ///< 0: the window
  la::index_t top_k = 0;           ///< keys of the middle that each query of a question sees as well
  storage kv = storage::f32;
  int threads = 1;
};

/// Settings with their zeros filled in.
/// Errors: counts that a cache cannot have, and --top-k where nothing is in the middle.
inline attention_settings completed(attention_settings settings, la::index_t training_length) {
  if (settings.window == 0) settings.window = training_length;
  if (settings.distance_limit == 0) settings.distance_limit = settings.window;
  const auto check = [](const char* name, la::index_t number, la::index_t least,
                        la::index_t most = la::index_t{1} << 30) {
    if (number < least || number > most)
      fail("%s: expected %lld to %lld, got %lld", name, static_cast<long long>(least), static_cast<long long>(most),
           static_cast<long long>(number));
  };
  check("--sinks", settings.sinks, 0);
  check("--window", settings.window, 1);
  check("--distance-limit", settings.distance_limit, 1);
  check("--top-k", settings.top_k, 0);
  check("--threads", settings.threads, 1, 1024);
  if (settings.attention == policy::streaming_llm && settings.sinks >= settings.window)
    fail("--sinks: expected fewer than --window, which counts the sinks of streaming-llm as well");
  if (settings.top_k > 0 && settings.attention != policy::lm_infinite)
    fail("--top-k: expected --attention lm-infinite");
  return settings;
}

/// Which keys are seen, and at which distances, in a stream of no more than `longest` tokens. What sees all keys is a
/// window of that many, kept in a cache as well; and no cache is larger than that.
inline la::lambda_shape shape_of(const attention_settings& settings, la::index_t longest) {
  const la::index_t window = std::min(settings.window, longest), sinks = std::min(settings.sinks, longest);
  switch (settings.attention) {
    case policy::lm_infinite:
      return {sinks, window, settings.distance_limit};
    case policy::no_clamp:
      return {sinks, window, la::unlimited};
    case policy::window:
      return la::sliding_window(window);
    case policy::streaming_llm:
      return la::streaming_llm(sinks, std::min(settings.window - settings.sinks, longest));
    case policy::rerope:
      return {0, longest, settings.distance_limit};
    default:
      return la::sliding_window(longest);
  }
}

using position_variant = std::variant<la::rope, la::alibi>;

/// Heads of a model's attention.
struct heads_of_layer {
  la::index_t heads, kv_heads, head_dim;
  double scale = 0;  ///< of scores; 0: 1 / sqrt(head_dim)
};

/// Attention of one layer over one stream.
class layer_attention {
 public:
  virtual ~layer_attention() = default;
  /// Takes in k and v, and writes the attention of q over all that came. With `retrieve` the best keys of the middle
  /// too.
  virtual void attend(const la::tensor_view<const float>& q, const la::tensor_view<const float>& k,
                      const la::tensor_view<const float>& v, const la::tensor_view<float>& out, bool retrieve) = 0;
  virtual la::index_t bytes() const = 0;
};

namespace detail {
template <class Storage, class Position>
class cached_attention final : public layer_attention {
 public:
  cached_attention(const attention_settings& settings, const la::lambda_shape& shape, const Position& position,
                   const heads_of_layer& layer, bool keeps_middle)
      : cache_(shape, position, layer.kv_heads, layer.head_dim, layer.head_dim),
        executor_(settings.threads),
        best_{settings.top_k, (settings.distance_limit + 1) / 2} {
    options_.scale = layer.scale;
    if (keeps_middle) middle_.emplace(shape, position, layer.kv_heads, layer.head_dim, layer.head_dim);
  }

  void attend(const la::tensor_view<const float>& q, const la::tensor_view<const float>& k,
              const la::tensor_view<const float>& v, const la::tensor_view<float>& out, bool retrieve) override {
    options_.workspace = &workspace_;
    if (middle_) la::append(k, v, *middle_);
    if (!middle_ || !retrieve) return la::attend(q, k, v, cache_, out, options_, executor_);

    la::append(k, v, cache_);
    const auto numbers = static_cast<std::size_t>(q.tokens * q.heads);
    std::vector<float> lse(numbers), best_lse(numbers), best_out(numbers * static_cast<std::size_t>(q.dim));
    const la::partial_result near = {out, la::token_major(lse.data(), q.tokens, q.heads, 1)};
    const la::partial_result best = {la::token_major(best_out.data(), q.tokens, q.heads, q.dim),
                                     la::token_major(best_lse.data(), q.tokens, q.heads, 1)};
    la::attend_partial(q, cache_, {0, la::unlimited}, near, options_, executor_);
    la::attend_top_k(q, *middle_, best_, best, options_, executor_);
    la::merge(near, best, near);
  }

  la::index_t bytes() const override { return cache_.bytes() + (middle_ ? middle_->bytes() : 0); }

 private:
  la::kv_cache<Storage, Position> cache_;
  std::optional<la::middle_store<Storage, Position>> middle_;
  la::openmp_executor executor_;
  la::top_k best_;
  la::attention_options options_;
  la::workspace workspace_;
};
}  // namespace detail

/// `layer` counts from 0: the first layers do not look into the middle (the paper has five of 32 that do not).
inline std::unique_ptr<layer_attention> make_attention(attention_settings settings, la::index_t longest,
                                                       const position_variant& position, const heads_of_layer& heads,
                                                       la::index_t layer, la::index_t layers) {
  const la::lambda_shape shape = shape_of(settings, longest);
  settings.top_k = std::min(settings.top_k, longest);
  const bool keeps_middle = settings.top_k > 0 && layer > layers / 8;
  return std::visit(
      [&](const auto& encoding) -> std::unique_ptr<layer_attention> {
        using encoding_type = std::decay_t<decltype(encoding)>;
        const auto make = [&](auto rows) -> std::unique_ptr<layer_attention> {
          return std::make_unique<detail::cached_attention<decltype(rows), encoding_type>>(settings, shape, encoding,
                                                                                           heads, keeps_middle);
        };
        switch (settings.kv) {
          case storage::f16:
            return make(la::f16{});
          case storage::bf16:
            return make(la::bf16{});
          case storage::int8:
            return make(la::int8{});
          default:
            return make(la::f32{});
        }
      },
      position);
}

}  // namespace llama
