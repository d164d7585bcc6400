// How fast is a token decoded over a cache of the caller's own, in pages, beside kv_cache?
#include "support/benchmark.hpp"
#include "support/random.hpp"
#include "support/stored.hpp"
#include "support/visible.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/key_run.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/rope.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace {

using bench::index_t;
namespace la = lambda_attention;

struct setting {
  index_t page = 16, num_kv_heads = 8, num_layers = 1;
  bool head_major = false;  // in a page
  static constexpr index_t head_dim = 128, num_sinks = 16, window = 4096, num_heads = 8;
};

std::string name_of(const setting& given) {
  char text[256];
  std::snprintf(
      text, sizeof text, "key_runs/bf16/head_dim:%d/sinks:%d/window:%d/heads:%d/kv_heads:%d/layers:%d/page:%d/%s",
      static_cast<int>(setting::head_dim), static_cast<int>(setting::num_sinks), static_cast<int>(setting::window),
      static_cast<int>(setting::num_heads), static_cast<int>(given.num_kv_heads), static_cast<int>(given.num_layers),
      static_cast<int>(given.page), given.head_major ? "head_major" : "token_major");
  return text;
}

/// Pages of keys, which the caller has rotated, and of values, anywhere in a pool; the layers are given the same rows, and each
/// keeps its own.
class decode {
 public:
  explicit decode(const setting& given)
      : given_(given),
        position_(setting::head_dim),
        q_(bench::normal_values<float>(setting::num_heads * setting::head_dim, 1)),
        k_(bench::normal_values<la::bfloat16>(num_rows() * setting::head_dim, 2)),
        v_(bench::normal_values<la::bfloat16>(num_rows() * setting::head_dim, 3)),
        out_(q_.size()),
        same_size_(static_cast<index_t>(kv_bytes())) {
    fill_pools();
    step();
    check();
  }

  void step() {
    la::attention_options options;
    options.workspace = &scratch_;
    const la::query_run token{last(), la::token_major(q_.data(), 1, setting::num_heads, setting::head_dim)};
    for (const layer& l : layers_)
      la::attend(token, l.runs.data(), static_cast<index_t>(l.runs.size()), shape_, position_, output(), options);
  }

  void measure(benchmark::State& state) {
    const la::isa_level isa = la::isa();
    if (!bench::report_check(state, checked_, bench::stored_nmse_bound<la::bf16>(), setting::num_heads, isa)) return;
    const double bandwidth = same_size_.bandwidth(isa, 1);
    const double seconds = bench::time_loop(state, 1, [&] { step(); });
    bench::report_reading(state, kv_bytes(), seconds, bandwidth);
  }

 private:
  struct layer {
    std::vector<la::bfloat16> pool;
    std::vector<la::key_run<const la::bfloat16, const la::bfloat16>> runs;
  };

  index_t num_tokens() const { return setting::num_sinks + setting::window; }
  index_t last() const { return num_tokens() - 1; }
  index_t num_rows() const { return num_tokens() * given_.num_kv_heads; }
  double kv_bytes() const { return static_cast<double>(4 * num_rows() * setting::head_dim * given_.num_layers); }
  la::tensor_view<float> output() { return la::token_major(out_.data(), 1, setting::num_heads, setting::head_dim); }
  la::tensor_view<const la::bfloat16> tokens(const std::vector<la::bfloat16>& rows) const {
    return la::token_major(rows.data(), num_tokens(), given_.num_kv_heads, setting::head_dim);
  }

  static void copy(const la::tensor_view<const la::bfloat16>& from, const la::tensor_view<la::bfloat16>& to) {
    for (index_t t = 0; t < from.tokens; ++t)
      for (index_t h = 0; h < from.heads; ++h) std::copy_n(from.row(t, h), from.dim, to.row(t, h));
  }

  void fill_pools() {
    const index_t num_pages = (num_tokens() + given_.page - 1) / given_.page;
    const index_t row = given_.num_kv_heads * setting::head_dim, page_size = given_.page * row;
    std::vector<index_t> places(static_cast<std::size_t>(num_pages));
    for (std::size_t p = 0; p < places.size(); ++p) places[p] = static_cast<index_t>(p);
    std::mt19937 random(4);
    layers_.resize(static_cast<std::size_t>(given_.num_layers));
    for (layer& l : layers_) {
      std::shuffle(places.begin(), places.end(), random);
      l.pool.resize(static_cast<std::size_t>(2 * num_pages * page_size));
      for (index_t p = 0; p < num_pages; ++p) {
        const index_t first = p * given_.page, count = std::min(given_.page, num_tokens() - first);
        la::bfloat16* const keys = l.pool.data() + 2 * places[static_cast<std::size_t>(p)] * page_size;
        la::bfloat16* const values = keys + page_size;
        const auto page_of = [&](la::bfloat16* rows) {
          return given_.head_major
                     ? la::head_major(rows, given_.page, given_.num_kv_heads, setting::head_dim).slice(0, count)
                     : la::token_major(rows, count, given_.num_kv_heads, setting::head_dim);
        };
        copy(tokens(k_).slice(first, count), page_of(keys));
        copy(tokens(v_).slice(first, count), page_of(values));
        l.runs.push_back({first, page_of(keys), page_of(values), la::row_rotation::to_position});
      }
    }
  }

  /// The keys as they were before the caller rotated them.
  std::vector<double> unrotated_keys() const {
    const la::rotation_data rotation = position_.data().rotation;
    std::vector<double> rows(k_.size());
    for (index_t r = 0; r < num_rows(); ++r) {
      const std::uint64_t position = static_cast<std::uint64_t>(r / given_.num_kv_heads);
      const la::bfloat16* const key = k_.data() + r * setting::head_dim;
      double* const row = rows.data() + r * setting::head_dim;
      for (index_t p = 0; p < rotation.num_pairs; ++p) {
        const double angle = static_cast<double>(position * rotation.turns[p]) * (2 * 3.14159265358979323846 * 0x1p-64);
        const double a = static_cast<double>(static_cast<float>(key[p]));
        const double b = static_cast<double>(static_cast<float>(key[p + rotation.num_pairs]));
        row[p] = a * std::cos(angle) + b * std::sin(angle);
        row[p + rotation.num_pairs] = b * std::cos(angle) - a * std::sin(angle);
      }
    }
    return rows;
  }

  void check() {
    const std::vector<double> rows = unrotated_keys();
    const auto keys = la::token_major(rows.data(), num_tokens(), given_.num_kv_heads, setting::head_dim);
    std::vector<long double> expected(setting::head_dim);
    for (index_t head = 0; head < setting::num_heads; ++head) {
      la::reference::attend_row(q_.data() + head * setting::head_dim, last(), head, setting::num_heads, keys,
                                tokens(v_), shape_, position_, {}, expected.data());
      for (index_t d = 0; d < setting::head_dim; ++d)
        checked_.add(expected[static_cast<std::size_t>(d)], output().row(0, head)[d]);
    }
  }

  setting given_;
  la::rope position_;
  la::lambda_shape shape_ = la::lm_infinite(setting::num_sinks, setting::window);
  std::vector<float> q_;
  std::vector<la::bfloat16> k_, v_;
  std::vector<float> out_;
  std::vector<layer> layers_;
  la::workspace scratch_;
  bench::read_buffer same_size_;
  bench::deviation checked_;
};

}  // namespace

int main(int argc, char** argv) {
  for (const index_t num_layers : {1, 16})
    for (const index_t num_kv_heads : {8, 2})
      for (const index_t page : {16, 64, 256, 4112})
        for (const bool head_major : {false, true}) {
          const setting given = {page, num_kv_heads, num_layers, head_major};
          const std::string name = name_of(given);
          benchmark::RegisterBenchmark(name.c_str(), [given, name](benchmark::State& state) {
            bench::fixture_of<decode>(name, given).measure(state);
          })->Unit(benchmark::kMicrosecond);
        }
  return bench::run_benchmarks(argc, argv);
}
