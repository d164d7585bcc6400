// How long does it take to find the best keys among many, where keys that are alike lie together, and where they do not?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"

#include <lambda_attention/position/none.hpp>
#include <lambda_attention/retrieval.hpp>
#include <lambda_attention/storage/bf16.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  index_t num_tokens = 1 << 14, num_heads = 1;
  bool clustered = false;
  static constexpr index_t head_dim = 128, k = 16, page = 64;
};

std::string name_of(const setting& given) {
  char text[128];
  std::snprintf(text, sizeof text, "retrieval/bf16/head_dim:%d/heads:%d/kv_heads:1/k:%d/n:%d/%s",
                static_cast<int>(setting::head_dim), static_cast<int>(given.num_heads), static_cast<int>(setting::k),
                static_cast<int>(given.num_tokens), given.clustered ? "clustered" : "random");
  return text;
}

/// One query of each head of a group over the keys of a stream: normal ones, or 64 at a time around a centre, a
/// tenth as far apart as the centres.
class search {
 public:
  explicit search(const setting& given)
      : given_(given),
        q_(bench::normal_values<float>(given.num_heads * setting::head_dim, 1)),
        k_(keys_of(given)),
        out_(q_.size()),
        lse_(static_cast<std::size_t>(given.num_heads)),
        store_(la::sliding_window(0), la::none(), 1, setting::head_dim, setting::head_dim),
        same_size_(static_cast<index_t>(key_bytes())) {
    la::append(keys(), keys(), store_);
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    pages_read_ =
        la::attend_top_k(la::token_major(q_.data(), 1, given_.num_heads, setting::head_dim), store_, {setting::k, 0},
                         la::partial_result{la::token_major(out_.data(), 1, given_.num_heads, setting::head_dim),
                                            la::token_major(lse_.data(), 1, given_.num_heads, 1)},
                         options);
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    if (!bench::report_check(state, checked_, bench::float_nmse_bound, given_.num_heads, isa)) return;
    const double bandwidth = same_size_.bandwidth(isa, 1);
    const double seconds = bench::time_loop(state, 1, [&] { step(); });
    const double num_pages = static_cast<double>(given_.num_tokens) / setting::page;
    const double share = static_cast<double>(pages_read_) / num_pages;
    // The bounds, in float, and the keys that were read.
    bench::report_reading(state, key_bytes() * share + num_pages * 2 * 4 * setting::head_dim, seconds, bandwidth);
    state.counters["pages_read"] = share;
  }

 private:
  static std::vector<la::bfloat16> keys_of(const setting& given) {
    std::vector<la::bfloat16> keys;
    bench::normal_source source(2);
    std::vector<float> centre(setting::head_dim);
    for (index_t t = 0; t < given.num_tokens; ++t) {
      if (given.clustered && t % setting::page == 0)
        for (float& number : centre) number = source.next();
      for (const float number : centre) keys.emplace_back(number + (given.clustered ? 0.1f : 1.0f) * source.next());
    }
    return keys;
  }
  double key_bytes() const { return static_cast<double>(given_.num_tokens * 2 * setting::head_dim); }
  la::tensor_view<const la::bfloat16> keys() const {
    return la::token_major(k_.data(), given_.num_tokens, 1, setting::head_dim);
  }

  void check() {
    for (index_t head = 0; head < given_.num_heads; ++head) check(head * setting::head_dim);
  }
  // The head whose query is q_[first ...).
  void check(index_t first) {
    std::vector<std::pair<double, index_t>> scores;
    for (index_t t = 0; t < given_.num_tokens; ++t) {
      double score = 0;
      for (std::size_t d = 0; d < setting::head_dim; ++d)
        score += static_cast<double>(q_[static_cast<std::size_t>(first) + d]) *
                 static_cast<double>(static_cast<float>(keys().row(t, 0)[d]));
      scores.emplace_back(-score / std::sqrt(static_cast<double>(setting::head_dim)), t);
    }
    std::partial_sort(scores.begin(), scores.begin() + setting::k, scores.end());
    std::vector<double> expected(setting::head_dim);
    double sum = 0;
    for (index_t i = 0; i < setting::k; ++i) {
      const auto& [negative, token] = scores[static_cast<std::size_t>(i)];
      const double weight = std::exp(-negative);
      for (std::size_t d = 0; d < expected.size(); ++d)
        expected[d] += weight * static_cast<double>(static_cast<float>(keys().row(token, 0)[d]));
      sum += weight;
    }
    for (std::size_t d = 0; d < expected.size(); ++d)
      checked_.add(expected[d] / sum, out_[static_cast<std::size_t>(first) + d]);
  }

  setting given_;
  std::vector<float> q_;
  std::vector<la::bfloat16> k_;
  std::vector<float> out_, lse_;
  la::middle_store<la::bf16, la::none> store_;
  la::workspace scratch_;
  bench::read_buffer same_size_;
  bench::deviation checked_;
  index_t pages_read_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  for (const index_t num_tokens : {1 << 14, 1 << 17, 1 << 20})
    for (const index_t num_heads : {1, 4})
      for (const bool clustered : {false, true}) {
        const setting given = {num_tokens, num_heads, clustered};
        const std::string name = name_of(given);
        benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
          bench::fixture_of<search>(name, given).measure(state);
        })->Unit(benchmark::kMicrosecond);
      }
  return bench::run_benchmarks(argc, argv);
}
