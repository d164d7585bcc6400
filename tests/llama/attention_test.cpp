// Each policy is the shape that its name stands for, and a layer's attention is the formula's.
#include "attention.hpp"

#include <tensors.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace {

using namespace llama;

constexpr la::index_t tokens = 200, heads = 4, kv_heads = 2, dim = 32;

attention_settings settings_of(policy attention, storage kv = storage::f32) {
  attention_settings settings;
  settings.attention = attention;
  settings.window = 48;
  settings.distance_limit = 40;
  settings.kv = kv;
  return settings;
}

la::lambda_shape expected_shape(policy attention) {
  switch (attention) {
    case policy::lm_infinite:
      return {4, 48, 40};
    case policy::full:
      return la::full_causal();
    case policy::window:
      return la::sliding_window(48);
    case policy::streaming_llm:
      return la::streaming_llm(4, 44);
    case policy::no_clamp:
      return {4, 48};
    default:
      return {0, la::unlimited, 40};
  }
}

/// Tokens first ... last - 1 of a sequence, through `attention`.
void attend(layer_attention& attention, sequence<>& s, la::index_t first, la::index_t last, bool retrieve = false) {
  const auto q = std::as_const(s.q).view(), k = std::as_const(s.k).view(), v = std::as_const(s.v).view();
  const la::index_t count = last - first;
  attention.attend(q.slice(first, count), k.slice(first, count), v.slice(first, count),
                   s.out.view().slice(first, count), retrieve);
}

std::string refusal_of(attention_settings settings) {
  try {
    completed(settings, 256);
  } catch (const error& problem) {
    return problem.what();
  }
  return "accepted";
}

TEST(LayerAttention, IsTheFormulaOfItsPolicy) {
  for (const auto& [name, attention] : policies)
    for (const auto& [rows, kv] : storages)
      for (const position_variant& position : {position_variant(la::rope(dim)), position_variant(la::alibi(heads))}) {
        sequence<> s(tokens, heads, kv_heads, dim, dim);
        const auto layer = make_attention(settings_of(attention, kv), tokens, position, {heads, kv_heads, dim}, 0, 4);
        for (la::index_t first = 0, chunk = 1; first < tokens; first += chunk, chunk = chunk % 40 + 9)
          attend(*layer, s, first, std::min(tokens, first + chunk));
        const la::lambda_shape shape = expected_shape(attention);
        const auto wanted = std::visit([&](const auto& p) { return expected(s, shape, p); }, position);
        const double bound = kv == storage::f32    ? 1e-11
                             : kv == storage::f16  ? 2e-7
                             : kv == storage::bf16 ? 1e-5
                                                   : 1.6e-4;
        EXPECT_LE(nmse(s.out.elements, wanted), bound) << name << " " << rows;
      }
}

TEST(LayerAttention, HasTheScaleOfItsModel) {
  sequence<> s(tokens, heads, kv_heads, dim, dim);
  const auto layer =
      make_attention(settings_of(policy::window), tokens, la::alibi(heads), {heads, kv_heads, dim, 0.5}, 0, 4);
  attend(*layer, s, 0, tokens);
  la::attention_options options;
  options.scale = 0.5;
  EXPECT_LE(nmse(s.out.elements, expected(s, la::sliding_window(48), la::alibi(heads), options)), 1e-10);
}

/// <R(distance) q, k>, worked out pair by pair.
double score(const float* q, const float* k, la::index_t distance) {
  double sum = 0;
  for (int p = 0; p < dim / 2; ++p) {
    const double angle = static_cast<double>(distance) * std::pow(10000.0, -2.0 * p / dim);
    const double a = q[p], b = q[p + dim / 2];
    sum += (a * std::cos(angle) - b * std::sin(angle)) * k[p] +
           (a * std::sin(angle) + b * std::cos(angle)) * k[p + dim / 2];
  }
  return sum / std::sqrt(static_cast<double>(dim));
}

/// Of the newest token, over sinks, window, and the `best` keys of the middle at half the limit.
std::vector<double> expected_with_middle(const sequence<>& s, std::size_t best) {
  std::vector<double> out;
  for (la::index_t head = 0; head < heads; ++head) {
    const float* q = s.q.view().row(tokens - 1, head);
    const auto key = [&](la::index_t j) { return s.k.view().row(j, head / 2); };
    std::vector<std::pair<double, la::index_t>> seen, middle;
    for (la::index_t j = 0; j < tokens; ++j) {
      const la::index_t distance = tokens - 1 - j;
      if (j >= 4 && distance >= 48)
        middle.push_back({score(q, key(j), 20), j});
      else
        seen.push_back({score(q, key(j), std::min<la::index_t>(distance, 40)), j});
    }
    std::sort(middle.rbegin(), middle.rend());
    seen.insert(seen.end(), middle.begin(), middle.begin() + static_cast<std::ptrdiff_t>(best));
    std::vector<double> sum(dim);
    double weights = 0;
    for (const auto& [logit, j] : seen) {
      weights += std::exp(logit);
      for (la::index_t d = 0; d < dim; ++d)
        sum[static_cast<std::size_t>(d)] += std::exp(logit) * static_cast<double>(s.v.view().row(j, head / 2)[d]);
    }
    for (const double number : sum) out.push_back(number / weights);
  }
  return out;
}

TEST(LayerAttention, SeesTheBestKeysOfTheMiddleWhereItRetrieves) {
  attention_settings settings = settings_of(policy::lm_infinite);
  settings.top_k = 3;
  for (const la::index_t layer : {0, 1}) {
    sequence<> s(tokens, heads, kv_heads, dim, dim);
    const auto attention = make_attention(settings, tokens, la::rope(dim), {heads, kv_heads, dim}, layer, 4);
    attend(*attention, s, 0, tokens - 1);
    attend(*attention, s, tokens - 1, tokens, true);
    const std::vector<float> newest(s.out.elements.end() - heads * dim, s.out.elements.end());
    EXPECT_LE(nmse(newest, expected_with_middle(s, layer == 0 ? 0 : 3)), 1e-11) << "layer " << layer;
    EXPECT_GT(nmse(newest, expected_with_middle(s, layer == 0 ? 3 : 0)), 1e-4) << "layer " << layer;
  }
}

TEST(LayerAttention, MemoryIsBoundedByTheWindowOrByTheText) {
  const auto bytes = [](policy attention, la::index_t window, la::index_t longest) {
    attention_settings settings = settings_of(attention);
    settings.window = settings.distance_limit = window;
    return make_attention(settings, longest, la::rope(dim), {heads, kv_heads, dim}, 0, 4)->bytes();
  };
  EXPECT_EQ(bytes(policy::lm_infinite, 48, 1000), bytes(policy::lm_infinite, 48, 1'000'000'000));
  EXPECT_LT(bytes(policy::lm_infinite, 1 << 28, 10), 1'000'000);
  EXPECT_LT(bytes(policy::streaming_llm, 1 << 28, 10), 1'000'000);
  EXPECT_GT(bytes(policy::full, 48, 100'000), 100'000 * kv_heads * dim * 4 * 2);
}

TEST(AttentionSettings, ZerosAreTheTrainingLength) {
  const attention_settings complete = completed({}, 256);
  EXPECT_EQ(complete.window, 256);
  EXPECT_EQ(complete.distance_limit, 256);
  attention_settings given;
  given.window = 100;
  EXPECT_EQ(completed(given, 256).distance_limit, 100);
}

TEST(AttentionSettings, AreRefused) {
  attention_settings settings;
  settings.sinks = -1;
  EXPECT_EQ(refusal_of(settings), "--sinks: expected 0 to 1073741824, got -1");
  settings = {};
  settings.window = -5;
  EXPECT_EQ(refusal_of(settings), "--window: expected 1 to 1073741824, got -5");
  settings = {};
  settings.window = la::index_t{1} << 40;
  EXPECT_EQ(refusal_of(settings), "--window: expected 1 to 1073741824, got 1099511627776");
  settings = {};
  settings.distance_limit = -1;
  EXPECT_EQ(refusal_of(settings), "--distance-limit: expected 1 to 1073741824, got -1");
  settings = {};
  settings.top_k = -1;
  EXPECT_EQ(refusal_of(settings), "--top-k: expected 0 to 1073741824, got -1");
  settings = {};
  settings.threads = 0;
  EXPECT_EQ(refusal_of(settings), "--threads: expected 1 to 1024, got 0");
  settings = {};
  settings.attention = policy::streaming_llm;
  settings.sinks = 256;
  EXPECT_EQ(refusal_of(settings),
            "--sinks: expected fewer than --window, which counts the sinks of streaming-llm as well");
  settings = {};
  settings.attention = policy::full;
  settings.top_k = 5;
  EXPECT_EQ(refusal_of(settings), "--top-k: expected --attention lm-infinite");
}

}  // namespace
