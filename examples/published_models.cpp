// What published models and policies attend to, in this library's words: a shape, an encoding and options. Each is computed
// for a whole prompt, and token by token over a cache, and compared with the formula.
#include <lambda_attention/lambda_attention.hpp>
#include <lambda_attention/reference.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;

struct model {
  static constexpr la::index_t heads = 4, dim = 32, row = heads * dim, tokens = 200, window = 48;
};

std::vector<float> numbers(double seed) {  // stand for a model's projections
  std::vector<float> result(model::tokens * model::row);
  double i = 0;
  for (float& number : result) number = static_cast<float>(2 * std::sin(seed * ++i));
  return result;
}

template <class T>
la::tensor_view<T> view(std::vector<T>& rows, la::index_t first = 0, la::index_t count = model::tokens) {
  return la::token_major(rows.data() + first * model::row, count, model::heads, model::dim);
}

double largest_difference(const std::vector<float>& out, const std::vector<double>& expected) {
  double largest = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double difference = std::abs(static_cast<double>(out[i]) - expected[i]);
    largest = difference <= largest ? largest : difference;  // a NaN stays
  }
  return largest;
}

// Prints the errors, and returns whether they are small.
template <class Position>
bool compute(const char* name, const la::lambda_shape& shape, const Position& position,
             const la::attention_options& options = {}) {
  std::vector<float> q = numbers(0.9), k = numbers(0.3), v = numbers(0.7), out(q.size());
  std::vector<double> expected(q.size());
  la::reference::attend(view(q), view(k), view(v), shape, position, view(expected), options);
  la::attend(view(q), view(k), view(v), shape, position, view(out), options);
  const double whole = largest_difference(out, expected);
  std::printf("%-33s of a whole prompt %.0e", name, whole);
  if (shape.window == la::unlimited) {
    std::puts(", no bounded cache");
    return whole < 1e-5;
  }

  la::kv_cache<la::f32, Position> cache(shape, position, model::heads, model::dim, model::dim);
  out.assign(out.size(), 0);
  for (la::index_t i = 0; i < model::tokens; ++i)
    la::attend(view(q, i, 1), view(k, i, 1), view(v, i, 1), cache, view(out, i, 1), options);
  const double stream = largest_difference(out, expected);
  std::printf(", of a stream %.0e in %d bytes\n", stream, static_cast<int>(cache.bytes()));
  return whole < 1e-5 && stream < 1e-5;
}

int main() {
  const la::rope rope(model::dim);
  la::attention_options capped, with_learned_sinks;
  capped.soft_cap = 50;
  const float logits[model::heads] = {0.5f, -1, 2, 0};
  with_learned_sinks.sink_logits = {logits, model::heads};
  std::puts("Largest errors:");
  bool right = compute("LM-Infinite", la::lm_infinite(4, model::window), rope);
  right &= compute("LM-Infinite, ALiBi (MPT)", la::lm_infinite(4, model::window), la::alibi(model::heads));
  right &= compute("StreamingLLM", la::streaming_llm(4, model::window), rope);
  right &= compute("ReRoPE", {0, la::unlimited, model::window}, rope);
  right &= compute("a plain window (Mistral)", la::sliding_window(model::window), rope);
  right &= compute("a window, soft cap (Gemma 2)", la::sliding_window(model::window), rope, capped);
  right &= compute("a window, learned sinks (gpt-oss)", la::sliding_window(model::window), rope, with_learned_sinks);
  right &= compute("everything", la::full_causal(), rope);
  return right ? 0 : 1;
}
