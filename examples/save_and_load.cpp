// A prompt that many conversations begin with is read once, and kept in a file: the caches of all layers one after the other.
#include <lambda_attention/lambda_attention.hpp>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <utility>
#include <vector>

namespace la = lambda_attention;

class model {
 public:
  using cache = la::kv_cache<la::bf16, la::rope>;

  explicit model(la::index_t window)
      : layers_(3, cache(la::lm_infinite(4, window), la::rope(head_dim), kv_heads, head_dim, head_dim)) {}

  // Stands for n tokens through projections and layers; returns what the last layer says.
  std::vector<float> read(la::index_t n, float seed) {
    std::vector<float> x(static_cast<std::size_t>(n * heads * head_dim));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i % 97) / 97 - seed;
    const auto q = la::token_major(x.data(), n, heads, head_dim);
    const auto k = la::tensor_view<const float>(x.data(), n, kv_heads, head_dim, heads * head_dim, head_dim);
    for (cache& layer : layers_) {
      std::vector<float> out(x.size());
      la::attend(q, k, k, layer, la::token_major(out.data(), n, heads, head_dim));
      x = out;
    }
    return x;
  }

  void save(const char* path) const {
    std::ofstream file(path, std::ios::binary);
    for (const cache& layer : layers_) layer.save(file);
    if (!file.flush()) throw std::runtime_error("not all of the file was written");
  }
  // All layers or none: those that come before a damaged one are not the model's yet.
  void load(const char* path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<cache> loaded = layers_;
    for (cache& layer : loaded) layer.load(file);
    layers_ = std::move(loaded);
  }

 private:
  static constexpr la::index_t heads = 4, kv_heads = 2, head_dim = 32;
  std::vector<cache> layers_;
};

int main() {
  const char* const path = "prompt.lambda_attention";
  model first(256), later(256), other(512);
  first.read(1000, 0.5f);
  first.save(path);
  later.load(path);
  const bool equal = first.read(1, 0.25f) == later.read(1, 0.25f);
  std::printf("1000 tokens loaded: the next one is %s\n", equal ? "the same" : "another");
  bool refused = false;
  try {
    other.load(path);
  } catch (const std::invalid_argument& error) {
    std::printf("refused: %s\n", error.what());
    refused = true;
  }
  std::remove(path);
  return equal && refused ? 0 : 1;
}
