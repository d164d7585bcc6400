#include <lambda_attention/attention.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

constexpr long double log2_e = 1.442695040888963407359924681001892137L;

// Rows turned by a function of our own: the first two elements, by `frequency` radians a position.
struct first_pair_turns : la::position_encoding {
  double frequency;
  explicit first_pair_turns(double frequency_) : frequency(frequency_) {}

  template <class Real>
  void turn(std::uint64_t position, Real* row, index_t) const noexcept {
    const double angle = static_cast<double>(position) * frequency;
    const Real cosine = static_cast<Real>(std::cos(angle)), sine = static_cast<Real>(std::sin(angle));
    const Real a = row[0], b = row[1];
    row[0] = a * cosine - b * sine;
    row[1] = b * cosine + a * sine;
  }
  la::position_data data() const {
    la::position_data data;
    data.function = la::row_function_of(*this);
    return data;
  }
  long double score(const long double* q, const long double* k, index_t head_dim, index_t distance) const {
    const long double angle = static_cast<long double>(distance) * static_cast<long double>(frequency);
    const long double cosine = std::cos(angle), sine = std::sin(angle);
    long double sum = (q[0] * cosine - q[1] * sine) * k[0] + (q[1] * cosine + q[0] * sine) * k[1];
    for (index_t d = 2; d < head_dim; ++d) sum += q[d] * k[d];
    return sum;
  }
};

// The same of rows half as long: R(0) is not the identity.
struct first_pair_turns_and_shrinks : first_pair_turns {
  using first_pair_turns::first_pair_turns;

  template <class Real>
  void turn(std::uint64_t position, Real* row, index_t head_dim) const noexcept {
    first_pair_turns::turn(position, row, head_dim);
    for (index_t d = 0; d < head_dim; ++d) row[d] /= 2;
  }
  la::position_data data() const {
    la::position_data data;
    data.function = la::row_function_of(*this);
    return data;
  }
  long double score(const long double* q, const long double* k, index_t head_dim, index_t distance) const {
    return first_pair_turns::score(q, k, head_dim, distance) / 4;
  }
};

// Remembers the last position that it was asked for.
struct last_position : la::position_encoding {
  static std::uint64_t last;

  template <class Real>
  void turn(std::uint64_t position, Real*, index_t) const noexcept {
    last = std::max(last, position);
  }
  la::position_data data() const {
    la::position_data data;
    data.function = la::row_function_of(*this);
    return data;
  }
};
std::uint64_t last_position::last = 0;

// Not a rotation, but easy to follow.
struct doubles_up {
  template <class Real>
  void turn(std::uint64_t position, Real* row, index_t head_dim) const noexcept {
    for (index_t d = 0; d < head_dim; ++d) row[d] = 2 * row[d] + static_cast<Real>(position);
  }
};

// A bias that neither ALiBi nor T5 has, for two heads.
struct table_of_roots : la::position_encoding {
  la::bias_table table{2, 10};
  table_of_roots() {
    for (index_t h = 0; h < 2; ++h)
      for (index_t d = 0; d < 10; ++d) table.set(h, d, root(h, d));
  }
  static double root(index_t head, index_t distance) {
    return static_cast<double>(head + 1) * std::sqrt(static_cast<double>(distance));
  }
  index_t num_heads() const { return 2; }
  la::position_data data() const {
    la::position_data data;
    data.biases = &table;
    return data;
  }
  long double bias(index_t head, index_t distance) const {
    return static_cast<long double>(root(head, distance < 10 ? distance : 9));
  }
};

}  // namespace

TEST(PositionEncoding, BaseIsAPlainInnerProductForAnyHeads) {
  struct plain : la::position_encoding {};
  const plain encoding;
  const long double q[] = {1, 2, 3}, k[] = {4, -5, 6};
  EXPECT_EQ(encoding.num_heads(), 0);
  EXPECT_EQ(encoding.head_dim(), 0);
  EXPECT_EQ(encoding.score(q, k, 3, 1000), 12);
  EXPECT_EQ(encoding.score(q, k, 2, 0), -6);
  EXPECT_EQ(encoding.bias(3, 1000), 0);
}

TEST(PositionData, SaysWhatItHolds) {
  la::position_data data;
  EXPECT_FALSE(data.rotates());
  EXPECT_FALSE(data.has_bias());
  data.rotation.num_pairs = 1;
  EXPECT_TRUE(data.rotates());
  data = {};
  data.function.turn_f32 = [](const void*, std::uint64_t, float*, index_t) {};  // which may need no `self`
  EXPECT_TRUE(data.rotates());
  EXPECT_TRUE(data.has_function());
  data = {};
  const double slope = 0;
  data.slopes = &slope;
  EXPECT_TRUE(data.has_bias());
  EXPECT_FALSE(data.rotates());
  data = {};
  const la::bias_table table;
  data.biases = &table;
  EXPECT_TRUE(data.has_bias());
}

TEST(RowFunction, CallsTheMemberInBothPrecisions) {
  const doubles_up encoding;
  const la::row_function function = la::row_function_of(encoding);
  EXPECT_EQ(function.self, &encoding);
  float narrow[] = {1, 2, 3};
  function.turn_f32(function.self, 10, narrow, 2);
  EXPECT_EQ(narrow[0], 12);
  EXPECT_EQ(narrow[1], 14);
  EXPECT_EQ(narrow[2], 3);
  double wide[] = {1, 2, 3};
  function.turn_f64(function.self, 20, wide, 3);
  EXPECT_EQ(wide[2], 26);
}

TEST(RowFunction, TurnsQueriesAndKeys) {
  const auto expect_formula = [](const auto& position) {
    for (const la::lambda_shape& shape : {la::lm_infinite(2, 7), la::lambda_shape{2, 9, 4}, la::streaming_llm(2, 7)}) {
      sequence<float> s(40, 2, 1, 8, 8);
      la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());
      EXPECT_LE(nmse(s.out.elements, expected(s, shape, position)), 1e-11);
      sequence<double> d(40, 2, 1, 8, 8);
      la::attend(d.q.view(), d.k.view(), d.v.view(), shape, position, d.out.view());
      EXPECT_LE(nmse(d.out.elements, expected(d, shape, position)), 1e-24);
    }
  };
  expect_formula(first_pair_turns(0.3));
  expect_formula(first_pair_turns_and_shrinks(0.3));
}

TEST(BiasTable, HoldsBothPrecisionsTimesLog2OfE) {
  la::bias_table table(2, 3);
  EXPECT_EQ(table.num_heads(), 2);
  EXPECT_EQ(table.num_distances(), 3);
  table.set(1, 2, 0.7);
  EXPECT_DOUBLE_EQ(table.row(1, double{})[2], static_cast<double>(0.7L * log2_e));
  EXPECT_FLOAT_EQ(table.row(1, float{})[2], static_cast<float>(0.7L * log2_e));
  for (index_t d = 0; d < 3; ++d) EXPECT_EQ(table.row(0, double{})[d], 0);
  EXPECT_EQ(table.row(1, double{})[1], 0);
}

TEST(BiasTable, EndEntriesFillTheMargins) {
  for (const index_t num_distances : {1, 2, 5}) {
    la::bias_table table(3, num_distances);
    for (index_t h = 0; h < 3; ++h)
      for (index_t d = 0; d < num_distances; ++d) table.set(h, d, static_cast<double>(10 * h + d + 1));
    for (index_t h = 0; h < 3; ++h) {
      for (index_t d = -la::bias_table::margin; d < num_distances + la::bias_table::margin; ++d) {
        const index_t nearest = d < 0 ? 0 : d < num_distances ? d : num_distances - 1;
        EXPECT_EQ(table.row(h, double{})[d], table.row(h, double{})[nearest]) << h << ", " << d;
        EXPECT_FLOAT_EQ(table.row(h, float{})[d],
                        static_cast<float>(log2_e * static_cast<double>(10 * h + nearest + 1)));
      }
    }
  }
}

TEST(BiasTable, CopiesAreIndependent) {
  la::bias_table table(1, 4);
  table.set(0, 1, 5);
  la::bias_table copy = table;
  table.set(0, 1, 6);
  EXPECT_DOUBLE_EQ(copy.row(0, double{})[1], static_cast<double>(5 * log2_e));
}

TEST(BiasTable, BiasesAreAddedToLogits) {
  const table_of_roots position;
  for (const la::lambda_shape& shape : {la::lm_infinite(2, 7), la::lambda_shape{2, 30, 20}, la::streaming_llm(2, 7)}) {
    sequence<float> s(40, 2, 2, 8, 8);
    la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());
    EXPECT_LE(nmse(s.out.elements, expected(s, shape, position)), 1e-11);
  }
}

TEST(BiasTable, Refusals) {
  const auto made = [](index_t heads, index_t distances) { return refusal([&] { la::bias_table(heads, distances); }); };
  const std::string expectation = "bias_table: expected at least 1 head and 1 distance and at most 2^40 entries, got ";
  EXPECT_EQ(made(0, 4), expectation + "0 x 4");
  EXPECT_EQ(made(4, 0), expectation + "4 x 0");
  EXPECT_EQ(made(-1, 4), expectation + "-1 x 4");
  EXPECT_EQ(made(4, la::unlimited), expectation + "4 x 9223372036854775807");
  EXPECT_EQ(made(index_t{1} << 31, 1), expectation + "2147483648 x 1");
  EXPECT_EQ(made(1 << 21, 1 << 20), expectation + "2097152 x 1048576");

  la::bias_table table(2, 3);
  const auto set = [&](index_t head, index_t distance, double bias) {
    return refusal([&] { table.set(head, distance, bias); });
  };
  const std::string expected_entry = "bias_table: expected head < 2, distance < 3 and a bias within +-1e30, got ";
  EXPECT_EQ(set(1, 2, -1e30), "accepted");
  EXPECT_EQ(set(1, 2, -1e31), expected_entry + "1, 2, -1e+31");
  EXPECT_EQ(set(2, 0, 1), expected_entry + "2, 0, 1");
  EXPECT_EQ(set(-1, 0, 1), expected_entry + "-1, 0, 1");
  EXPECT_EQ(set(0, 3, 1), expected_entry + "0, 3, 1");
  EXPECT_EQ(set(0, -1, 1), expected_entry + "0, -1, 1");
  EXPECT_EQ(set(0, 0, HUGE_VAL), expected_entry + "0, 0, inf");
  EXPECT_EQ(set(0, 0, std::nan("")), expected_entry + "0, 0, nan");
}

// A function may look angles up in a table: without a limit no position is beyond the last token's.
TEST(RowFunction, IsCalledForPositionsThatThereAre) {
  constexpr index_t num_tokens = 40, dim = 16;
  for (const index_t step : {1, 20}) {
    la::kv_cache<la::f32, last_position> cache(la::sliding_window(4), {}, 1, dim, dim, {step});
    std::vector<float> rows(static_cast<std::size_t>(num_tokens * dim), 1), out(rows.size());
    last_position::last = 0;
    for (index_t t = 0; t < num_tokens; t += step) {
      const auto view = [&](std::vector<float>& numbers) {
        return la::token_major(numbers.data(), num_tokens, 1, dim).slice(t, step);
      };
      la::attend(view(rows), view(rows), view(rows), cache, view(out));
    }
    EXPECT_EQ(last_position::last, num_tokens - 1) << "in steps of " << step;
  }
}
