// A conversation that goes on for ever, and a document beside it that every question sees whole: two streams, each attended by
// itself, and one softmax over both.
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;

struct model {
  static constexpr la::index_t heads = 4, kv_heads = 2, head_dim = 32;
};

// Stands for projections: [n, heads, head_dim].
std::vector<float> rows(la::index_t n, la::index_t heads, double seed) {
  std::vector<float> numbers(static_cast<std::size_t>(n * heads * model::head_dim));
  for (std::size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<float>(std::sin(seed * static_cast<double>(i) + seed));
  return numbers;
}
la::tensor_view<const float> view(const std::vector<float>& numbers, la::index_t heads) {
  const la::index_t n = static_cast<la::index_t>(numbers.size()) / (heads * model::head_dim);
  return la::token_major(numbers.data(), n, heads, model::head_dim);
}

int main() {
  using cache = la::kv_cache<la::f32, la::none>;
  const auto new_cache = [](la::index_t window) {
    return cache(la::lm_infinite(4, window), {}, model::kv_heads, model::head_dim, model::head_dim);
  };
  const std::vector<float> document_k = rows(100, model::kv_heads, 0.3), document_v = rows(100, model::kv_heads, 0.7);
  const std::vector<float> talk_k = rows(60, model::kv_heads, 1.1), talk_v = rows(60, model::kv_heads, 1.3);
  const std::vector<float> q = rows(1, model::heads, 0.9);

  cache document = new_cache(128), talk = new_cache(64);
  la::append(view(document_k, model::kv_heads), view(document_v, model::kv_heads), document);
  la::append(view(talk_k, model::kv_heads), view(talk_v, model::kv_heads), talk);

  // Each branch alone: its output, and how much weight it has.
  std::vector<float> of_document(q.size()), of_talk(q.size()), lse_of_document(model::heads), lse_of_talk(model::heads);
  const auto result = [](std::vector<float>& out, std::vector<float>& lse) {
    return la::partial_result{la::token_major(out.data(), 1, model::heads, model::head_dim),
                              la::token_major(lse.data(), 1, model::heads, 1)};
  };
  const auto document_result = result(of_document, lse_of_document), talk_result = result(of_talk, lse_of_talk);
  la::attend_partial(view(q, model::heads), document, {0, la::unlimited}, document_result);
  la::attend_partial(view(q, model::heads), talk, {0, la::unlimited}, talk_result);
  la::merge(document_result, talk_result, talk_result);

  // Without positions it is attention over all 160 keys, in any order.
  cache both = new_cache(256);
  std::vector<float> expected(q.size());
  la::append(view(document_k, model::kv_heads), view(document_v, model::kv_heads), both);
  la::append(view(talk_k, model::kv_heads), view(talk_v, model::kv_heads), both);
  la::attend(view(q, model::heads), both, la::token_major(expected.data(), 1, model::heads, model::head_dim));
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) worst = std::fmax(worst, std::abs(of_talk[i] - expected[i]));
  std::printf("two branches merged, and all keys at once: largest difference %.1e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
