// What does a draft of a few tokens cost, verified in one step, beside one token?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"
#include "support/visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  index_t num_tokens = 8, num_kv_heads = 8;
  static constexpr index_t head_dim = 128, num_sinks = 16, window = 4096, num_heads = 8, num_layers = 16;
};

std::string name_of(const setting& given) {
  char text[256];
  std::snprintf(text, sizeof text, "draft/bf16/head_dim:%d/sinks:%d/window:%d/heads:%d/kv_heads:%d/layers:%d/tokens:%d",
                static_cast<int>(setting::head_dim), static_cast<int>(setting::num_sinks),
                static_cast<int>(setting::window), static_cast<int>(setting::num_heads),
                static_cast<int>(given.num_kv_heads), static_cast<int>(setting::num_layers),
                static_cast<int>(given.num_tokens));
  return text;
}

/// A step of every layer: the draft comes in, is attended, and is taken back. The layers are given the same rows.
class draft {
 public:
  explicit draft(const setting& given)
      : given_(given),
        q_(bench::normal_values<float>(given.num_tokens * setting::num_heads * setting::head_dim, 1)),
        k_(bench::normal_values<float>(num_tokens() * given.num_kv_heads * setting::head_dim, 2)),
        v_(bench::normal_values<float>(num_tokens() * given.num_kv_heads * setting::head_dim, 3)),
        out_(q_.size()),
        caches_(static_cast<std::size_t>(setting::num_layers),
                cache_type(la::lm_infinite(setting::num_sinks, setting::window), la::rope(setting::head_dim),
                           given.num_kv_heads, setting::head_dim, setting::head_dim, {64, most_tokens})),
        scratch_(la::scratch_bytes(caches_[0], setting::num_heads, given.num_tokens)) {
    for (cache_type& cache : caches_) la::append(keys().slice(0, first()), values().slice(0, first()), cache);
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    for (cache_type& cache : caches_) {
      la::attend(rows(q_), keys().slice(first(), given_.num_tokens), values().slice(first(), given_.num_tokens), cache,
                 rows(out_), options);
      cache.rewind(given_.num_tokens);
    }
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    const index_t num_rows = given_.num_tokens * setting::num_heads;
    if (!bench::report_check(state, checked_, bench::stored_nmse_bound<la::bf16>(), num_rows, isa)) return;
    const double peak = bench::peak_flops<float>(isa, 1);
    const double seconds = bench::time_loop(state, 1, [&] { step(); });
    const index_t pairs = bench::visible_keys(caches_[0].shape(), first()) * num_rows * setting::num_layers;
    bench::report_arithmetic(state, static_cast<double>(pairs), setting::head_dim, setting::head_dim, seconds, peak);
  }

  static constexpr index_t most_tokens = 16;

 private:
  using cache_type = la::kv_cache<la::bf16, la::rope>;

  static index_t first() { return setting::num_sinks + setting::window + 512; }
  static index_t num_tokens() { return first() + most_tokens; }

  void check() {
    std::vector<long double> expected(setting::head_dim);
    for (index_t token = 0; token < given_.num_tokens; ++token)
      for (index_t head = 0; head < setting::num_heads; ++head) {
        la::reference::attend_row(rows(q_).row(token, head), first() + token, head, setting::num_heads, keys(),
                                  values(), caches_[0].shape(), caches_[0].position(), {}, expected.data());
        for (index_t d = 0; d < setting::head_dim; ++d)
          checked_.add(expected[static_cast<std::size_t>(d)], rows(out_).row(token, head)[d]);
      }
  }

  la::tensor_view<float> rows(std::vector<float>& numbers) const {
    return la::token_major(numbers.data(), given_.num_tokens, setting::num_heads, setting::head_dim);
  }
  la::tensor_view<float> keys() {
    return la::token_major(k_.data(), num_tokens(), given_.num_kv_heads, setting::head_dim);
  }
  la::tensor_view<float> values() {
    return la::token_major(v_.data(), num_tokens(), given_.num_kv_heads, setting::head_dim);
  }

  setting given_;
  std::vector<float> q_, k_, v_, out_;
  std::vector<cache_type> caches_;
  la::workspace scratch_;
  bench::deviation checked_;
};

}  // namespace

int main(int argc, char** argv) {
  for (const index_t num_kv_heads : {8, 2})
    for (const index_t num_tokens : {1, 2, 4, 5, 8, 16}) {
      const setting given = {num_tokens, num_kv_heads};
      const std::string name = name_of(given);
      benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
        bench::fixture_of<draft>(name, given).measure(state);
      })->Unit(benchmark::kMicrosecond);
    }
  return bench::run_benchmarks(argc, argv);
}
