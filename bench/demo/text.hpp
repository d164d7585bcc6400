// A real text as a stream: bytes embedded into q, k and v, read through a kv_cache in pieces, against one call on it all.
#pragma once

#include "../support/check.hpp"
#include "../support/memory.hpp"
#include "../support/random.hpp"
#include "measurement.hpp"
#include "settings.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace demo {

/// A layer of another size, so that a text of many thousand tokens fits in memory as a whole, too.
struct text_model {
  static constexpr index_t head_dim = 64, num_heads = 4, num_kv_heads = 2;
  static constexpr unsigned seed = 20230830;
  const std::vector<float> q = bench::normal_values<float>(256 * num_heads * head_dim, seed);
  const std::vector<float> k = bench::normal_values<float>(256 * num_kv_heads * head_dim, seed + 1);
  const std::vector<float> v = bench::normal_values<float>(256 * num_kv_heads * head_dim, seed + 2);
  const lambda_attention::rope encoding = lambda_attention::rope(head_dim);
};

/// A one-hot byte times a matrix of [256, heads * head_dim] is a row of it.
class embedded {
 public:
  embedded(const std::vector<float>& table, index_t heads, index_t most_tokens)
      : table_(table), heads_(heads), rows_(static_cast<std::size_t>(most_tokens * heads * text_model::head_dim)) {}

  lambda_attention::tensor_view<float> operator()(const char* text, index_t tokens) {
    const index_t size = heads_ * text_model::head_dim;
    for (index_t t = 0; t < tokens; ++t)
      std::copy_n(table_.begin() + static_cast<unsigned char>(text[t]) * size, size, rows_.begin() + t * size);
    return lambda_attention::token_major(rows_.data(), tokens, heads_, text_model::head_dim);
  }

 private:
  const std::vector<float>& table_;
  index_t heads_;
  std::vector<float> rows_;
};

/// What one token of a text asks, is found by and says, for `most_tokens` of them at a time.
struct embedding {
  embedding(const text_model& model, index_t most_tokens)
      : q(model.q, text_model::num_heads, most_tokens),
        k(model.k, text_model::num_kv_heads, most_tokens),
        v(model.v, text_model::num_kv_heads, most_tokens) {}
  embedded q, k, v;
};

/// The variance of the logits, from visible pairs drawn at random.
inline double logit_variance(const text_model& model, const std::string& text) {
  constexpr int pairs = 4000;
  bench::normal_source random(8);
  const auto below = [&](index_t bound) {
    return static_cast<index_t>(random.next_bits() % static_cast<std::uint64_t>(bound));
  };
  embedding one(model, 1);
  double sum = 0, squares = 0;
  for (int i = 0; i < pairs; ++i) {
    const index_t query = below(static_cast<index_t>(text.size()));
    const index_t key = query - below(std::min(query + 1, window));
    const auto q = lambda_attention::reference::numbers(one.q(&text[static_cast<std::size_t>(query)], 1).data,
                                                        text_model::head_dim);
    const auto k =
        lambda_attention::reference::numbers(one.k(&text[static_cast<std::size_t>(key)], 1).data, text_model::head_dim);
    const double logit =
        static_cast<double>(model.encoding.score(q.data(), k.data(), text_model::head_dim, query - key)) /
        std::sqrt(static_cast<double>(text_model::head_dim));
    sum += logit;
    squares += logit * logit;
  }
  return squares / pairs - (sum / pairs) * (sum / pairs);
}

/// One call on the whole text. The output takes the place of the queries.
class whole_text {
 public:
  whole_text(const text_model& model, const std::string& text) : rows_(model, static_cast<index_t>(text.size())) {
    const index_t tokens = static_cast<index_t>(text.size());
    out_ = rows_.q(text.data(), tokens);
    lambda_attention::attend(out_, rows_.k(text.data(), tokens), rows_.v(text.data(), tokens), lambda(), model.encoding,
                             out_);
  }
  lambda_attention::tensor_view<float> output() const { return out_; }

 private:
  embedding rows_;
  lambda_attention::tensor_view<float> out_;
};

/// Reads the text through a cache in pieces of the sizes given, in turn, and tells how the rows differ from `expected` and
/// what memory does after the first part of the text.
inline void stream_text(const std::string& name, const text_model& model, const std::string& text,
                        const lambda_attention::tensor_view<float>& expected, const std::vector<index_t>& sizes) {
  const index_t tokens = static_cast<index_t>(text.size()), most = *std::max_element(sizes.begin(), sizes.end());
  lambda_attention::kv_cache<lambda_attention::f32, lambda_attention::rope> cache(
      lambda(), model.encoding, text_model::num_kv_heads, text_model::head_dim, text_model::head_dim);
  lambda_attention::workspace scratch(lambda_attention::scratch_bytes(cache, text_model::num_heads, most));
  lambda_attention::attention_options options;
  options.workspace = &scratch;
  embedding piece(model, most);
  bench::deviation deviation;
  double bytes = 0, resident = 0;

  for (index_t first = 0, count = 0, turn = 0; first < tokens; first += count, ++turn) {
    count = std::min(sizes[static_cast<std::size_t>(turn) % sizes.size()], tokens - first);
    const char* const at = text.data() + first;
    const auto out = piece.q(at, count);
    lambda_attention::attend(out, piece.k(at, count), piece.v(at, count), cache, out, options);
    for (index_t i = 0; i < count * out.token_stride; ++i) deviation.add(expected.row(first, 0)[i], out.data[i]);
    if (bytes == 0 && first + count >= std::min(tokens, 4 * window)) {
      bytes = static_cast<double>(cache.bytes());
      resident = bench::resident_bytes();
    }
  }
  tell((name + "/largest").c_str(), deviation.largest());
  tell((name + "/rms").c_str(), deviation.rms());
  tell((name + "/nmse").c_str(), deviation.nmse());
  tell((name + "/bytes").c_str(), static_cast<double>(cache.bytes()));
  tell((name + "/bytes_grown").c_str(), static_cast<double>(cache.bytes()) - bytes);
  tell((name + "/resident_grown").c_str(), bench::resident_bytes() - resident);
}

inline void measure_text(const std::string& text) {
  const text_model model;
  tell("tokens", static_cast<double>(text.size()));
  tell("variance", logit_variance(model, text));
  const whole_text whole(model, text);
  stream_text("single", model, text, whole.output(), {1});
  stream_text("chunks", model, text, whole.output(), {1, 333, 2, 64, 700, 17, 512, 5});
}

}  // namespace demo
