// Which keys carry the weight? A policy that evicts, merges or offloads keys asks: here, how much goes to the sinks, and which keys
// of the window matter most, summed over the tokens of a stream as they are decoded.
#include <lambda_attention/lambda_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

struct model {
  static constexpr index_t heads = 4, kv_heads = 2, head_dim = 32, tokens = 500;
};

int main() {
  const la::lambda_shape shape = la::lm_infinite(4, 64);
  la::kv_cache<la::f16, la::rope> cache(shape, la::rope(model::head_dim), model::kv_heads, model::head_dim,
                                        model::head_dim);
  const index_t columns = shape.num_sinks + shape.window;  // a column for each key that a token can see
  std::vector<float> weights(static_cast<std::size_t>(model::heads * columns));
  la::attention_options options;
  options.weights = la::token_major(weights.data(), 1, model::heads, columns);

  std::vector<double> mass(static_cast<std::size_t>(model::tokens));  // of each key, over all heads and tokens
  std::vector<float> q(model::heads * model::head_dim), k(model::kv_heads * model::head_dim), v = k, out(q.size());
  for (index_t token = 0; token < model::tokens; ++token) {
    // Stands for projections. Every 50th key, and the first, is one that many queries look for.
    const float size = token % 50 == 0 ? 2.0f : 0.5f;
    for (std::size_t d = 0; d < q.size(); ++d)
      q[d] = 1 + 0.5f * static_cast<float>(std::sin(static_cast<double>(d * d) + 0.1 * static_cast<double>(token)));
    for (std::size_t d = 0; d < k.size(); ++d) {
      k[d] = size * (1 + 0.5f * static_cast<float>(std::cos(static_cast<double>(d) + static_cast<double>(token))));
      v[d] = static_cast<float>(std::sin(static_cast<double>(d) * static_cast<double>(token)));
    }
    la::attend(la::token_major(q.data(), 1, model::heads, model::head_dim),
               la::token_major(k.data(), 1, model::kv_heads, model::head_dim),
               la::token_major(v.data(), 1, model::kv_heads, model::head_dim), cache,
               la::token_major(out.data(), 1, model::heads, model::head_dim), options);

    const la::index_range sinks = shape.sink_keys(token), window = shape.window_keys(token);
    for (index_t h = 0; h < model::heads; ++h) {
      const float* const row = options.weights.row(0, h);
      for (index_t key = sinks.first; key < sinks.last; ++key) mass[static_cast<std::size_t>(key)] += row[key];
      for (index_t key = window.first; key < window.last; ++key)
        mass[static_cast<std::size_t>(key)] += row[shape.num_sinks + key - window.first];
    }
  }

  double all = 0, of_sinks = 0;
  for (const double m : mass) all += m;
  for (index_t key = 0; key < shape.num_sinks; ++key) of_sinks += mass[static_cast<std::size_t>(key)];
  const auto heaviest = std::max_element(mass.begin() + shape.num_sinks, mass.end()) - mass.begin();
  std::printf("%.0f heads and tokens shared out %.3f; the sinks have %.0f %% of it, the heaviest other key is %d\n",
              static_cast<double>(model::heads * model::tokens), all, 100 * of_sinks / all, static_cast<int>(heaviest));
  return std::abs(all - model::heads * model::tokens) < 0.01 && heaviest % 50 == 0 ? 0 : 1;
}
