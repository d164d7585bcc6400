#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/rope_scaling.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

#include "../refusal.hpp"
#include "../tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

using frequencies = std::initializer_list<std::pair<index_t, double>>;

// Some pairs of a rotation, each beside the number that it is to have.
void expect_frequencies(const la::rope& position, const frequencies& expected) {
  for (const auto& [pair, frequency] : expected)
    EXPECT_NEAR(position.inverse_frequency(pair) / frequency, 1, 1e-13) << pair;
}

template <class Scaling>
Scaling with(Scaling scaling, double Scaling::*field, double number) {
  scaling.*field = number;
  return scaling;
}

la::yarn_scaling yarn(double factor, double length) {
  la::yarn_scaling scaling;
  scaling.factor = factor;
  scaling.original_max_position_embeddings = length;
  return scaling;
}

}  // namespace

// The numbers of this file were worked out to 40 digits from the published formulas, by wavelengths and in theta's own power,
// not as the header does; pairs lie on both sides of every edge.
TEST(RopeScaling, LinearDividesAllFrequencies) {
  expect_frequencies(la::scaled_rope(128, 10000, la::linear_scaling{4}),
                     {{0, 0.25}, {1, 2.1649108084001634e-1}, {31, 2.8869549617236454e-3}, {63, 2.8869549617236454e-5}});
}

TEST(RopeScaling, NtkStretchesTheta) {
  expect_frequencies(la::scaled_rope(128, 10000, la::ntk_scaling{8}),
                     {{0, 1}, {1, 8.3784800191880243e-1}, {31, 4.1507099618906789e-3}, {63, 1.4434774808618227e-5}});
}

TEST(RopeScaling, Llama3GoesOverWithTheNumberOfTurns) {
  expect_frequencies(la::scaled_rope(128, 500000, la::llama3_scaling{}),  // Llama 3.1
                     {{0, 1},
                      {10, 1.2868737343265051e-1},
                      {28, 3.211445994752591e-3},
                      {29, 2.1665707635033586e-3},
                      {32, 5.2484616099295467e-4},
                      {34, 1.7850781276799642e-4},
                      {35, 9.556212353964683e-5},
                      {36, 7.7846552739324497e-5},
                      {63, 3.0689259889145111e-7}});
  expect_frequencies(la::scaled_rope(64, 500000, la::llama3_scaling{32}),  // Llama 3.2
                     {{0, 1},
                      {13, 4.8394213457198931e-3},
                      {14, 3.211445994752591e-3},
                      {15, 1.2905479282092638e-3},
                      {16, 4.295567965593682e-4},
                      {17, 9.7082878026276723e-5},
                      {18, 1.9461638184831124e-5},
                      {31, 9.4183067254349098e-8}});
}

TEST(RopeScaling, YarnGoesOverWithTheNumberOfThePair) {
  expect_frequencies(la::scaled_rope(128, 1000000, yarn(4, 32768)),  // Qwen 2.5
                     {{0, 1},
                      {23, 6.9783058485986634e-3},
                      {24, 5.3753214907901015e-3},
                      {30, 1.0643609812470018e-3},
                      {35, 2.4625840690893868e-4},
                      {39, 6.4903943208370288e-5},
                      {40, 4.445698525097307e-5},
                      {63, 3.1023444018792989e-7}});
  expect_frequencies(la::scaled_rope(128, 10000, yarn(16, 4096)),  // YaRN's Llama 2
                     {{0, 1},
                      {20, 5.6234132519034908e-2},
                      {21, 4.6940859997959401e-2},
                      {33, 4.6004354678503472e-3},
                      {45, 1.5177160473182493e-4},
                      {46, 8.3345089510207752e-5},
                      {63, 7.2173874043091136e-6}});
  la::yarn_scaling exact = yarn(32, 4096);  // gpt-oss
  exact.truncate = false;
  expect_frequencies(la::scaled_rope(64, 150000, exact), {{0, 1},
                                                          {8, 5.0813274815461474e-2},
                                                          {9, 3.1705696184663766e-2},
                                                          {12, 6.7949594897322178e-3},
                                                          {17, 1.2931870124506272e-4},
                                                          {18, 3.8308812373753383e-5},
                                                          {31, 3.0235114281192144e-7}});
  expect_frequencies(la::scaled_rope(64, 10000, yarn(40, 4096)), {{0, 1},  // DeepSeek
                                                                  {10, 5.6234132519034908e-2},
                                                                  {11, 3.9006926567143858e-2},
                                                                  {16, 5.5e-3},
                                                                  {22, 1.7782794100389228e-4},
                                                                  {23, 3.3338035804083101e-5},
                                                                  {31, 3.3338035804083101e-6}});
}

// Where no pair turns so fast, or so slowly, it goes over from the first or up to the last dim.
TEST(RopeScaling, YarnStaysWithinThePairs) {
  expect_frequencies(la::scaled_rope(64, 10000, yarn(4, 100)), {{0, 1},
                                                                {1, 6.9365214363252159e-1},
                                                                {5, 1.4821085660385344e-1},
                                                                {9, 2.4371561803304815e-2},
                                                                {10, 1.4058533129758728e-2},
                                                                {31, 3.3338035804083099e-5}});
  expect_frequencies(la::scaled_rope(64, 10000, with(yarn(4, 4096), &la::yarn_scaling::beta_slow, 1e-6)),
                     {{0, 1},
                      {10, 5.6234132519034911e-2},
                      {11, 4.1572910007817779e-2},
                      {20, 2.7147855384464389e-3},
                      {31, 9.372391197751664e-5}});
}

TEST(RopeScaling, YarnMultipliesRows) {
  const auto factor = [](const la::yarn_scaling& scaling) { return la::scaled_rope(64, 10000, scaling).factor(); };
  EXPECT_NEAR(factor(yarn(4, 32768)), 1.1386294361119891, 1e-15);
  EXPECT_NEAR(factor(yarn(32, 4096)), 1.3465735902799727, 1e-15);
  EXPECT_EQ(factor(yarn(1, 4096)), 1);
  la::yarn_scaling deepseek = yarn(40, 4096);
  deepseek.mscale = 1;
  deepseek.mscale_all_dim = 0.707;
  EXPECT_NEAR(factor(deepseek), 1.0857263992561357, 1e-15);
  deepseek.mscale = 0.707;
  EXPECT_EQ(factor(deepseek), 1);
  deepseek.mscale_all_dim = 0;  // both or none
  EXPECT_NEAR(factor(deepseek), 1.3688879454113936, 1e-15);
  deepseek.attention_factor = 1.5;
  EXPECT_EQ(factor(deepseek), 1.5);
  la::rope_options options;
  options.factor = 2;
  EXPECT_EQ(la::scaled_rope(64, 10000, deepseek, options).factor(), 3);
}

// A factor of 1 leaves every frequency as rope has it; so do layout and rotary_dim what they say there.
TEST(RopeScaling, ByOneIsRope) {
  const la::rope_options options = {la::pair_layout::interleaved, 48};
  const la::rope plain(64, 10000, options);
  const auto expect_plain = [&](const la::rope& scaled) {
    EXPECT_EQ(scaled.num_pairs(), 24);
    EXPECT_EQ(scaled.head_dim(), 64);
    EXPECT_EQ(scaled.layout(), la::pair_layout::interleaved);
    EXPECT_EQ(scaled.factor(), 1);
    for (index_t p = 0; p < 24; ++p)
      EXPECT_NEAR(scaled.inverse_frequency(p) / plain.inverse_frequency(p), 1, 1e-14) << p;
  };
  expect_plain(la::scaled_rope(64, 10000, la::linear_scaling{}, options));
  expect_plain(la::scaled_rope(64, 10000, la::ntk_scaling{}, options));
  expect_plain(la::scaled_rope(64, 10000, la::llama3_scaling{1}, options));
  expect_plain(la::scaled_rope(64, 10000, la::yarn_scaling{}, options));
}

// Few pairs: none between the edges, or a single one.
TEST(RopeScaling, OfFewPairs) {
  for (const index_t head_dim : {2, 4, 6}) {
    for (const double length : {1.0, 5.0, 40.0, 1e6}) {
      const la::rope position = la::scaled_rope(head_dim, 10000, yarn(4, length));
      const la::rope stretched = la::scaled_rope(head_dim, 10000, la::ntk_scaling{4});
      for (index_t p = 0; p < head_dim / 2; ++p) {
        const double unscaled = std::pow(10000.0, -2.0 * static_cast<double>(p) / static_cast<double>(head_dim));
        for (const la::rope* rope : {&position, &stretched}) {
          EXPECT_LE(rope->inverse_frequency(p), unscaled * (1 + 1e-14));
          EXPECT_GE(rope->inverse_frequency(p), unscaled / 4 * (1 - 1e-14));
        }
      }
    }
  }
}

// Through the kernels: the formula of the reference.
TEST(RopeScaling, AttendsAsTheReference) {
  sequence<float> s(90, 2, 1, 16, 16);
  const la::rope position = la::scaled_rope(16, 10000, yarn(8, 64));
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(2, 30), position, s.out.view());
  EXPECT_LE(nmse(s.out.elements, expected(s, la::lm_infinite(2, 30), position)), 1e-11);
}

TEST(RopeScaling, Refusals) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const auto made = [](const auto& scaling, double theta = 10000, index_t head_dim = 64) {
    return refusal([&] { la::scaled_rope(head_dim, theta, scaling); });
  };
  EXPECT_EQ(made(la::linear_scaling{0.5}), "linear_scaling: expected a finite factor >= 1, got 0.5");
  EXPECT_EQ(made(la::ntk_scaling{infinity}), "ntk_scaling: expected a finite factor >= 1, got inf");
  EXPECT_EQ(made(la::llama3_scaling{-1}), "llama3_scaling: expected a finite factor >= 1, got -1");
  EXPECT_EQ(made(yarn(0, 4096)), "yarn_scaling: expected a finite factor >= 1, got 0");
  EXPECT_NE(made(la::linear_scaling{nan}), "accepted");
  EXPECT_EQ(made(yarn(4, 0)), "yarn_scaling: expected original_max_position_embeddings >= 1, got 0");
  using llama3 = la::llama3_scaling;
  EXPECT_EQ(made(with(llama3{}, &llama3::original_max_position_embeddings, infinity)),
            "llama3_scaling: expected original_max_position_embeddings >= 1, got inf");
  EXPECT_EQ(made(with(llama3{}, &llama3::low_freq_factor, 4)),
            "llama3_scaling: expected 0 < low_freq_factor < high_freq_factor, got 4 and 4");
  EXPECT_EQ(made(with(llama3{}, &llama3::low_freq_factor, 0)),
            "llama3_scaling: expected 0 < low_freq_factor < high_freq_factor, got 0 and 4");
  EXPECT_EQ(made(with(llama3{}, &llama3::high_freq_factor, infinity)),
            "llama3_scaling: expected 0 < low_freq_factor < high_freq_factor, got 1 and inf");
  EXPECT_EQ(made(with(yarn(4, 4096), &la::yarn_scaling::beta_fast, 1)),
            "yarn_scaling: expected 0 < beta_slow < beta_fast, got 1 and 1");
  EXPECT_EQ(made(with(yarn(4, 4096), &la::yarn_scaling::beta_slow, 0)),
            "yarn_scaling: expected 0 < beta_slow < beta_fast, got 0 and 32");
  EXPECT_EQ(made(with(yarn(4, 4096), &la::yarn_scaling::attention_factor, -1)),
            "yarn_scaling: expected 0 < attention factor <= 1e30, got -1");
  for (const double theta : {1.0, 0.0, -5.0}) EXPECT_NE(made(la::linear_scaling{}, theta), "accepted");
  EXPECT_EQ(made(la::linear_scaling{}, 1.0), "scaled_rope: expected a finite theta > 1, got 1");
  EXPECT_EQ(made(la::linear_scaling{}, infinity), "scaled_rope: expected a finite theta > 1, got inf");
  for (const index_t head_dim : {-2, 0, 1, 514, 100000})
    EXPECT_NE(made(la::linear_scaling{}, 10000, head_dim), "accepted");
  EXPECT_NE(refusal([] {
              la::scaled_rope(64, 10000, la::linear_scaling{}, {la::pair_layout::half_split, 7});
            }),
            "accepted");
  EXPECT_NE(refusal([] {
              la::scaled_rope(64, 10000, la::linear_scaling{}, {la::pair_layout::half_split, 66});
            }),
            "accepted");
}
