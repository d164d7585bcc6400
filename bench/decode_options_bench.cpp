// What do a log-sum-exp, parts that are merged, and room to take tokens back cost a decoded token?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"
#include "support/visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/partial.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

enum class option { none, lse, two_parts, max_rewind };
constexpr const char* option_names[] = {"none", "lse", "two_parts_merged", "max_rewind_16"};

struct setting {
  option with = option::none;
  index_t num_layers = 1;
  static constexpr index_t head_dim = 128, num_sinks = 16, window = 4096, num_heads = 8, num_kv_heads = 8;
};

std::string name_of(const setting& given) {
  char text[256];
  std::snprintf(
      text, sizeof text, "decode_options/bf16/head_dim:%d/sinks:%d/window:%d/heads:%d/kv_heads:%d/layers:%d/%s",
      static_cast<int>(setting::head_dim), static_cast<int>(setting::num_sinks), static_cast<int>(setting::window),
      static_cast<int>(setting::num_heads), static_cast<int>(setting::num_kv_heads), static_cast<int>(given.num_layers),
      option_names[static_cast<int>(given.with)]);
  return text;
}

/// A token of one stream in all layers of a model. The layers are given the same rows, and each keeps its own.
class decode {
 public:
  explicit decode(const setting& given)
      : given_(given),
        q_(bench::normal_values<float>(setting::num_heads * setting::head_dim, 1)),
        k_(bench::normal_values<float>(num_tokens * setting::num_kv_heads * setting::head_dim, 2)),
        v_(bench::normal_values<float>(num_tokens * setting::num_kv_heads * setting::head_dim, 3)),
        out_(q_.size()),
        more_out_(q_.size()),
        lse_(setting::num_heads),
        more_lse_(setting::num_heads),
        caches_(static_cast<std::size_t>(given.num_layers),
                cache_type(la::lm_infinite(setting::num_sinks, setting::window), la::rope(setting::head_dim),
                           setting::num_kv_heads, setting::head_dim, setting::head_dim,
                           {16, given.with == option::max_rewind ? 16 : 0})) {
    for (cache_type& cache : caches_) la::append(rows(k_), rows(v_), cache);
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    if (given_.with == option::lse) options.lse = result(out_, lse_).lse;
    const auto q = la::token_major(q_.data(), 1, setting::num_heads, setting::head_dim);
    for (cache_type& cache : caches_) {
      if (given_.with == option::two_parts) {
        const auto older = result(out_, lse_), newer = result(more_out_, more_lse_);
        constexpr index_t middle = num_tokens - setting::window / 2;
        la::attend_partial(q, cache, {0, middle}, older, options);
        la::attend_partial(q, cache, {middle, la::unlimited}, newer, options);
        la::merge(older, newer, older);
      } else {
        la::attend(q, cache, result(out_, lse_).out, options);
      }
    }
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    if (!bench::report_check(state, checked_, bench::stored_nmse_bound<la::bf16>(), setting::num_heads, isa)) return;
    const double peak = bench::peak_flops<float>(isa, 1);
    const double seconds = bench::time_loop(state, 1, [&] { step(); });
    const index_t pairs =
        bench::visible_keys(caches_[0].shape(), num_tokens - 1) * setting::num_heads * given_.num_layers;
    bench::report_arithmetic(state, static_cast<double>(pairs), setting::head_dim, setting::head_dim, seconds, peak);
  }

 private:
  using cache_type = la::kv_cache<la::bf16, la::rope>;
  static constexpr index_t num_tokens = setting::num_sinks + setting::window + 512;

  static la::tensor_view<const float> rows(const std::vector<float>& numbers) {
    return la::token_major(numbers.data(), num_tokens, setting::num_kv_heads, setting::head_dim);
  }
  static la::partial_result<float> result(std::vector<float>& out, std::vector<float>& lse) {
    return {la::token_major(out.data(), 1, setting::num_heads, setting::head_dim),
            la::token_major(lse.data(), 1, setting::num_heads, 1)};
  }

  void check() {
    std::vector<long double> expected(setting::head_dim);
    for (index_t head = 0; head < setting::num_heads; ++head) {
      la::reference::attend_row(q_.data() + head * setting::head_dim, num_tokens - 1, head, setting::num_heads,
                                rows(k_), rows(v_), caches_[0].shape(), caches_[0].position(), {}, expected.data());
      for (index_t d = 0; d < setting::head_dim; ++d)
        checked_.add(expected[static_cast<std::size_t>(d)],
                     out_[static_cast<std::size_t>(head * setting::head_dim + d)]);
    }
  }

  setting given_;
  std::vector<float> q_, k_, v_, out_, more_out_, lse_, more_lse_;
  std::vector<cache_type> caches_;
  la::workspace scratch_;
  bench::deviation checked_;
};

}  // namespace

int main(int argc, char** argv) {
  for (const index_t num_layers : {1, 16})
    for (const option with : {option::none, option::lse, option::two_parts, option::max_rewind}) {
      const setting given = {with, num_layers};
      const std::string name = name_of(given);
      benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
        bench::fixture_of<decode>(name, given).measure(state);
      })->Unit(benchmark::kMicrosecond);
    }
  return bench::run_benchmarks(argc, argv);
}
