// Do streams of unequal length in one call keep the workers as busy as equal ones?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"
#include "support/threads.hpp"
#include "support/visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  const char* step;  // "decode": a token of each of 64 streams; "prefill": 16 prompts
  bool equal;
  int num_threads;
  static constexpr index_t head_dim = 128, num_sinks = 16, window = 4096, num_heads = 8, num_kv_heads = 2;

  bool decodes() const { return step[0] == 'd'; }
  index_t num_streams() const { return decodes() ? 64 : 16; }
  /// Tokens of a stream: 1024 of each; or from 128 to 1920, as many in all.
  index_t length(index_t stream) const { return equal ? 1024 : 128 + 1792 * stream / (num_streams() - 1); }
};

std::string name_of(const setting& given) {
  char text[256];
  std::snprintf(text, sizeof text, "batch/%s/bf16/head_dim:%d/heads:%d/kv_heads:%d/streams:%d/lengths:%s/threads:%d",
                given.step, static_cast<int>(setting::head_dim), static_cast<int>(setting::num_heads),
                static_cast<int>(setting::num_kv_heads), static_cast<int>(given.num_streams()),
                given.equal ? "equal" : "unequal", given.num_threads);
  return text;
}

/// All streams are given the tokens of one sequence, from its beginning, and each keeps its own.
class batch {
 public:
  explicit batch(const setting& given)
      : given_(given),
        q_(bench::normal_values<float>(most_tokens * setting::num_heads * setting::head_dim, 1)),
        k_(bench::normal_values<float>(most_tokens * setting::num_kv_heads * setting::head_dim, 2)),
        v_(bench::normal_values<float>(most_tokens * setting::num_kv_heads * setting::head_dim, 3)),
        caches_(static_cast<std::size_t>(given.num_streams()),
                cache_type(la::lm_infinite(setting::num_sinks, setting::window), la::rope(setting::head_dim),
                           setting::num_kv_heads, setting::head_dim, setting::head_dim, {most_tokens, 1})) {
    for (index_t s = 0; s < given_.num_streams(); ++s) {
      const index_t last = given_.length(s), first = given_.decodes() ? last - 1 : 0;
      cache_type& cache = caches_[static_cast<std::size_t>(s)];
      la::append(keys().slice(0, first), values().slice(0, first), cache);
      outs_.emplace_back(static_cast<std::size_t>((last - first) * setting::num_heads * setting::head_dim));
      steps_.push_back(la::stream_step{
          queries().slice(first, last - first), keys().slice(first, last - first), values().slice(first, last - first),
          &cache, la::token_major(outs_.back().data(), last - first, setting::num_heads, setting::head_dim)});
    }
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    bench::with_threads(given_.num_threads, [&](const auto& executor) {
      la::attend(steps_.data(), given_.num_streams(), options, executor);
    });
    for (const step_type& s : steps_) given_.decodes() ? s.cache->rewind(1) : s.cache->clear();
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    if (!bench::report_check(state, checked_, 2 * bench::stored_nmse_bound<la::bf16>(), given_.num_streams(), isa))
      return;
    const double peak = bench::peak_flops<float>(isa, given_.num_threads);
    const double seconds = bench::time_loop(state, given_.num_threads, [&] { step(); });
    double pairs = 0;
    for (const step_type& s : steps_)
      for (index_t t = 0; t < s.q.tokens; ++t)
        pairs += static_cast<double>(setting::num_heads * bench::visible_keys(s.cache->shape(), first_of(s) + t));
    bench::report_arithmetic(state, pairs, setting::head_dim, setting::head_dim, seconds, peak);
  }

 private:
  using cache_type = la::kv_cache<la::bf16, la::rope>;
  using step_type = la::stream_step<const float, const float, const float, la::bf16, la::rope, float>;
  static constexpr index_t most_tokens = 1920;

  index_t first_of(const step_type& s) const {
    return (s.q.data - q_.data()) / (setting::num_heads * setting::head_dim);
  }

  /// The newest token of each stream, one head in turn.
  void check() {
    std::vector<long double> expected(setting::head_dim);
    for (std::size_t s = 0; s < steps_.size(); ++s) {
      const index_t last = given_.length(static_cast<index_t>(s)) - 1, head = last % setting::num_heads;
      la::reference::attend_row(queries().row(last, head), last, head, setting::num_heads, keys(), values(),
                                caches_[s].shape(), caches_[s].position(), {}, expected.data());
      for (index_t d = 0; d < setting::head_dim; ++d)
        checked_.add(expected[static_cast<std::size_t>(d)], steps_[s].out.row(steps_[s].q.tokens - 1, head)[d]);
    }
  }

  la::tensor_view<const float> queries() const {
    return la::token_major(q_.data(), most_tokens, setting::num_heads, setting::head_dim);
  }
  la::tensor_view<const float> keys() const {
    return la::token_major(k_.data(), most_tokens, setting::num_kv_heads, setting::head_dim);
  }
  la::tensor_view<const float> values() const {
    return la::token_major(v_.data(), most_tokens, setting::num_kv_heads, setting::head_dim);
  }

  setting given_;
  std::vector<float> q_, k_, v_;
  std::vector<cache_type> caches_;
  std::vector<std::vector<float>> outs_;
  std::vector<step_type> steps_;
  la::workspace scratch_;
  bench::deviation checked_;
};

}  // namespace

int main(int argc, char** argv) {
  for (const char* step : {"decode", "prefill"})
    for (const int num_threads : {1, bench::most_threads()})
      for (const bool equal : {true, false}) {
        const setting given = {step, equal, num_threads};
        const std::string name = name_of(given);
        benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
          bench::fixture_of<batch>(name, given).measure(state);
        })->Unit(benchmark::kMicrosecond);
      }
  return bench::run_benchmarks(argc, argv);
}
