// Each option against the formula, in the three forms of a call: a whole sequence, chunks of a stream, single tokens.
#include <lambda_attention/attention.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/partial.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::attention_options;
using la::index_t;

namespace {

constexpr index_t n = 45, heads = 8, kv_heads = 2, dim = 24, v_dim = 10;
const la::lambda_shape shape = la::lm_infinite(3, 17);

struct results {
  std::string form;
  std::vector<double> out;
  std::vector<float> lse;
};

template <class T, class Position>
std::vector<results> in_each_form(const Position& position, const attention_options& options) {
  using storage = std::conditional_t<std::is_same_v<T, double>, la::f64, la::f32>;
  std::vector<results> all;
  for (const index_t step : {n, index_t{7}, index_t{1}}) {
    sequence<T> s(n, heads, kv_heads, dim, v_dim);
    std::vector<float> lse(static_cast<std::size_t>(n * heads), -1.0f);
    attention_options with_lse = options;
    with_lse.lse = la::token_major(lse.data(), n, heads, 1);
    if (step == n) la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view(), with_lse);
    la::kv_cache<storage, Position> cache(shape, position, kv_heads, dim, v_dim);
    for (index_t first = 0; step < n && first < n; first += step) {
      const index_t count = std::min(step, n - first);
      with_lse.lse = la::token_major(lse.data(), n, heads, 1).slice(first, count);
      la::attend(s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), cache,
                 s.out.view().slice(first, count), with_lse);
    }
    all.push_back({"steps of " + std::to_string(step), {s.out.elements.begin(), s.out.elements.end()}, lse});
  }
  return all;
}

// The formula's output and lse, head after head of token after token.
template <class T, class Position>
std::pair<std::vector<double>, std::vector<double>> formula(const Position& position,
                                                            const attention_options& options) {
  const sequence<T> s(n, heads, kv_heads, dim, v_dim);
  std::vector<double> out, lse;
  std::vector<long double> row(v_dim);
  for (index_t i = 0; i < n; ++i) {
    for (index_t h = 0; h < heads; ++h) {
      lse.push_back(static_cast<double>(la::reference::attend_row(s.q.view().row(i, h), i, h, heads, s.k.view(),
                                                                  s.v.view(), shape, position, options, row.data())));
      for (const long double x : row) out.push_back(static_cast<double>(x));
    }
  }
  return {out, lse};
}

template <class T, class Position>
void expect_formula(const Position& position, const attention_options& options) {
  const auto [out, lse] = formula<T>(position, options);
  for (const results& actual : in_each_form<T>(position, options)) {
    EXPECT_LE(nmse(actual.out, out), sizeof(T) == 8 ? 1e-24 : 1e-11) << actual.form;
    for (std::size_t i = 0; i < lse.size(); ++i)
      ASSERT_NEAR(actual.lse[i], lse[i], 1e-5 * std::fmax(1, std::fabs(lse[i]))) << actual.form << ", row " << i;
  }
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
  attention_options options;
  const std::vector<results> by_default = in_each_form<float>(la::rope(dim), options);
  options.scale = 1 / std::sqrt(24.0);
  const std::vector<results> by_hand = in_each_form<float>(la::rope(dim), options);
  for (std::size_t form = 0; form < 3; ++form)
    EXPECT_TRUE(same_bits(by_default[form].out, by_hand[form].out)) << by_hand[form].form;
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
  for (const double cap : {1e-30, 0.5, 2.0, 50.0, 1e30}) {
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
  const std::vector<results> without = in_each_form<float>(la::rope(dim), options);
  options.sink_logits = {extreme, heads};
  const std::vector<results> with = in_each_form<float>(la::rope(dim), options);
  for (std::size_t form = 0; form < 3; ++form) {
    for (std::size_t i = 0; i < with[form].out.size(); ++i) {
      const std::size_t head = i / v_dim % heads;
      // Too small to count, and so large that nothing is left.
      const double right = head < 3 ? without[form].out[i] : 0, tolerance = head < 3 ? 1e-7 : 1e-30;
      ASSERT_TRUE(head == 7 || std::fabs(with[form].out[i] - right) <= tolerance) << with[form].form << ", " << i;
    }
  }
}

// The lse is of the keys alone, so that parts can be merged.
TEST(Options, LseLeavesLearnedSinksOut) {
  attention_options options;
  const std::vector<results> without = in_each_form<float>(la::rope(dim), options);
  options.sink_logits = {logits, heads};
  const std::vector<results> with = in_each_form<float>(la::rope(dim), options);
  for (std::size_t form = 0; form < 3; ++form)
    EXPECT_TRUE(same_bits(with[form].lse, without[form].lse)) << with[form].form;
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
  const std::vector<double> right = formula<float>(la::rope(dim), {}).second;
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

// Refused before anything is written; other columns than those of keys that are seen become zeros (tests/laws/weights_test.cpp).
TEST(Weights, Refusals) {
  sequence<> s(n, heads, kv_heads, dim, v_dim);
  const la::rope position(dim);
  la::kv_cache<la::f32, la::rope> cache(shape, position, kv_heads, dim, v_dim);
  la::append(s.k.view(), s.v.view(), cache);
  std::fill(s.out.elements.begin(), s.out.elements.end(), 5.0f);
  dense<float> weights(n, heads, 20);
  const auto refused = [&](index_t tokens, const la::tensor_view<float>& view) {
    attention_options options;
    options.weights = view;
    const std::string message =
        refusal([&] { la::attend(s.q.view().slice(0, tokens), cache, s.out.view().slice(0, tokens), options); });
    EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size(), 5.0f)) << message;
    EXPECT_EQ(weights.elements, std::vector<float>(weights.elements.size())) << message;
    return message;
  };
  EXPECT_EQ(refused(5, weights.view().slice(0, 5)), "attend: expected at most 4 tokens with options.weights, got 5");
  EXPECT_EQ(refused(2, weights.view().slice(0, 3)),
            "attend: expected options.weights to be [2, 8, at least 20], got [3, 8, 20]");
  la::tensor_view<float> narrow = weights.view().slice(0, 2);
  narrow.dim = 19;
  EXPECT_EQ(refused(2, narrow), "attend: expected options.weights to be [2, 8, at least 20], got [2, 8, 19]");
  la::tensor_view<float> folded = weights.view().slice(0, 2);
  folded.head_stride = 4;
  EXPECT_EQ(refused(2, folded),
            "attend: expected options.weights with rows that do not overlap, got dim = 20, token_stride = 160, "
            "head_stride = 4");
  dense<float> more_heads(2, heads + 1, 20);
  EXPECT_EQ(refused(2, more_heads.view()),
            "attend: expected options.weights to be [2, 8, at least 20], got [2, 9, 20]");
  la::tensor_view<float> backwards = weights.view().slice(0, 2);
  backwards.token_stride = -160;
  EXPECT_EQ(refused(2, backwards),
            "attend: expected options.weights with strides >= 0, got token_stride = -160, head_stride = 20");
  const std::string apart =
      "attend: expected options.weights not to overlap q, out, options.lse or options.sink_logits, got "
      "overlapping memory";
  EXPECT_EQ(refused(1, {s.out.elements.data(), 1, heads, 20, 0, 20}), apart);
  EXPECT_EQ(refused(1, {s.q.elements.data(), 1, heads, 20, 0, 20}), apart);
  const auto beside = [&](auto change) {
    attention_options options;
    options.weights = weights.view().slice(0, 1);
    change(options);
    return refusal([&] { la::attend(s.q.view().slice(0, 1), cache, s.out.view().slice(0, 1), options); });
  };
  EXPECT_EQ(beside([&](attention_options& o) { o.lse = {weights.elements.data() + 150, 1, heads, 1, 0, 1}; }), apart);
  EXPECT_EQ(beside([&](attention_options& o) { o.sink_logits = {weights.elements.data() + 159, heads}; }), apart);

  // While a stream is short it has no more keys than tokens.
  la::kv_cache<la::f32, la::rope> young(shape, position, kv_heads, dim, v_dim);
  la::append(s.k.view().slice(0, 5), s.v.view().slice(0, 5), young);
  const auto of_young = [&](index_t columns) {
    dense<float> kept(1, heads, columns), out(1, heads, v_dim);
    attention_options options;
    options.weights = kept.view();
    return refusal([&] { la::attend(s.q.view().slice(4, 1), young, out.view(), options); });
  };
  EXPECT_EQ(of_young(5), "accepted");
  EXPECT_EQ(of_young(4), "attend: expected options.weights to be [1, 8, at least 5], got [1, 8, 4]");

  attention_options options;
  options.weights = weights.view();
  EXPECT_EQ(refusal([&] { la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view(), options); }),
            "attend: expected no options.weights for a whole sequence, got 20 columns");
  options.weights = {s.k.elements.data(), 1, heads, 20, 0, 20};
  EXPECT_EQ(refusal([&] {
              la::attend(s.q.view().slice(0, 1), s.k.view().slice(0, 1), s.v.view().slice(0, 1), cache,
                         s.out.view().slice(0, 1), options);
            }),
            "attend: expected options.weights not to overlap k or v, got overlapping memory");
  dense<float> lse(1, heads, 1);
  EXPECT_EQ(refusal([&] {
              la::attend_partial(s.q.view().slice(0, 1), cache, {0, 10},
                                 la::partial_result{s.out.view().slice(0, 1), lse.view()}, options);
            }),
            "attend_partial: expected no options.weights, for they are of all keys, got 20 columns");
  options.weights = weights.view().slice(0, 1);
  auto other = cache;
  dense<float> other_out(1, heads, v_dim);
  const auto step = [&](auto& of, const la::tensor_view<float>& out) {
    return la::stream_step{s.q.view().slice(0, 1), s.k.view().slice(0, 1), s.v.view().slice(0, 1), &of, out};
  };
  const std::vector steps = {step(cache, s.out.view().slice(0, 1)), step(other, other_out.view())};
  EXPECT_EQ(refusal([&] { la::attend(steps.data(), 2, options); }),
            "attend: expected no options.weights with more than one stream, got 2 streams");
  EXPECT_EQ(cache.num_tokens(), n);
}
