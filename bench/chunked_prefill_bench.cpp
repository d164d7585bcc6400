// How fast is a prompt taken in through a kv_cache, chunk by chunk, beside one call on the whole of it?
#include "support/prefill.hpp"
#include "support/stored.hpp"
#include "support/timing.hpp"

#include <lambda_attention/kv_cache.hpp>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  index_t chunk = 512, num_kv_heads = 8;
};

/// A prompt of elements T: normal q, k and v, attention over it, and its cache.
template <class Storage, class T>
class chunked_prefill {
 public:
  explicit chunked_prefill(const setting& given)
      : given_(given),
        q_(bench::normal_values<T>(tokens * num_heads * head_dim, 1)),
        k_(bench::normal_values<T>(tokens * given.num_kv_heads * head_dim, 2)),
        v_(bench::normal_values<T>(tokens * given.num_kv_heads * head_dim, 3)),
        out_(q_.size()),
        cache_(shape, position_, given.num_kv_heads, head_dim, head_dim, {given.chunk, 0}) {
    options_.workspace = &scratch_;
    run_chunks();
    checked_ = bench::against_formula(queries(), keys(), values(), shape, position_, output(), tokens / 2, num_checked);
  }

  void run_whole() { la::attend(queries(), keys(), values(), shape, position_, output(), options_); }

  void run_chunks() {
    cache_.clear();
    for (index_t first = 0; first < tokens; first += given_.chunk) {
      const index_t count = std::min(given_.chunk, tokens - first);
      la::attend(queries().slice(first, count), keys().slice(first, count), values().slice(first, count), cache_,
                 output().slice(first, count), options_);
    }
  }

  void measure(benchmark::State& state) {
    const double bound = bench::stored_nmse_bound<Storage>() + bench::prefill_nmse_bound<T>(la::isa());
    if (!bench::report_check(state, checked_, bound, num_checked, la::isa())) return;
    const double peak = bench::peak_flops<float>(la::isa());
    std::vector<double> whole;
    for (int i = 0; i < 3; ++i) whole.push_back(bench::thread_seconds_of([&] { run_whole(); }));
    const double seconds = bench::time_loop(state, 1, [&] { run_chunks(); });
    for (int i = 0; i < 3; ++i) whole.push_back(bench::thread_seconds_of([&] { run_whole(); }));
    const double pairs = bench::visible_pairs(shape, tokens, num_heads);
    bench::report_arithmetic(state, pairs, head_dim, head_dim, seconds, peak);
    state.counters["time_of_whole"] = seconds / bench::median(whole);
    state.counters["scratch_bytes"] = static_cast<double>(scratch_.bytes());
  }

 private:
  static constexpr index_t tokens = 8192, num_heads = 8, head_dim = 128, num_checked = 16;
  static constexpr la::lambda_shape shape = la::lm_infinite(16, 1024);

  la::tensor_view<T> queries() { return la::token_major(q_.data(), tokens, num_heads, head_dim); }
  la::tensor_view<T> output() { return la::token_major(out_.data(), tokens, num_heads, head_dim); }
  la::tensor_view<T> keys() { return la::token_major(k_.data(), tokens, given_.num_kv_heads, head_dim); }
  la::tensor_view<T> values() { return la::token_major(v_.data(), tokens, given_.num_kv_heads, head_dim); }

  setting given_;
  la::rope position_{head_dim};
  std::vector<T> q_, k_, v_, out_;
  la::kv_cache<Storage, la::rope> cache_;
  la::workspace scratch_;
  la::attention_options options_;
  bench::deviation checked_;
};

template <class Storage, class T>
void add(const setting& given) {
  char text[256];
  std::snprintf(text, sizeof text,
                "chunked_prefill/%s/head_dim:128/sinks:16/window:1024/n:8192/heads:8/kv_heads:%d/chunk:%d",
                bench::storage_name<Storage>(), static_cast<int>(given.num_kv_heads), static_cast<int>(given.chunk));
  const std::string name = text;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    bench::fixture_of<chunked_prefill<Storage, T>>(name, given).measure(state);
  })->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  for (const index_t chunk : {512, 2048}) add<la::f32, float>({chunk, 8});
  add<la::f16, bench::half>({});
  add<la::bf16, bench::bfloat16>({});
  add<la::int8, float>({});
  add<la::f32, float>({512, 2});
  add<la::bf16, bench::bfloat16>({512, 2});
  return bench::run_benchmarks(argc, argv);
}
