// Random shapes of everything at once against the formula: 500 on each instruction set that the machine has, or 100,000
// where the environment variable LAMBDA_ATTENTION_SOAK is set. LAMBDA_ATTENTION_SWEEP_CASE=n runs case n alone; a failure
// prints its n.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <tuple>
#include <type_traits>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr std::uint64_t seed = 20240229;
// Cases take the instruction sets in turn.
constexpr int num_isas = static_cast<int>(isa_level::amx_bf16);
constexpr isa_level isa_of(std::uint64_t number) { return static_cast<isa_level>(1 + number % num_isas); }
constexpr std::uint64_t number_of(std::uint64_t i, isa_level isa) {
  return i * num_isas + static_cast<std::uint64_t>(isa) - 1;
}

// Whole sequences in an element type, or streams through a storage.
enum path { floats, doubles, halves, bfloat16s, f64_cache, f32_cache, f16_cache, bf16_cache, int8_cache };
constexpr const char* path_names[] = {"floats",    "doubles",   "halves",     "bfloat16s", "f64 cache",
                                      "f32 cache", "f16 cache", "bf16 cache", "int8 cache"};

constexpr index_t most_rows = 16;  // that are compared

// Each order of magnitude as likely as any other.
index_t draw_size(generator& random, index_t least, int most_bits) {
  return least + draw(random, 0, (index_t{1} << draw(random, 0, most_bits)) - 1);
}

// One case in `of`.
bool one_in(index_t of, generator& random) { return draw(random, 1, of) == 1; }

struct sweep_case {
  explicit sweep_case(std::uint64_t number) : random(seed + number) {
    way = static_cast<path>(draw(random, 0, 8));
    encoded = encodings[draw(random, 0, 6)];
    isa = isa_of(number);
    for (layout* l : {&layout_of_q, &layout_of_k, &layout_of_v, &layout_of_out}) *l = layouts[draw(random, 0, 2)];
    draw_extents();
    draw_shape();
    first_position = one_in(2, random) ? draw(random, 0, index_t{1} << 62) : 0;
    scale = std::ldexp(1 / std::sqrt(static_cast<double>(size.head_dim)), static_cast<int>(draw(random, -1, 1)));
    soft_cap = one_in(5, random) ? std::ldexp(1.0, static_cast<int>(draw(random, 0, 6))) : 0;
    has_sink_logits = one_in(5, random);
    max_append = draw_size(random, 1, 8);
    max_rewind = one_in(5, random) ? draw(random, 1, 20) : 0;
  }

  bool is_stream() const { return way >= f64_cache; }
  bool rounds_rows() const { return way >= f16_cache; }

  void draw_extents() {
    // The bounds of rounded rows are for many logits that are as good as normal.
    const index_t least = rounds_rows() ? 16 : 0;
    size.kv_heads = draw(random, 1, 3);
    size.group = draw(random, 1, 9);
    size.head_dim =
        std::min(draw_size(random, std::max<index_t>(encoded < encoding::alibi ? 2 : 1, least), 9), max_head_dim);
    size.v_head_dim = std::min(draw_size(random, std::max<index_t>(1, least), 9), max_head_dim);
    if (one_in(4, random)) size.v_head_dim = size.head_dim;
    if (one_in(4, random)) {  // what matrix kernels take
      size.head_dim = lambda_attention::detail::round_up(size.head_dim, 32);
      size.v_head_dim = lambda_attention::detail::round_up(size.v_head_dim, 32);
    }
    size.tokens = draw_size(random, least, size.head_dim > 64 ? 7 : 10);
  }

  void draw_shape() {
    const index_t num_sinks = draw_size(random, 0, 6), window = draw_size(random, 0, 9);
    shape = {num_sinks, window, draw(random, 0, 2 * window + 1)};
    if (one_in(4, random)) shape.distance_limit = std::max<index_t>(0, window + draw(random, -3, 3));
    if (one_in(4, random)) shape.distance_limit = unlimited;
    if (one_in(6, random)) shape = streaming_llm(num_sinks, window);
    if (one_in(16, random) && !is_stream()) shape = full_causal();
  }

  std::string description() const {
    return std::string(path_names[way]) + ", " + name_of(encoded) + ", " + name_of(isa) + ", " +
           std::to_string(size.tokens) + " tokens, " + std::to_string(size.heads()) + " heads of " +
           std::to_string(size.kv_heads) + ", head_dim " + std::to_string(size.head_dim) + ", v_head_dim " +
           std::to_string(size.v_head_dim) + ", " + to_string(shape) + ", first_position " +
           std::to_string(first_position) + ", scale " + std::to_string(scale) + ", soft_cap " +
           std::to_string(soft_cap) + (has_sink_logits ? ", sink logits" : "") + ", max_append " +
           std::to_string(max_append) + ", max_rewind " + std::to_string(max_rewind);
  }

  generator random;
  path way;
  encoding encoded;
  isa_level isa;
  layout layout_of_q, layout_of_k, layout_of_v, layout_of_out;
  extents size;
  lambda_shape shape;
  index_t first_position;
  double scale;
  double soft_cap;
  bool has_sink_logits;
  index_t max_append;
  index_t max_rewind;
};

// The same numbers, rounded to T.
template <class T, class Real>
tensor<T> rounded(const tensor<Real>& source) {
  const tensor_view<const Real> from = source.view();
  tensor<T> result(from.tokens, from.heads, from.dim);
  for (index_t t = 0; t < from.tokens; ++t)
    for (index_t h = 0; h < from.heads; ++h)
      for (index_t d = 0; d < from.dim; ++d) result.view().row(t, h)[d] = element<T>(from.row(t, h)[d]);
  return result;
}

struct errors {
  error_sum out;
  error_sum lse;
  variances sums;  // over calls
  double calls = 0;

  void add(const variances& of_call) {
    sums.scores += of_call.scores;
    sums.logits += of_call.logits;
    ++calls;
  }
  double sigma_of_scores() const { return std::sqrt(sums.scores / calls); }
  double sigma_of_logits() const { return std::sqrt(sums.logits / calls); }
};

// A whole sequence, once more in place of its queries where it fits there.
struct sequence {
  template <class T, class Real, class Position>
  static void attend(sweep_case& c, const inputs<T>& in, const Position& position, tensor<Real>& out,
                     attention_options options) {
    options.first_position = c.first_position;
    lambda_attention::attend(in.q.view(), in.k.view(), in.v.view(), c.shape, position, out.view(), options);
    if (c.size.head_dim != c.size.v_head_dim) return;
    tensor<T> in_place = in.q;
    lambda_attention::attend(in_place.view(), in.k.view(), in.v.view(), c.shape, position, in_place.view(), options);
    EXPECT_TRUE(same_bits(in_place.view(), rounded<T>(out).view())) << c.description();
  }
};

// A stream in chunks of any size.
template <class Storage>
struct stream {
  template <class T, class Real, class Position>
  static void attend(sweep_case& c, const inputs<T>& in, const Position& position, tensor<Real>& out,
                     attention_options options) {
    auto cache = cache_for<Storage>(in, c.shape, position, {c.max_append, c.max_rewind, c.first_position});
    const tensor_view<float> lse = options.lse;
    for (index_t first = 0; first < c.size.tokens;) {
      const index_t count = std::min(draw_size(c.random, 0, 8), c.size.tokens - first);
      options.lse = lse.slice(first, count);
      attend_part(in, first, count, cache, out, options);
      first += count;
    }
  }
};

template <class T, class Real, class Way, class Position>
void run_once(sweep_case& c, const Position& position, errors& sums) {
  const auto& [n, kv_heads, group, head_dim, v_head_dim] = c.size;
  const inputs<T> in = {random_tensor<T>(c.random, n, c.size.heads(), head_dim, c.layout_of_q),
                        random_tensor<T>(c.random, n, kv_heads, head_dim, c.layout_of_k),
                        random_tensor<T>(c.random, n, kv_heads, v_head_dim, c.layout_of_v)};
  const tensor<float> logits = random_tensor<float>(c.random, 1, 1, c.size.heads());
  tensor<Real> out(n, c.size.heads(), v_head_dim, c.layout_of_out);
  tensor<float> lse(n, c.size.heads(), 1, c.layout_of_out);
  attention_options options;
  options.isa = c.isa;
  options.scale = c.scale;
  options.soft_cap = c.soft_cap;
  if (c.has_sink_logits) options.sink_logits = {logits.view().data, c.size.heads()};
  options.lse = lse.view();
  const expected_rows expected(c.random, in.q, in.k, in.v, c.shape, position, options, most_rows);
  sums.add(variances_of(c.random, in.q, in.k, c.shape, position, c.scale, 100));
  Way::attend(c, in, position, out, options);
  expected.add_errors(out, sums.out);
  expected.add_lse_errors(lse, sums.lse);
}

// In the order of `path`.
template <class Position>
constexpr void (*calls[])(sweep_case&, const Position&, errors&) = {
    run_once<float, float, sequence>,    run_once<double, double, sequence>,   run_once<half, float, sequence>,
    run_once<bfloat16, float, sequence>, run_once<float, double, stream<f64>>, run_once<float, float, stream<f32>>,
    run_once<float, float, stream<f16>>, run_once<float, float, stream<bf16>>, run_once<float, float, stream<int8>>,
};
template <class Real, row_format Format>
double bound_of_tensors(double sigma, isa_level isa) {
  return tensor_bound<Real>(Format, isa, sigma);
}
constexpr double (*bounds[])(double sigma, isa_level isa) = {
    bound_of_tensors<float, row_format::f32>,
    bound_of_tensors<double, row_format::f64>,
    bound_of_tensors<float, row_format::f16>,
    bound_of_tensors<float, row_format::bf16>,
    storage_bound<f64>,
    storage_bound<f32>,
    storage_bound<f16>,
    storage_bound<bf16>,
    storage_bound<int8>,
};

void run_case(std::uint64_t number) {
  sweep_case c(number);
  with_encoding(c.encoded, c.size.heads(), c.size.head_dim, [&](const auto& position) {
    errors sums;
    // The error of a few numbers can be large beside them: such a case is called more often. Bounds of roundings, but not
    // those of arithmetic alone, hold on average only: a case above one is called much more often, with other numbers each
    // time.
    const index_t outputs = std::min(c.size.tokens, most_rows) * c.size.v_head_dim;
    const bool rounds = bounds[c.way](0, c.isa) > arithmetic_bound<float>();
    double bound = 0;
    index_t done = 0;
    for (const index_t enough : {300, 30000}) {
      for (; done < enough; done += std::max<index_t>(outputs, 1))
        calls<std::decay_t<decltype(position)>>[c.way](c, position, sums);
      const double sigma = rounds ? weighted_sigma(sums.sigma_of_scores(), c.size.head_dim) : sums.sigma_of_logits();
      bound = bounds[c.way](sigma, c.isa);
      // An lse is a float; and that of one key, where there is no sigma, a logit, which is off by as much of itself as at sigma 1.
      const double lse_sigma = c.size.tokens == 1 ? 1 : sigma;
      const double lse_bound = std::fmax(bounds[c.way](lse_sigma, c.isa), 0x1p-48);
      if (sums.out.nmse() <= bound && sums.lse.nmse() <= lse_bound) return;
      if (!rounds) break;
    }
    ADD_FAILURE() << "seed " << seed << ", LAMBDA_ATTENTION_SWEEP_CASE=" << number << ": errors " << sums.out.nmse()
                  << " (out) and " << sums.lse.nmse() << " (lse), bound " << bound << ": " << c.description();
  });
}

// So that parts run side by side, as GoogleTest's shards.
constexpr int num_parts = 20;
constexpr index_t most_failures = 5;  // of a part

class sweep : public testing::TestWithParam<std::tuple<isa_level, int>> {};

TEST_P(sweep, is_the_formula) {
  const auto [isa, part] = GetParam();
  if (const char* const number = std::getenv("LAMBDA_ATTENTION_SWEEP_CASE")) {
    const std::uint64_t alone = std::strtoull(number, nullptr, 10);
    if (isa_of(alone) == isa && part == 0) run_case(alone);
    return;
  }
  const std::uint64_t cases = std::getenv("LAMBDA_ATTENTION_SOAK") != nullptr ? 100000 : 500;
  const std::uint64_t in_part = cases / num_parts, first = static_cast<std::uint64_t>(part) * in_part;
  // Where the library is broken every case is above its bound, and takes a hundred times as long.
  index_t failures = 0;
  for (std::uint64_t i = first; i < first + in_part && failures < most_failures; ++i) {
    run_case(number_of(i, isa));
    failures = testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
  }
}

INSTANTIATE_TEST_SUITE_P(on, sweep, testing::Combine(testing::ValuesIn(isa_levels()), testing::Range(0, num_parts)),
                         [](const auto& test) {
                           return std::string(name_of(std::get<0>(test.param))) + "_part_" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
