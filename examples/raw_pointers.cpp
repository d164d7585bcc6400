// Into inference code that exists: the layers of a Llama-style model, raw pointers, a fused buffer with the q, k and v of
// each token. The rotation and the attention of a layer go, one call comes, and each layer keeps a kv_cache.
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace la = lambda_attention;

struct model_config {
  la::index_t layers = 2, heads = 8, kv_heads = 2, head_dim = 64;
  double theta = 500000;
  la::index_t qkv_size() const { return (heads + 2 * kv_heads) * head_dim; }  // of one token
};
const model_config model{};

using cache_type = la::kv_cache<la::f16, la::rope>;

// The attention of one layer for n new tokens, be it a prompt or a single one. q and k are as the projection has left
// them, not rotated: the library rotates.
void attention(const float* qkv, la::index_t n, cache_type& cache, float* out) {
  const float* const keys = qkv + model.heads * model.head_dim;
  const float* const values = keys + model.kv_heads * model.head_dim;
  const la::tensor_view q(qkv, n, model.heads, model.head_dim, model.qkv_size(), model.head_dim);
  const la::tensor_view k(keys, n, model.kv_heads, model.head_dim, model.qkv_size(), model.head_dim);
  const la::tensor_view v(values, n, model.kv_heads, model.head_dim, model.qkv_size(), model.head_dim);
  la::attend(q, k, v, cache, la::token_major(out, n, model.heads, model.head_dim));
}

// What the layer did before: rotate, then look at every earlier key. Element d of what query head 0 puts out.
double attention_before(const float* qkv, la::index_t query, la::index_t d) {
  const auto rotated = [&](la::index_t token, const float* row, la::index_t i) {
    const la::index_t half = model.head_dim / 2, p = i % half;
    const double frequency = std::pow(model.theta, -static_cast<double>(p) / static_cast<double>(half));
    const double angle = static_cast<double>(token) * frequency;
    const double a = static_cast<double>(row[p]), b = static_cast<double>(row[p + half]);
    return i == p ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
  };
  double sum = 0, weights = 0;
  for (la::index_t j = 0; j <= query; ++j) {
    const float* const key = qkv + j * model.qkv_size() + model.heads * model.head_dim;
    double score = 0;
    for (la::index_t i = 0; i < model.head_dim; ++i)
      score += rotated(query, qkv + query * model.qkv_size(), i) * rotated(j, key, i);
    const double weight = std::exp(score / std::sqrt(static_cast<double>(model.head_dim)));
    sum += weight * static_cast<double>(key[model.kv_heads * model.head_dim + d]);
    weights += weight;
  }
  return sum / weights;
}

int main() {
  constexpr la::index_t window = 256, prompt = 200, n = 1000;
  const la::index_t out_size = model.heads * model.head_dim;
  std::vector<float> qkv(static_cast<std::size_t>(n * model.qkv_size())), out(static_cast<std::size_t>(n * out_size));
  std::mt19937 random(1);
  for (float& x : qkv) x = std::normal_distribution<float>()(random);

  const la::rope position(model.head_dim, model.theta);
  const cache_type empty(la::lm_infinite(16, window), position, model.kv_heads, model.head_dim, model.head_dim);
  std::vector<cache_type> caches(static_cast<std::size_t>(model.layers), empty);
  for (cache_type& cache : caches) {  // in a model every layer has numbers of its own
    attention(qkv.data(), prompt, cache, out.data());
    for (la::index_t t = prompt; t < n; ++t)
      attention(qkv.data() + t * model.qkv_size(), 1, cache, out.data() + t * out_size);
  }

  double worst = 0;  // within the window nothing has changed but the rounding of the stored rows to 16 bits
  for (const la::index_t query : {la::index_t{0}, prompt - 1, prompt, window - 1})
    for (la::index_t d = 0; d < model.head_dim; ++d)
      worst = std::fmax(worst, std::abs(static_cast<double>((out.data() + query * out_size)[d]) -
                                        attention_before(qkv.data(), query, d)));
  std::printf("%d tokens, largest difference within the window %.1e, %d bytes a layer\n", static_cast<int>(n), worst,
              static_cast<int>(caches[0].bytes()));
  return worst < 5e-3 && caches[0].bytes() == empty.bytes() ? 0 : 1;
}
