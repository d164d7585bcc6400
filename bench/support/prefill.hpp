// Attention over a whole sequence, as the benches that ask about it run it.
#pragma once

#include "benchmark.hpp"
#include "random.hpp"
#include "threads.hpp"
#include "visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

namespace bench {

using lambda_attention::bfloat16;
using lambda_attention::half;

/// What is done to normal inputs.
struct input_change {
  double logit_sigma = 1;  // standard deviation of the logits
  double ascent = 0;       // of the logits, a token
};

/// One call of attend().
struct prefill_setting {
  index_t head_dim = 128, num_sinks = 16, window = 1024, tokens = 8192, num_heads = 8, num_kv_heads = 8;
  int num_threads = 1;
  isa_level isa = isa_level::automatic;
  input_change inputs = {};
};

/// The last channel of each head is of rope's slowest pair: there a product hardly depends on the distance.
template <class T>
void change_inputs(const input_change& change, index_t head_dim, index_t num_kv_heads, std::vector<T>& q,
                   std::vector<T>& k) {
  const std::size_t dim = static_cast<std::size_t>(head_dim), heads = static_cast<std::size_t>(num_kv_heads);
  if (change.logit_sigma != 1)
    for (T& x : q) x = static_cast<T>(static_cast<float>(x) * static_cast<float>(change.logit_sigma));
  if (change.ascent == 0) return;
  for (std::size_t i = dim - 1; i < q.size(); i += dim) q[i] = static_cast<T>(1.0f);
  const double step = change.ascent * std::sqrt(static_cast<double>(head_dim));
  for (std::size_t i = dim - 1; i < k.size(); i += dim)
    k[i] = static_cast<T>(static_cast<float>(step * static_cast<double>(i / (dim * heads))));
}

template <class T>
constexpr const char* element_name() {
  if (std::is_same_v<T, double>) return "f64";
  if (std::is_same_v<T, half>) return "f16";
  if (std::is_same_v<T, bfloat16>) return "bf16";
  return "f32";
}

/// Of arithmetic, and of the rounding of an output to 16 bits: twice its mean square.
template <class T>
constexpr double prefill_nmse_bound(isa_level isa) {
  if (std::is_same_v<T, double>) return double_nmse_bound;
  if (std::is_same_v<T, half>) return float_nmse_bound + 2 * 5e-8;
  if (std::is_same_v<T, bfloat16>) return float_nmse_bound + (isa >= isa_level::avx512_bf16 ? 4 : 2) * 2.5e-6;
  return float_nmse_bound;
}

template <class T>
std::string prefill_name(const prefill_setting& given) {
  char text[256];
  std::snprintf(text, sizeof text, "prefill/%s/head_dim:%d/sinks:%d/window:%d/n:%d/heads:%d/kv_heads:%d/threads:%d",
                element_name<T>(), static_cast<int>(given.head_dim), static_cast<int>(given.num_sinks),
                static_cast<int>(given.window), static_cast<int>(given.tokens), static_cast<int>(given.num_heads),
                static_cast<int>(given.num_kv_heads), given.num_threads);
  return given.isa == isa_level::automatic ? text : std::string(text) + "/isa:" + lambda_attention::name_of(given.isa);
}

/// A sequence of normal q, k and v of element type T, and attention over it.
template <class T, class Position = lambda_attention::rope>
class prefill {
 public:
  prefill(const prefill_setting& given, const Position& position)
      : given_(given),
        position_(position),
        q_(normal_values<T>(given.tokens * given.num_heads * given.head_dim, 1)),
        k_(normal_values<T>(given.tokens * given.num_kv_heads * given.head_dim, 2)),
        v_(normal_values<T>(given.tokens * given.num_kv_heads * given.head_dim, 3)),
        out_(q_.size()) {
    options_.workspace = &scratch_;
    options_.isa = given.isa;
    change_inputs(given.inputs, given.head_dim, given.num_kv_heads, q_, k_);
    run();
    checked_ = against_formula(view(q_, given.num_heads), view(k_, given.num_kv_heads), view(v_, given.num_kv_heads),
                               shape(), position_, view(out_, given.num_heads), given.tokens / 2, num_checked);
  }

  void run() {
    with_threads(given_.num_threads, [&](const auto& executor) {
      lambda_attention::attend(view(q_, given_.num_heads), view(k_, given_.num_kv_heads), view(v_, given_.num_kv_heads),
                               shape(), position_, view(out_, given_.num_heads), options_, executor);
    });
  }

  void measure(benchmark::State& state) {
    const isa_level isa = given_.isa == isa_level::automatic ? lambda_attention::isa() : given_.isa;
    const double sigma =
        std::fmax(given_.inputs.logit_sigma, given_.inputs.ascent * static_cast<double>(given_.window));
    const double bound = prefill_nmse_bound<T>(isa) * std::fmax(1, sigma * sigma);
    if (!report_check(state, checked_, bound, num_checked, isa)) return;
    const double peak = peak_flops<compute_type>(isa, given_.num_threads);
    const double seconds = time_loop(state, given_.num_threads, [&] { run(); });
    const double pairs = visible_pairs(shape(), given_.tokens, given_.num_heads);
    report_arithmetic(state, pairs, given_.head_dim, given_.head_dim, seconds, peak);
    state.counters["scratch_bytes"] = static_cast<double>(scratch_.bytes());
  }

 private:
  using compute_type = std::conditional_t<std::is_same_v<T, double>, double, float>;
  static constexpr index_t num_checked = 16;

  lambda_attention::lambda_shape shape() const {
    return lambda_attention::lm_infinite(given_.num_sinks, given_.window);
  }

  lambda_attention::tensor_view<T> view(std::vector<T>& values, index_t heads) const {
    return lambda_attention::token_major(values.data(), given_.tokens, heads, given_.head_dim);
  }

  prefill_setting given_;
  Position position_;
  std::vector<T> q_, k_, v_, out_;
  lambda_attention::workspace scratch_;
  lambda_attention::attention_options options_;
  deviation checked_;
};

/// Registers one call under a name.
template <class T, class Position>
void add_prefill(const std::string& name, const prefill_setting& given, const Position& position) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    fixture_of<prefill<T, Position>>(name, given, position).measure(state);
  })->Unit(benchmark::kMillisecond);
}

}  // namespace bench
