// The formula on examples that were worked out by hand.
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/t5_bias.hpp>
#include <lambda_attention/reference.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

struct halves_of_an_engine {
  std::uint16_t bits;
};
struct bfloat16s_of_an_engine {
  std::uint16_t bits;
};
struct doubles_of_an_engine {
  double number;
};
template <>
struct lambda_attention::element_traits<halves_of_an_engine> {
  static constexpr element_kind kind = element_kind::f16;
};
template <>
struct lambda_attention::element_traits<bfloat16s_of_an_engine> {
  static constexpr element_kind kind = element_kind::bf16;
};
template <>
struct lambda_attention::element_traits<doubles_of_an_engine> {
  static constexpr element_kind kind = element_kind::f64;
};

namespace {

const double ln2 = std::log(2.0), ln3 = std::log(3.0);

struct result {
  std::vector<double> out;
  double last_lse;  // of the last token's last head
};

// Numbers in the order of token, head, dim.
struct example {
  index_t tokens;
  std::vector<double> q, k, v;
  la::lambda_shape shape = la::full_causal();
  la::attention_options options = {};
  index_t heads = 1, kv_heads = 1;

  template <class Position>
  result with(const Position& position) const {
    const auto view = [&](const std::vector<double>& numbers, index_t view_heads) {
      const index_t dim = static_cast<index_t>(numbers.size()) / (tokens * view_heads);
      return la::token_major(numbers.data(), tokens, view_heads, dim);
    };
    const auto queries = view(q, heads), keys = view(k, kv_heads), values = view(v, kv_heads);
    result r;
    r.out.resize(static_cast<std::size_t>(tokens * heads * values.dim), -1);
    la::reference::attend(queries, keys, values, shape, position,
                          la::token_major(r.out.data(), tokens, heads, values.dim), options);
    std::vector<long double> row(static_cast<std::size_t>(values.dim));
    r.last_lse =
        static_cast<double>(la::reference::attend_row(queries.row(tokens - 1, heads - 1), tokens - 1, heads - 1, heads,
                                                      keys, values, shape, position, options, row.data()));
    return r;
  }
};

void expect_near(const std::vector<double>& actual, const std::vector<double>& right) {
  ASSERT_EQ(actual.size(), right.size());
  for (std::size_t i = 0; i < right.size(); ++i)
    EXPECT_NEAR(actual[i], right[i], 1e-15 * std::fmax(1, std::fabs(right[i]))) << i;
}

// Biases alone: with queries of zeros every score is 0. ALiBi's weights are then 2^-distance.
example halves() { return {3, {0, 0, 0}, {5, 6, 7}, {4, 2, 1}}; }
la::alibi slope_ln2() { return la::alibi(&ln2, 1); }

}  // namespace

// Query 1 has the scores 0 and ln 3, the weights 1/4 and 3/4: 8/4 + 4 * 3/4 = 5.
TEST(Reference, SoftmaxOfTwo) {
  const result r = example{2, {7, 1}, {0, ln3}, {8, 4}}.with(la::none());
  expect_near(r.out, {8, 5});
  EXPECT_NEAR(r.last_lse, std::log(4), 1e-15);
}

// The same: <(1, 1, 1, 1), k> = 2 ln 3, times 1/sqrt(4).
TEST(Reference, DefaultScale) {
  const double k = ln3 / 2;
  const example e = {2, {0, 0, 0, 0, 1, 1, 1, 1}, {0, 0, 0, 0, k, k, k, k}, {8, 4}};
  expect_near(e.with(la::none()).out, {8, 5});
}

TEST(Reference, Scale) {
  example e = {2, {0, 1}, {0, ln3 / 5}, {8, 4}};
  e.options.scale = 5;
  expect_near(e.with(la::none()).out, {8, 5});
  e.options.scale = -5;  // weights 3/4 and 1/4
  expect_near(e.with(la::none()).out, {8, 7});
}

// Query 2 has the weights 1/4, 1/2, 1: (4/4 + 2/2 + 1) / (7/4) = 12/7. Query 1 has 1/2, 1: (4/2 + 2) / (3/2) = 8/3.
TEST(Reference, Alibi) {
  const result r = halves().with(slope_ln2());
  expect_near(r.out, {4, 8.0 / 3, 12.0 / 7});
  EXPECT_NEAR(r.last_lse, std::log(1.75), 1e-15);
}

// Distances 1, 1, 0: (4/2 + 2/2 + 1) / 2 = 2.
TEST(Reference, DistanceLimit) {
  example e = halves();
  e.shape.distance_limit = 1;
  expect_near(e.with(slope_ln2()).out, {4, 8.0 / 3, 2});
}

// Query 2 sees key 0, at distance 1 and not 2, and itself: (4/2 + 1) / (3/2) = 2.
TEST(Reference, SinkAndWindow) {
  example e = halves();
  e.shape = la::lm_infinite(1, 1);
  const result r = e.with(slope_ln2());
  expect_near(r.out, {4, 8.0 / 3, 2});
  EXPECT_NEAR(r.last_lse, std::log(1.5), 1e-15);
}

// At its true distance 2: (4/4 + 1) / (5/4) = 8/5.
TEST(Reference, SinkAtItsTrueDistance) {
  example e = halves();
  e.shape = {1, 1, la::unlimited};
  expect_near(e.with(slope_ln2()).out, {4, 8.0 / 3, 1.6});
}

// In slots: sink 0, sink 1, window. Query 3 sees the sinks at distances 2 and 1: (4/4 + 2/2 + 16) / (7/4) = 72/7.
TEST(Reference, SinksAtCacheSlots) {
  example e = {4, {0, 0, 0, 0}, {5, 6, 7, 8}, {4, 2, 1, 16}};
  e.shape = la::streaming_llm(2, 1);
  expect_near(e.with(slope_ln2()).out, {4, 8.0 / 3, 12.0 / 7, 72.0 / 7});
}

TEST(Reference, SlidingWindow) {
  example e = halves();
  e.shape = la::sliding_window(2);  // query 2 sees 1 and 2: (2/2 + 1) / (3/2)
  expect_near(e.with(slope_ln2()).out, {4, 8.0 / 3, 4.0 / 3});
  e.shape = la::sliding_window(0);
  const result r = e.with(slope_ln2());
  expect_near(r.out, {0, 0, 0});
  EXPECT_EQ(r.last_lse, -HUGE_VAL);
}

// (ln 3)^2 under the cap 2 ln 3: tanh(ln 3 / 2) = 1/2, so the score is ln 3. The bias of key 0 comes after: weights 1/2
// and 3, (8/2 + 4 * 3) / (7/2) = 32/7.
TEST(Reference, SoftCapBeforeTheBias) {
  example e = {2, {0, 1}, {0, ln3 * ln3}, {8, 4}};
  e.options.soft_cap = 2 * ln3;
  expect_near(e.with(la::none()).out, {8, 5});
  expect_near(e.with(slope_ln2()).out, {8, 32.0 / 7});
}

// 4 more in the denominator: (8 + 4 * 3) / (1 + 3 + 4). The lse is that of the keys.
TEST(Reference, LearnedSink) {
  const float logit = std::log(4.0f);
  example e = {2, {7, 1}, {0, ln3}, {8, 4}};
  e.options.sink_logits = {&logit, 1};
  const result r = e.with(la::none());
  EXPECT_NEAR(r.out[1], 2.5, 1e-6);
  EXPECT_NEAR(r.last_lse, std::log(4), 1e-15);
}

// A quarter turn a position: R(1) (1, 0, 0, 0) has its 1 at element 2 (half_split) or 1 (interleaved). Key 0 then
// scores ln 3, and key 1, at distance 0, scores 0: weights 3/4 and 1/4, 8 * 3/4 + 4/4 = 7.
TEST(Reference, Rope) {
  const double quarter_turns[] = {std::acos(0.0), 0.1};
  la::rope_options layout;
  example e = {2, {0, 0, 0, 0, 1, 0, 0, 0}, {0, 0, ln3, 0, 0, 3, 3, 3}, {8, 4}};
  e.options.scale = 1;
  expect_near(e.with(la::rope(4, quarter_turns, 2, layout)).out, {8, 7});
  layout.layout = la::pair_layout::interleaved;
  e.k = {0, ln3, 0, 0, 0, 3, 3, 3};
  expect_near(e.with(la::rope(4, quarter_turns, 2, layout)).out, {8, 7});
  layout.factor = 2;  // of the query and of the key: the score is 4 ln 3, the weights 81/82 and 1/82
  expect_near(e.with(la::rope(4, quarter_turns, 2, layout)).out, {8, (8 * 81 + 4) / 82.0});
}

// Partial: the elements behind the pair stay. Key 0 scores ln 2 from the pair and ln 3 from the rest.
TEST(Reference, PartialRope) {
  const double quarter_turn = std::acos(0.0);
  example e = {2, {0, 0, 0, 1, 0, 1}, {0, ln2, ln3, 0, 0, 0}, {7, 0}};
  e.options.scale = 1;
  expect_near(e.with(la::rope(3, &quarter_turn, 1)).out, {7, 6});
}

// Two buckets: distance 0, and the rest. Weights [bucket][head].
TEST(Reference, T5Bias) {
  const float weights[] = {0, 0, static_cast<float>(ln2), static_cast<float>(ln3)};
  example e = {2, {0, 0, 0, 0}, {5, 6}, {6, 0}};
  e.heads = 2;
  const result r = e.with(la::t5_bias(weights, 2, 2, 2));
  EXPECT_NEAR(r.out[2], 4, 1e-6);    // weights 2/3 and 1/3
  EXPECT_NEAR(r.out[3], 4.5, 1e-6);  // weights 3/4 and 1/4
}

// Query heads 0 and 1 read key/value head 0, query heads 2 and 3 the other.
TEST(Reference, Groups) {
  example e = {1, {0, 0, 0, 0}, {1, 2}, {10, 20}};
  e.heads = 4;
  e.kv_heads = 2;
  expect_near(e.with(la::none()).out, {10, 10, 20, 20});
}

TEST(Reference, ValuesOfAnotherDim) {
  const example e = {2, {7, 1}, {0, ln3}, {8, 0, -4, 4, 4, 0}};
  expect_near(e.with(la::none()).out, {8, 0, -4, 5, 3, -1});
}

TEST(Reference, ReadsEveryElementType) {
  EXPECT_EQ(la::reference::number(0.1f), static_cast<long double>(0.1f));
  EXPECT_EQ(la::reference::number(0.1), static_cast<long double>(0.1));
  EXPECT_EQ(la::reference::number(la::half(1.5f)), 1.5L);
  EXPECT_EQ(la::reference::number(la::bfloat16(-2.25f)), -2.25L);
}

// Large logits neither overflow nor vanish.
TEST(Reference, LargeLogits) {
  example e = {2, {0, 1}, {20000, 20000 + ln3}, {8, 4}};
  const result r = e.with(la::none());
  EXPECT_NEAR(r.out[1], 5, 1e-11);
  EXPECT_NEAR(r.last_lse, 20000 + std::log(4), 1e-11);
  e.k = {-20000, -20000 + ln3};
  EXPECT_NEAR(e.with(la::none()).out[1], 5, 1e-11);
}

// Of types that only name their kind.
TEST(Reference, ReadsElementsByTheirKind) {
  EXPECT_EQ(la::reference::number(halves_of_an_engine{0x3c01}), 1 + 0x1p-10L);
  EXPECT_EQ(la::reference::number(bfloat16s_of_an_engine{0x3f81}), 1 + 0x1p-7L);
  EXPECT_EQ(la::reference::number(doubles_of_an_engine{1 + 0x1p-52}), 1 + 0x1p-52L);
}
