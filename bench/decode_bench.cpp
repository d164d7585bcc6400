// How fast is one token of a stream decoded, as a part of what memory and processor can do?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"
#include "support/threads.hpp"
#include "support/visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  index_t head_dim = 128, num_sinks = 16, window = 4096, num_heads = 8, num_kv_heads = 8, num_layers = 1;
  int num_threads = 1;
};

template <class Storage>
std::string name_of(const setting& given) {
  char text[256];
  std::snprintf(text, sizeof text, "decode/%s/head_dim:%d/sinks:%d/window:%d/heads:%d/kv_heads:%d/layers:%d",
                bench::storage_name<Storage>(), static_cast<int>(given.head_dim), static_cast<int>(given.num_sinks),
                static_cast<int>(given.window), static_cast<int>(given.num_heads), static_cast<int>(given.num_kv_heads),
                static_cast<int>(given.num_layers));
  return given.num_threads == 1 ? text : text + ("/threads:" + std::to_string(given.num_threads));
}

/// One stream in all layers of a model, far enough that its window has left the sinks behind. The layers are given the same
/// rows, and each keeps its own.
template <class Storage>
class decode {
 public:
  explicit decode(const setting& given)
      : given_(given),
        q_(bench::normal_values<float>(given.num_heads * given.head_dim, 1)),
        k_(bench::normal_values<float>(num_tokens() * given.num_kv_heads * given.head_dim, 2)),
        v_(bench::normal_values<float>(num_tokens() * given.num_kv_heads * given.head_dim, 3)),
        out_(q_.size()),
        caches_(static_cast<std::size_t>(given.num_layers),
                cache_type(la::lm_infinite(given.num_sinks, given.window), la::rope(given.head_dim), given.num_kv_heads,
                           given.head_dim, given.head_dim)),
        scratch_(la::scratch_bytes(caches_[0], given.num_heads, 1, given.num_threads)),
        same_size_(static_cast<index_t>(kv_bytes())) {
    for (cache_type& cache : caches_) la::append(keys().slice(0, last()), values().slice(0, last()), cache);
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    bench::with_threads(given_.num_threads, [&](const auto& executor) {
      for (cache_type& cache : caches_)
        la::attend(queries(), keys().slice(last(), 1), values().slice(last(), 1), cache, output(), options, executor);
    });
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    if (!bench::report_check(state, checked_, bench::stored_nmse_bound<Storage>(), given_.num_heads, isa)) return;
    const double peak = bench::peak_flops<float>(isa, given_.num_threads);
    const double bandwidth = same_size_.bandwidth(isa, given_.num_threads);
    const double seconds = bench::time_loop(state, given_.num_threads, [&] { step(); });
    const index_t pairs = bench::visible_keys(caches_[0].shape(), last()) * given_.num_heads * given_.num_layers;
    bench::report_arithmetic(state, static_cast<double>(pairs), given_.head_dim, given_.head_dim, seconds, peak);
    bench::report_reading(state, kv_bytes(), seconds, bandwidth);
    state.counters["scratch_bytes"] = static_cast<double>(scratch_.bytes());
  }

 private:
  using cache_type = la::kv_cache<Storage, la::rope>;

  index_t num_tokens() const { return given_.num_sinks + given_.window + 512; }
  index_t last() const { return num_tokens() - 1; }

  /// What one token reads: the window's rows, with their scales, and the sinks' in float.
  double kv_bytes() const {
    const index_t scale_bytes = std::is_same_v<Storage, la::int8> ? 4 : 0;
    const index_t row = 2 * (Storage::row_bytes(given_.head_dim) + scale_bytes), sink_row = 2 * 4 * given_.head_dim;
    const index_t head = given_.window * row + given_.num_sinks * sink_row;
    return static_cast<double>(head * given_.num_kv_heads * given_.num_layers);
  }

  /// All heads of the first decoded token against the formula on rows that were never rounded.
  void check() {
    std::vector<long double> expected(static_cast<std::size_t>(given_.head_dim));
    for (index_t head = 0; head < given_.num_heads; ++head) {
      la::reference::attend_row(queries().row(0, head), last(), head, given_.num_heads, keys(), values(),
                                caches_[0].shape(), caches_[0].position(), {}, expected.data());
      for (index_t d = 0; d < given_.head_dim; ++d)
        checked_.add(expected[static_cast<std::size_t>(d)], output().row(0, head)[d]);
    }
  }

  la::tensor_view<float> queries() { return la::token_major(q_.data(), 1, given_.num_heads, given_.head_dim); }
  la::tensor_view<float> output() { return la::token_major(out_.data(), 1, given_.num_heads, given_.head_dim); }
  la::tensor_view<float> keys() {
    return la::token_major(k_.data(), num_tokens(), given_.num_kv_heads, given_.head_dim);
  }
  la::tensor_view<float> values() {
    return la::token_major(v_.data(), num_tokens(), given_.num_kv_heads, given_.head_dim);
  }

  setting given_;
  std::vector<float> q_, k_, v_, out_;
  std::vector<cache_type> caches_;
  la::workspace scratch_;
  bench::read_buffer same_size_;
  bench::deviation checked_;
};

template <class Storage>
void add(const setting& given) {
  const std::string name = name_of<Storage>(given);
  benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
    bench::fixture_of<decode<Storage>>(name, given).measure(state);
  })->Unit(benchmark::kMicrosecond);
}

template <class Storage>
void add_storage() {
  for (const index_t num_layers : {1, 16}) {
    for (const index_t num_kv_heads : {8, 2, 1}) {
      setting given;
      given.num_kv_heads = num_kv_heads;
      given.num_layers = num_layers;
      add<Storage>(given);
      given.num_threads = bench::most_threads();
      if (given.num_threads > 1) add<Storage>(given);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  add_storage<la::f32>();
  add_storage<la::f16>();
  add_storage<la::bf16>();
  add_storage<la::int8>();
  return bench::run_benchmarks(argc, argv);
}
