// Models that were made to read longer texts: what their config.json says under rope_scaling (or rope_parameters), field by
// field, and how many tokens it takes the fastest and the slowest pair of a head to turn once.
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;

double tokens_a_turn(const la::rope& position, la::index_t pair) {
  return 6.283185307179586 / position.inverse_frequency(pair);
}

void print(const char* model, const la::rope& position) {
  std::printf("%-22s %8.2f ... %12.0f tokens a turn, rows times %.4f\n", model, tokens_a_turn(position, 0),
              tokens_a_turn(position, position.num_pairs() - 1), position.factor());
}

int main() {
  // "rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
  // "original_max_position_embeddings": 8192}
  const la::llama3_scaling llama3 = {8, 1, 4, 8192};
  // "rope_theta": 1000000, "rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}
  const la::yarn_scaling yarn = {4, 32768};

  const la::rope unscaled(128, 500000), llama = la::scaled_rope(128, 500000, llama3);
  print("unscaled", unscaled);
  print("llama3", llama);
  print("linear", la::scaled_rope(128, 500000, la::linear_scaling{8}));
  print("ntk", la::scaled_rope(128, 500000, la::ntk_scaling{8}));
  print("yarn", la::scaled_rope(128, 1000000, yarn));

  // It is a rope like any other: clamped at the window here.
  const la::index_t n = 2000, heads = 2;
  std::vector<float> x(static_cast<std::size_t>(n * heads * 128)), out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(static_cast<double>(i * i % 1009)));
  const auto rows = la::token_major(x.data(), n, heads, 128);
  la::attend(rows, rows, rows, la::lm_infinite(4, 512), llama, la::token_major(out.data(), n, heads, 128));

  const double slower = tokens_a_turn(llama, 63) / tokens_a_turn(unscaled, 63);
  return std::abs(slower - 8) < 1e-9 && tokens_a_turn(llama, 0) == tokens_a_turn(unscaled, 0) ? 0 : 1;
}
