// How much of the gain that fewer visible pairs promise does the kernel realise? Λ against full causal attention by the same
// kernel, each of the same inputs.
#include "support/prefill.hpp"

#include <lambda_attention/position/rope.hpp>

#include <string>

namespace {

using bench::index_t;

/// The larger of two windows sees the whole sequence: full causal attention.
void add(index_t tokens) {
  bench::prefill_setting lambda, full;
  lambda.tokens = full.tokens = tokens;
  lambda.num_heads = lambda.num_kv_heads = full.num_heads = full.num_kv_heads = 1;
  full.num_sinks = 0;
  full.window = tokens;
  const std::string name = bench::prefill_name<float>(lambda) + "/against:full";
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    using fixture = bench::prefill<float>;
    struct both {
      both(const bench::prefill_setting& a, const bench::prefill_setting& b)
          : lambda(a, lambda_attention::rope(a.head_dim)), full(b, lambda_attention::rope(b.head_dim)) {}
      fixture lambda, full;
    };
    both& runs = bench::fixture_of<both>(name, lambda, full);
    const double full_seconds = bench::thread_seconds_of([&] { runs.full.run(); });
    runs.lambda.measure(state);
    const double pairs =
        bench::visible_pairs(lambda_attention::lm_infinite(lambda.num_sinks, lambda.window), tokens, 1);
    const double full_pairs = bench::visible_pairs(lambda_attention::full_causal(), tokens, 1);
    const double lambda_seconds =
        4 * static_cast<double>(lambda.head_dim) * pairs / (state.counters["gflops"].value * 1e9);
    state.counters["ns_per_pair"] = lambda_seconds / pairs * 1e9;
    state.counters["ns_per_pair_of_full"] = full_seconds / full_pairs * 1e9;
    state.counters["speed_up"] = full_seconds / lambda_seconds;
    state.counters["ratio_of_pairs"] = full_pairs / pairs;
    state.counters["of_ratio"] = full_seconds / lambda_seconds / (full_pairs / pairs);
  })->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  for (const index_t tokens : {4096, 8192, 16384, 32768}) add(tokens);
  return bench::run_benchmarks(argc, argv);
}
