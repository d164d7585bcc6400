// An engine that keeps its own cache, in pages, of keys that it has rotated when they came. It switches to Λ-attention by handing
// over the pages of the sinks and of the window, which are read where they lie; it may free the others.
//
//     pages    | 0 | 1 | 2 | ... | 45 | 46 | 47 | ... | 62 |        16 tokens each
//     seen      sinks             |<---- window: 256 ----->|
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

struct model {
  static constexpr index_t heads = 4, kv_heads = 2, head_dim = 32, page = 16, tokens = 1000;
};

// As many engines do it: half-split, angles in float.
void rotate(float* row, index_t position) {
  for (index_t p = 0; p < model::head_dim / 2; ++p) {
    const float exponent = static_cast<float>(2 * p) / static_cast<float>(model::head_dim);
    const float angle = static_cast<float>(position) / std::pow(10000.0f, exponent);
    float &a = row[p], &b = row[p + model::head_dim / 2];
    const float x = a, y = b;
    a = x * std::cos(angle) - y * std::sin(angle);
    b = y * std::cos(angle) + x * std::sin(angle);
  }
}

// Stands for projections: rows of the tokens from `first` on.
std::vector<float> rows(index_t first, index_t n, index_t heads, double seed) {
  std::vector<float> numbers;
  for (index_t i = first * heads * model::head_dim; i < (first + n) * heads * model::head_dim; ++i)
    numbers.push_back(static_cast<float>(2 * std::sin(seed * static_cast<double>(i * i % 997))));
  return numbers;
}
la::tensor_view<const float> view(const std::vector<float>& numbers, index_t heads) {
  return la::token_major(numbers.data(), static_cast<index_t>(numbers.size()) / (heads * model::head_dim), heads,
                         model::head_dim);
}

int main() {
  const la::lambda_shape shape = la::lm_infinite(4, 256);
  const la::rope position(model::head_dim);
  constexpr index_t last = model::tokens - 1;
  // The engine's pages that are left: [page, kv_heads, head_dim] of keys and as many values.
  std::vector<std::vector<float>> keys, values;
  std::vector<la::key_run<const float, const float>> runs;
  for (index_t first = 0; first < model::tokens; first += model::page) {
    if (first >= shape.num_sinks && first + model::page <= shape.window_keys(last).first) continue;
    const index_t count = last + 1 - first < model::page ? last + 1 - first : model::page;
    keys.push_back(rows(first, count, model::kv_heads, 0.37));
    values.push_back(rows(first, count, model::kv_heads, 0.71));
    for (index_t r = 0; r < count * model::kv_heads; ++r)
      rotate(keys.back().data() + r * model::head_dim, first + r / model::kv_heads);
    runs.push_back({first, view(keys.back(), model::kv_heads), view(values.back(), model::kv_heads),
                    la::row_rotation::to_position});
  }

  // The newest token's query, rotated too. The sinks lie beyond the limit: for them the library turns both back.
  std::vector<float> q = rows(last, 1, model::heads, 0.53), out(q.size()), expected(q.size());
  for (index_t h = 0; h < model::heads; ++h) rotate(q.data() + h * model::head_dim, last);
  const la::query_run newest{last, view(q, model::heads), la::row_rotation::to_position};
  la::attend(newest, runs.data(), static_cast<index_t>(runs.size()), shape, position,
             la::token_major(out.data(), 1, model::heads, model::head_dim));

  // The same from the library's own cache, which rotates by itself.
  la::kv_cache<la::f32, la::rope> cache(shape, position, model::kv_heads, model::head_dim, model::head_dim);
  const std::vector<float> k = rows(0, model::tokens, model::kv_heads, 0.37);
  const std::vector<float> v = rows(0, model::tokens, model::kv_heads, 0.71), own_q = rows(last, 1, model::heads, 0.53);
  la::append(view(k, model::kv_heads), view(v, model::kv_heads), cache);
  la::attend(view(own_q, model::heads), cache, la::token_major(expected.data(), 1, model::heads, model::head_dim));
  double worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i) worst = std::fmax(worst, std::abs(out[i] - expected[i]));
  std::printf("%d of %d pages, against a kv_cache: largest difference %.1e\n", static_cast<int>(runs.size()),
              static_cast<int>((model::tokens + model::page - 1) / model::page), worst);
  return worst < 1e-4 ? 0 : 1;
}
