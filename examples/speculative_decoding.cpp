// Speculative decoding: a small model guesses three tokens, the large one reads them in one call, and what it would have
// said otherwise is taken back from both caches. The text is that of the large model alone.
#include <lambda_attention/lambda_attention.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;

// One layer in place of a model: it says the token whose element of its output is largest.
class model {
 public:
  explicit model(la::index_t window)
      : cache_(la::lm_infinite(2, window), la::rope(dim), 1, dim, dim, {num_guesses + 1, num_guesses}) {}

  static constexpr la::index_t heads = 4, dim = 32, num_guesses = 3;

  // The tokens that follow those given, each.
  std::vector<int> read(const std::vector<int>& tokens) {
    const la::index_t n = static_cast<la::index_t>(tokens.size());
    const std::vector<float> q = project(tokens, 0, heads * dim), k = project(tokens, 1, dim),
                             v = project(tokens, 2, dim);
    std::vector<float> out(q.size());
    la::attend(la::token_major(q.data(), n, heads, dim), la::token_major(k.data(), n, 1, dim),
               la::token_major(v.data(), n, 1, dim), cache_, la::token_major(out.data(), n, heads, dim));
    std::vector<int> next;
    for (auto row = out.begin(); row != out.end(); row += heads * dim)
      next.push_back(static_cast<int>(std::max_element(row, row + heads * dim) - row));
    return next;
  }
  void forget(la::index_t tokens) { cache_.rewind(tokens); }

 private:
  // Stands for weights: numbers that depend on the token and on nothing else.
  static std::vector<float> project(const std::vector<int>& tokens, std::uint64_t which, la::index_t size) {
    std::vector<float> rows;
    for (const int token : tokens) {
      for (std::uint64_t d = 0; d < static_cast<std::uint64_t>(size); ++d) {
        std::uint64_t bits = (static_cast<std::uint64_t>(token) * 4 + which) * 1024 + d;
        bits = (bits ^ (bits >> 31)) * 0x9e3779b97f4a7c15u;
        rows.push_back(static_cast<float>((bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9u >> 40) * 0x1p-22f - 2);
      }
    }
    return rows;
  }

  la::kv_cache<la::f16, la::rope> cache_;
};

int main() {
  constexpr std::size_t length = 400;
  model alone(128);
  std::vector<int> expected = {1};
  while (expected.size() < length) expected.push_back(alone.read({expected.back()})[0]);

  model large(128), small(96);
  std::vector<int> text = {1};
  int calls = 0;
  for (; text.size() < length; ++calls) {
    std::vector<int> draft = {text.back()};
    while (draft.size() <= model::num_guesses) draft.push_back(small.read({draft.back()})[0]);
    const std::vector<int> said = large.read(draft);
    std::size_t right = 0;  // guesses that the large model would have said
    while (right < model::num_guesses && draft[right + 1] == said[right]) ++right;
    text.insert(text.end(), said.begin(), said.begin() + static_cast<std::ptrdiff_t>(right) + 1);
    large.forget(model::num_guesses - static_cast<la::index_t>(right));
    if (right == model::num_guesses) small.read({draft.back()});
    small.forget(std::max<la::index_t>(0, model::num_guesses - 1 - static_cast<la::index_t>(right)));
  }
  text.resize(length);
  std::printf("%zu tokens in %d calls of the large model\n", length, calls);
  return text == expected ? 0 : 1;
}
