// A passkey of 8 tokens that the window has left behind: the sinks and the window do not see it, the best keys of the middle do.
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

struct model {
  static constexpr index_t heads = 4, kv_heads = 2, head_dim = 32, tokens = 5000, passkey = 1234, length = 8;
};

la::tensor_view<float> rows(std::vector<float>& numbers, index_t heads) {
  return la::token_major(numbers.data(), 1, heads, static_cast<index_t>(numbers.size()) / heads);
}

int main() {
  const la::lambda_shape shape = la::lm_infinite(4, 256);
  const la::rope position(model::head_dim);
  la::kv_cache<la::bf16, la::rope> cache(shape, position, model::kv_heads, model::head_dim, model::head_dim);
  la::middle_store<la::bf16, la::rope> middle(shape, position, model::kv_heads, model::head_dim, model::head_dim);

  // Stands for projections. The slowest pairs of a rotation hardly turn, so that is where a model looks for meaning.
  std::vector<float> k(model::kv_heads * model::head_dim), v = k, q(model::heads * model::head_dim);
  for (index_t token = 0; token < model::tokens; ++token) {
    for (std::size_t d = 0; d < k.size(); ++d) {
      k[d] = static_cast<float>(std::sin(static_cast<double>(d) * 1.7 + static_cast<double>(token) * 0.9));
      v[d] = static_cast<float>(std::cos(static_cast<double>(d) + static_cast<double>(token)));
      if (token >= model::passkey && token < model::passkey + model::length) k[d] = d % 16 < 12 ? 0.0f : 4.0f, v[d] = 1;
    }
    la::append(rows(k, model::kv_heads), rows(v, model::kv_heads), cache);
    la::append(rows(k, model::kv_heads), rows(v, model::kv_heads), middle);
  }
  for (std::size_t d = 0; d < q.size(); ++d) q[d] = d % 16 < 12 ? 0.0f : 4.0f;

  // Sinks and window; then the 8 best keys of the middle, as if they were 256 tokens away; then one softmax over all.
  std::vector<float> out(q.size()), best_out(q.size()), lse(model::heads), best_lse(model::heads);
  const la::partial_result near = {rows(out, model::heads), rows(lse, model::heads)};
  const la::partial_result best = {rows(best_out, model::heads), rows(best_lse, model::heads)};
  la::attend_partial(rows(q, model::heads), cache, {0, la::unlimited}, near);
  const float without = out[0];
  const index_t pages = la::attend_top_k(rows(q, model::heads), middle, {model::length, shape.window}, best);
  la::merge(near, best, near);

  const index_t all_pages = ((model::tokens - shape.window) / 64 + 1) * model::heads;
  std::printf("the passkey's value is 1: %.3f without the middle, %.3f with its best keys; %d of %d pages read\n",
              static_cast<double>(without), static_cast<double>(out[0]), static_cast<int>(pages),
              static_cast<int>(all_pages));
  return out[0] > 0.9f && without < 0.9f ? 0 : 1;
}
