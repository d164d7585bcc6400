// A stream that does not end: neither the memory nor the time of a token grows. The argument is the number of tokens to
// read; 50000 without one.
#include <lambda_attention/lambda_attention.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace la = lambda_attention;

// One layer that reads one token after another.
class stream {
 public:
  static constexpr la::index_t heads = 4, kv_heads = 1, head_dim = 64, num_sinks = 4, window = 256;

  // After the constructor nothing allocates.
  stream()
      : cache_(la::lm_infinite(num_sinks, window), la::rope(head_dim), kv_heads, head_dim, head_dim),
        scratch_(la::scratch_bytes(cache_, heads, 1)),
        q_(heads * head_dim),
        k_(kv_heads * head_dim),
        v_(kv_heads * head_dim),
        out_(heads * head_dim) {}

  la::index_t bytes() const { return cache_.bytes() + scratch_.bytes(); }

  // The output of the next token, [heads, head_dim].
  const std::vector<float>& read(la::index_t token) {
    project(token, 0, q_);
    project(token, 1, k_);
    project(token, 2, v_);
    la::attention_options options;
    options.workspace = &scratch_;
    la::attend(la::token_major(q_.data(), 1, heads, head_dim), la::token_major(k_.data(), 1, kv_heads, head_dim),
               la::token_major(v_.data(), 1, kv_heads, head_dim), cache_,
               la::token_major(out_.data(), 1, heads, head_dim), options);
    return out_;
  }

 private:
  // Stands for the model: numbers that depend on the token and on nothing else.
  static void project(la::index_t token, std::uint64_t which, std::vector<float>& row) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      std::uint64_t bits = (static_cast<std::uint64_t>(token) * 4 + which) * 1024 + d;
      bits = (bits ^ (bits >> 31)) * 0x9e3779b97f4a7c15u;
      bits = (bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9u;
      row[d] = static_cast<float>(bits >> 40) * 0x1p-23f - 1;
    }
  }

  la::kv_cache<la::f16, la::rope> cache_;
  la::workspace scratch_;
  std::vector<float> q_, k_, v_, out_;
};

int main(int argc, char** argv) {
  const long num_tokens = argc > 1 ? std::atol(argv[1]) : 50000, every = (num_tokens + 4) / 5;
  stream whole, ends;
  const la::index_t bytes_at_first = whole.bytes();
  std::vector<float> out, expected;
  auto start = std::chrono::steady_clock::now();
  for (long t = 0; t < num_tokens; ++t) {
    out = whole.read(t);
    // All that the last token sees is the sinks and one window, so a stream of just these must end with the same row.
    if (t < stream::num_sinks || t >= num_tokens - stream::window) expected = ends.read(t);
    if ((t + 1) % every != 0 && t + 1 < num_tokens) continue;
    const auto now = std::chrono::steady_clock::now();
    const double us =
        std::chrono::duration<double, std::micro>(now - start).count() / static_cast<double>(t % every + 1);
    std::printf("%10ld tokens   %6.1f us a token   %ld bytes\n", t + 1, us, static_cast<long>(whole.bytes()));
    start = now;
  }
  double worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i) worst = std::fmax(worst, std::abs(out[i] - expected[i]));
  std::printf("largest difference from a stream of the sinks and the last window alone: %.1e\n", worst);
  return worst < 1e-4 && whole.bytes() == bytes_at_first ? 0 : 1;
}
