// What every bench does around its loop: it times the loop itself, for the rates it reports, and runs with the defaults below.
#pragma once

#include "allocations.hpp"
#include "check.hpp"
#include "peak.hpp"
#include "timing.hpp"

#include <lambda_attention/isa.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace bench {

struct kept_fixture {
  std::string name;
  std::shared_ptr<void> fixture;
};
inline kept_fixture& the_kept_fixture() {
  static kept_fixture kept;
  return kept;
}

/// The inputs of a bench, made and checked once. Google Benchmark calls a bench many times over; the inputs of the one
/// before are dropped when those of the next are made.
template <class Fixture, class... Arguments>
Fixture& fixture_of(const std::string& name, const Arguments&... arguments) {
  kept_fixture& kept = the_kept_fixture();
  if (kept.name != name) {
    kept = {};
    kept = {name, std::make_shared<Fixture>(arguments...)};
  }
  return *static_cast<Fixture*>(kept.fixture.get());
}

/// Runs the loop; reports the allocations of an iteration and returns its seconds: of this thread's processor time, or
/// on the clock where `num_threads` share the work.
template <class Iteration>
double time_loop(benchmark::State& state, int num_threads, Iteration&& iteration) {
  const auto clock = [&] { return num_threads == 1 ? thread_now() : now(); };
  const long allocations = num_allocations;
  const double start = clock();
  for (auto _ : state) iteration();
  const double seconds = clock() - start, iterations = static_cast<double>(state.iterations());
  state.counters["allocations"] = static_cast<double>(num_allocations - allocations) / iterations;
  return seconds / iterations;
}

inline void report_arithmetic(benchmark::State& state, double pairs, index_t head_dim, index_t v_head_dim,
                              double seconds, double peak) {
  const double flops = 2 * static_cast<double>(head_dim + v_head_dim) * pairs;
  state.counters["pairs"] = pairs;
  state.counters["gflops"] = flops / seconds * 1e-9;
  state.counters["peak_gflops"] = peak * 1e-9;
  state.counters["of_peak"] = flops / seconds / peak;
}

inline void report_reading(benchmark::State& state, double kv_bytes, double seconds, double bandwidth) {
  state.counters["kv_bytes"] = kv_bytes;
  state.counters["gbps"] = kv_bytes / seconds * 1e-9;
  state.counters["bandwidth_gbps"] = bandwidth * 1e-9;
  state.counters["of_bandwidth"] = kv_bytes / seconds / bandwidth;
}

inline bool a_check_failed = false;

/// Says that rows were compared with the formula. Returns false, and ends the bench with an error, where they differ.
inline bool report_check(benchmark::State& state, const deviation& found, double bound, index_t num_rows,
                         isa_level isa) {
  char text[128];
  std::snprintf(text, sizeof text, "%s; %d rows checked against the formula: NMSE %.1e, bound %.1e",
                lambda_attention::name_of(isa), static_cast<int>(num_rows), found.nmse(), bound);
  state.SetLabel(text);
  state.counters["checked"] = static_cast<double>(num_rows);
  if (found.within(bound)) return true;
  state.SkipWithError(text);
  a_check_failed = true;
  return false;
}

/// Runs the benches that were registered, five times each; flags that are given come after these and win. Returns the exit
/// status: 1 where rows were not those of the formula.
inline int run_benchmarks(int argc, char** argv) {
  std::string defaults[] = {"--benchmark_repetitions=5", "--benchmark_display_aggregates_only=true",
                            "--benchmark_counters_tabular=true", "--benchmark_min_time=0.3"};
  std::vector<char*> arguments{argv[0]};
  for (std::string& flag : defaults) arguments.push_back(flag.data());
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return a_check_failed ? 1 : 0;
}

}  // namespace bench
