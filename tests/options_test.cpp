// Each option against the formula, in the three forms of a call: a whole sequence, chunks of a stream, single tokens.
#include <lambda_attention/attention.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "tensors.hpp"

namespace la = lambda_attention;
using la::attention_options;
using la::index_t;

namespace {

constexpr index_t n = 45, heads = 8, kv_heads = 2, dim = 24, v_dim = 10;
const la::lambda_shape shape = la::lm_infinite(3, 17);

// Calls check(name of the form, output, lse).
template <class T, class Position, class Check>
void in_each_form(const Position& position, const attention_options& options, Check&& check) {
  for (const index_t step : {n, index_t{7}, index_t{1}}) {
    sequence<T> s(n, heads, kv_heads, dim, v_dim);
    std::vector<float> lse(static_cast<std::size_t>(n * heads), -1.0f);
    attention_options with_lse = options;
    with_lse.lse = la::token_major(lse.data(), n, heads, 1);
    if (step == n) la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view(), with_lse);
    using storage = std::conditional_t<std::is_same_v<T, double>, la::f64, la::f32>;
    la::kv_cache<storage, Position> cache(shape, position, kv_heads, dim, v_dim);
    for (index_t first = 0; step < n && first < n; first += step) {
      const index_t count = std::min(step, n - first);
      with_lse.lse = la::token_major(lse.data(), n, heads, 1).slice(first, count);
      la::attend(s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), cache,
                 s.out.view().slice(first, count), with_lse);
    }
    check("steps of " + std::to_string(step), s, lse);
  }
}

// The formula's lse, head after head of token after token.
template <class Sequence, class Position>
std::vector<double> expected_lse(const Sequence& s, const Position& position, const attention_options& options) {
  std::vector<double> result;
  std::vector<long double> out(v_dim);
  for (index_t i = 0; i < n; ++i)
    for (index_t h = 0; h < heads; ++h)
      result.push_back(static_cast<double>(la::reference::attend_row(
          s.q.view().row(i, h), i, h, heads, s.k.view(), s.v.view(), shape, position, options, out.data())));
  return result;
}

template <class T, class Position>
void expect_formula(const Position& position, const attention_options& options) {
  in_each_form<T>(position, options, [&](const std::string& form, const auto& s, const std::vector<float>& lse) {
    EXPECT_LE(nmse(s.out.elements, expected(s, shape, position, options)), sizeof(T) == 8 ? 1e-24 : 1e-11) << form;
    const std::vector<double> right = expected_lse(s, position, options);
    for (std::size_t i = 0; i < right.size(); ++i)
      ASSERT_NEAR(lse[i], right[i], 1e-5 * std::fmax(1, std::fabs(right[i]))) << form << ", row " << i;
  });
}

// With a rotation and with a bias, in float and in double.
void expect_formula(const attention_options& options) {
  expect_formula<float>(la::rope(dim), options);
  expect_formula<float>(la::alibi(heads), options);
  expect_formula<double>(la::rope(dim), options);
  expect_formula<double>(la::alibi(heads), options);
}

const float logits[] = {0, 1, -2, 3.5f, 0, 10, -10, 0.25f};

}  // namespace

TEST(Options, DefaultsChangeNothing) {
  const attention_options options;
  EXPECT_EQ(options.scale, 0);
  EXPECT_EQ(options.soft_cap, 0);
  EXPECT_EQ(options.sink_logits.data, nullptr);
  EXPECT_EQ(options.first_position, 0);
  EXPECT_EQ(options.lse.data, nullptr);
  EXPECT_EQ(options.isa, la::isa_level::automatic);
  EXPECT_EQ(options.workspace, nullptr);
  expect_formula(options);
}

TEST(Options, DefaultScaleIsOneOverTheRootOfHeadDim) {
  attention_options explicit_scale;
  explicit_scale.scale = 1 / std::sqrt(24.0);
  std::vector<std::vector<float>> outputs;
  for (const attention_options& options : {attention_options{}, explicit_scale})
    in_each_form<float>(la::rope(dim), options,
                        [&](const auto&, const auto& s, const auto&) { outputs.push_back(s.out.elements); });
  for (std::size_t form = 0; form < 3; ++form) EXPECT_TRUE(same_bits(outputs[form], outputs[form + 3])) << form;
}

TEST(Options, Scale) {
  attention_options options;
  for (const double scale : {1.0, 0.01, -0.3}) {
    options.scale = scale;
    expect_formula(options);
  }
}

// Caps that bite, before biases are added.
TEST(Options, SoftCap) {
  attention_options options;
  options.scale = 1;
  for (const double cap : {0.5, 2.0, 50.0}) {
    options.soft_cap = cap;
    expect_formula(options);
  }
}

TEST(Options, SinkLogits) {
  attention_options options;
  options.sink_logits = {logits, heads};
  expect_formula(options);
  options.soft_cap = 2;  // which is not for learned sinks
  options.scale = 1;
  expect_formula(options);
}

TEST(Options, SinkLogitsOfAnySize) {
  const float extreme[] = {-HUGE_VALF, -1e30f, -200, 88, 200, 1e30f, HUGE_VALF, 0};
  attention_options options;
  options.sink_logits = {extreme, heads};
  std::vector<std::vector<float>> without;
  in_each_form<float>(la::rope(dim), {},
                      [&](const auto&, const auto& s, const auto&) { without.push_back(s.out.elements); });
  std::size_t form = 0;
  in_each_form<float>(la::rope(dim), options, [&](const std::string& name, auto& s, const std::vector<float>&) {
    dense<float> plain = s.out;
    plain.elements = without[form++];
    for (index_t i = 0; i < n; ++i) {
      for (index_t d = 0; d < v_dim; ++d) {
        // Too small to count, and so large that nothing is left.
        for (const index_t h : {0, 1, 2})
          ASSERT_FLOAT_EQ(s.out.view().row(i, h)[d], plain.view().row(i, h)[d]) << name << ", " << i << ", " << h;
        for (const index_t h : {3, 4, 5, 6})
          ASSERT_NEAR(s.out.view().row(i, h)[d], 0, 1e-30) << name << ", " << i << ", " << h;
      }
    }
  });
}

// The lse is of the keys alone, so that parts can be merged.
TEST(Options, LseLeavesLearnedSinksOut) {
  attention_options with_sinks;
  with_sinks.sink_logits = {logits, heads};
  std::vector<std::vector<float>> results;
  for (const attention_options& options : {attention_options{}, with_sinks})
    in_each_form<float>(la::rope(dim), options,
                        [&](const auto&, const auto&, const auto& lse) { results.push_back(lse); });
  for (std::size_t form = 0; form < 3; ++form) EXPECT_TRUE(same_bits(results[form], results[form + 3])) << form;
}

TEST(Options, LseOfARowThatSeesNoKeyIsMinusInfinity) {
  sequence<float> s(6, heads, kv_heads, dim, v_dim);
  std::vector<float> lse(6 * heads);
  attention_options options;
  options.lse = la::token_major(lse.data(), 6, heads, 1);
  options.sink_logits = {logits, heads};
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::sliding_window(0), la::rope(dim), s.out.view(), options);
  EXPECT_EQ(lse, std::vector<float>(lse.size(), -HUGE_VALF));
  EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size()));

  la::kv_cache<la::f32, la::rope> cache(la::sliding_window(0), la::rope(dim), kv_heads, dim, v_dim);
  options.lse = options.lse.slice(0, 1);
  lse[0] = 0;
  la::attend(s.q.view().slice(0, 1), s.k.view().slice(0, 1), s.v.view().slice(0, 1), cache, s.out.view().slice(0, 1),
             options);
  EXPECT_EQ(lse[0], -HUGE_VALF);
}

TEST(Options, LseMayLieInAnyLayout) {
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  std::vector<float> dense_lse(n * heads), spread(3 * n * heads, -1.0f);
  attention_options options;
  options.lse = la::token_major(dense_lse.data(), n, heads, 1);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view(), options);
  options.lse = {spread.data() + 1, n, heads, 1, 3, 3 * n};  // head-major, every third element
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view(), options);
  for (index_t i = 0; i < n; ++i) {
    for (index_t h = 0; h < heads; ++h) {
      const std::size_t at = static_cast<std::size_t>(3 * (h * n + i));
      ASSERT_EQ(spread[at + 1], dense_lse[static_cast<std::size_t>(i * heads + h)]);
      ASSERT_EQ(spread[at], -1);
      ASSERT_EQ(spread[at + 2], -1);
    }
  }
}

// A call of more tokens than max_append is made in steps; its lse is that of all of them.
TEST(Options, LseOfSeveralSteps) {
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  la::kv_cache_options few;
  few.max_append = 8;
  la::kv_cache<la::f32, la::rope> cache(shape, la::rope(dim), kv_heads, dim, v_dim, few);
  std::vector<float> lse(n * heads);
  attention_options options;
  options.lse = la::token_major(lse.data(), n, heads, 1);
  la::attend(s.q.view(), s.k.view(), s.v.view(), cache, s.out.view(), options);
  const std::vector<double> right = expected_lse(s, la::rope(dim), options);
  for (std::size_t i = 0; i < right.size(); ++i) ASSERT_NEAR(lse[i], right[i], 1e-5) << i;
}

TEST(Options, FirstPositionOfASequence) {
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view());
  const std::vector<float> at_zero = s.out.elements;
  attention_options options;
  options.first_position = (index_t{1} << 40) + 3;
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view(), options);
  EXPECT_FALSE(same_bits(s.out.elements, at_zero));  // other angles, other rounding
  EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::rope(dim))), 1e-11);
}
