#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../refusal.hpp"
#include "../tensors.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::pair_layout;
using la::rope;
using la::rope_options;

namespace {

constexpr long double full_turn = 6.283185307179586476925286766559005768L;

rope_options options(pair_layout layout, index_t rotary_dim = 0, double factor = 1) {
  rope_options result;
  result.layout = layout;
  result.rotary_dim = rotary_dim;
  result.factor = factor;
  return result;
}

// R(position) row as the papers have it: pairs as complex numbers, times factor * e^(i position frequency).
std::vector<long double> rotated(std::vector<long double> row, const std::vector<long double>& frequencies,
                                 pair_layout layout, long double factor, index_t position) {
  const std::size_t pairs = frequencies.size();
  for (std::size_t p = 0; p < pairs; ++p) {
    long double& real = row[layout == pair_layout::half_split ? p : 2 * p];
    long double& imaginary = row[layout == pair_layout::half_split ? pairs + p : 2 * p + 1];
    const std::complex<long double> turned = std::complex<long double>(real, imaginary) *
                                             std::polar(factor, static_cast<long double>(position) * frequencies[p]);
    real = turned.real();
    imaginary = turned.imag();
  }
  return row;
}

long double inner_product(const std::vector<long double>& a, const std::vector<long double>& b) {
  long double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

std::vector<long double> theta_frequencies(double theta, index_t rotary_dim) {
  std::vector<long double> frequencies;
  for (index_t p = 0; p < rotary_dim / 2; ++p)
    frequencies.push_back(std::exp(-2 * static_cast<long double>(p) / static_cast<long double>(rotary_dim) *
                                   std::log(static_cast<long double>(theta))));
  return frequencies;
}

// The encodings that are tested, each with the frequencies and the rest as the test understands them.
struct test_case {
  rope encoding;
  std::vector<long double> frequencies;
  pair_layout layout;
  double factor;
};

std::vector<test_case> cases() {
  std::vector<test_case> all;
  const double own[] = {0.9, -0.25, 4.0, 1e-7, 0.0};
  const std::vector<long double> own_frequencies(std::begin(own), std::end(own));
  for (const pair_layout layout : {pair_layout::half_split, pair_layout::interleaved}) {
    all.push_back({rope(24, 10000, options(layout)), theta_frequencies(10000, 24), layout, 1});
    all.push_back({rope(70, 500000, options(layout)), theta_frequencies(500000, 70), layout, 1});
    all.push_back({rope(24, 10000, options(layout, 10)), theta_frequencies(10000, 10), layout, 1});
    all.push_back({rope(24, 10000, options(layout, 0, 1.25)), theta_frequencies(10000, 24), layout, 1.25});
    all.push_back({rope(24, 10000, options(layout, 22, 0.5)), theta_frequencies(10000, 22), layout, 0.5});
    all.push_back({rope(24, own, 5, options(layout)), own_frequencies, layout, 1});
  }
  return all;
}

}  // namespace

TEST(Rope, TurnsAreFractionsOf64Bits) {
  // theta^(-2p / 32) = 2^-p, and 2^64 / (2 pi) = 28be60db9391054a.7f... in base 16.
  const rope position(32, 65536);
  for (index_t p = 0; p < 16; ++p) {
    const std::uint64_t right = std::uint64_t{0x28be60db9391054a} >> p;
    EXPECT_LE(position.data().rotation.turns[p] - (right - 1), 2u) << p;
  }
  const double three_quarters = 6.283185307179586 * 0.75 * 0x1p-64;  // of the smallest turn: it is the nearest
  EXPECT_EQ(rope(2, &three_quarters, 1).data().rotation.turns[0], 1u);
}

TEST(Rope, PhasesAreAngles) {
  for (const test_case& c : cases()) {
    const la::rotation_data rotation = c.encoding.data().rotation;
    ASSERT_EQ(rotation.num_pairs, static_cast<index_t>(c.frequencies.size()));
    for (std::size_t p = 0; p < c.frequencies.size(); ++p) {
      for (const std::uint64_t position : {std::uint64_t{1}, std::uint64_t{977}, std::uint64_t{1} << 20}) {
        const long double angle = static_cast<long double>(position) * c.frequencies[p];
        const long double phase = static_cast<long double>(position * rotation.turns[p]) * 0x1p-64L * full_turn;
        // The turn of one position is rounded to 2^-64, the angle of the test to long double.
        EXPECT_LE(std::abs(std::polar(1.0L, phase) - std::polar(1.0L, angle)),
                  1e-17L * static_cast<long double>(position))
            << "pair " << p << " at " << position;
      }
    }
  }
}

TEST(Rope, FrequenciesOfTheta) {
  for (const double theta : {10000.0, 500000.0, 1e6}) {
    const rope position(128, theta);
    ASSERT_EQ(position.num_pairs(), 64);
    EXPECT_EQ(position.inverse_frequency(0), 1);
    for (index_t p = 0; p < 64; ++p)
      EXPECT_DOUBLE_EQ(position.inverse_frequency(p), std::pow(theta, -static_cast<double>(p) / 64));
  }
  // The exponent is over rotary_dim, not head_dim.
  EXPECT_DOUBLE_EQ(rope(128, 10000, options(pair_layout::half_split, 4)).inverse_frequency(1), 0.01);
}

TEST(Rope, KeepsWhatItIsGiven) {
  const rope plain(64);
  EXPECT_EQ(plain.head_dim(), 64);
  EXPECT_EQ(plain.num_heads(), 0);
  EXPECT_EQ(plain.num_pairs(), 32);
  EXPECT_EQ(plain.layout(), pair_layout::half_split);
  EXPECT_EQ(plain.factor(), 1);
  EXPECT_DOUBLE_EQ(plain.inverse_frequency(16), 0.01);

  const double own[] = {0.5, 2.0, -3.0};
  const rope other(64, own, 3, options(pair_layout::interleaved, 6, 1.5));
  EXPECT_EQ(other.num_pairs(), 3);
  EXPECT_EQ(other.layout(), pair_layout::interleaved);
  EXPECT_EQ(other.factor(), 1.5);
  for (index_t p = 0; p < 3; ++p) EXPECT_EQ(other.inverse_frequency(p), own[p]);

  const la::position_data data = other.data();
  EXPECT_TRUE(data.rotates());
  EXPECT_FALSE(data.has_bias());
  EXPECT_EQ(data.rotation.num_pairs, 3);
  EXPECT_EQ(data.rotation.layout, pair_layout::interleaved);
  EXPECT_EQ(data.rotation.factor, 1.5);
}

TEST(Rope, ExplicitFrequenciesOfThetaAreTheta) {
  const rope by_theta(64);
  std::vector<double> frequencies;
  for (index_t p = 0; p < 32; ++p) frequencies.push_back(by_theta.inverse_frequency(p));
  const rope by_frequencies(64, frequencies.data(), 32);
  for (index_t p = 0; p < 32; ++p) {
    const auto a = static_cast<long double>(by_theta.data().rotation.turns[p]);
    const auto b = static_cast<long double>(by_frequencies.data().rotation.turns[p]);
    // What a double rounds off, and the last bit.
    EXPECT_NEAR(static_cast<double>(a - b), 0, 0x1p-52 * static_cast<double>(a) + 1) << p;
  }
}

TEST(Rope, ACopyOutlivesTheOriginal) {
  auto original = std::make_unique<rope>(16);
  const rope copy = *original;
  const std::uint64_t turn = original->data().rotation.turns[3];
  EXPECT_NE(copy.data().rotation.turns, original->data().rotation.turns);
  original.reset();
  EXPECT_EQ(copy.data().rotation.turns[3], turn);
}

TEST(Rope, ScoreIsTheInnerProductOfRotatedRows) {
  for (const test_case& c : cases()) {
    const index_t dim = c.encoding.head_dim();
    const dense<double> rows = normal<double>(2, 1, dim, 5);
    const std::vector<long double> q(rows.elements.begin(), rows.elements.begin() + dim);
    const std::vector<long double> k(rows.elements.begin() + dim, rows.elements.end());
    for (const index_t distance : {0, 1, 5, 1000}) {
      for (const index_t key_position : {0, 77}) {
        const long double right = inner_product(rotated(q, c.frequencies, c.layout, c.factor, key_position + distance),
                                                rotated(k, c.frequencies, c.layout, c.factor, key_position));
        EXPECT_NEAR(static_cast<double>(c.encoding.score(q.data(), k.data(), dim, distance)),
                    static_cast<double>(right), 1e-13);
      }
    }
  }
}

// A query that sees the key 0 alone has that key's logit as its lse.
TEST(Rope, KernelsRotate) {
  for (const test_case& c : cases()) {
    const index_t dim = c.encoding.head_dim(), n = 40;
    for (const index_t limit : {la::unlimited, index_t{25}}) {
      sequence<double> s(n, 1, 1, dim, 4);
      std::vector<float> lse(static_cast<std::size_t>(n));
      la::attention_options call;
      call.scale = 1;
      call.lse = la::token_major(lse.data(), n, 1, 1);
      la::attend(s.q.view(), s.k.view(), s.v.view(), la::lambda_shape{1, 0, limit}, c.encoding, s.out.view(), call);

      const std::vector<long double> k(s.k.elements.begin(), s.k.elements.begin() + dim);
      for (index_t i = 0; i < n; ++i) {
        const std::vector<long double> q(s.q.elements.begin() + i * dim, s.q.elements.begin() + (i + 1) * dim);
        const long double right = inner_product(rotated(q, c.frequencies, c.layout, c.factor, std::min(i, limit)),
                                                rotated(k, c.frequencies, c.layout, c.factor, 0));
        EXPECT_NEAR(lse[static_cast<std::size_t>(i)], static_cast<double>(right), 3e-6) << "distance " << i;
      }
    }
  }
}

TEST(Rope, Refusals) {
  const double infinity = HUGE_VAL, nan = std::nan("");
  const auto made = [](index_t head_dim, double theta, const rope_options& o = {}) {
    return refusal([&] { rope(head_dim, theta, o); });
  };
  EXPECT_EQ(made(512, 10000), "accepted");
  EXPECT_EQ(made(2, 1e-300), "accepted");
  EXPECT_EQ(made(0, 10000), "rope: expected 1 <= head_dim <= 512, got 0");
  EXPECT_EQ(made(-2, 10000), "rope: expected 1 <= head_dim <= 512, got -2");
  EXPECT_EQ(made(514, 10000), "rope: expected 1 <= head_dim <= 512, got 514");
  EXPECT_EQ(made(5, 10000), "rope: expected an even rotary_dim <= head_dim = 5, got 5");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 3)),
            "rope: expected an even rotary_dim <= head_dim = 8, got 3");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 10)),
            "rope: expected an even rotary_dim <= head_dim = 8, got 10");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, -2)),
            "rope: expected an even rotary_dim <= head_dim = 8, got -2");
  EXPECT_EQ(made(8, 0), "rope: expected a finite theta > 0, got 0");
  EXPECT_EQ(made(8, -3.5), "rope: expected a finite theta > 0, got -3.5");
  EXPECT_EQ(made(8, infinity), "rope: expected a finite theta > 0, got inf");
  EXPECT_EQ(made(8, nan), "rope: expected a finite theta > 0, got nan");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, 0)), "rope: expected 0 < factor <= 1e30, got 0");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, -1)), "rope: expected 0 < factor <= 1e30, got -1");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, infinity)),
            "rope: expected 0 < factor <= 1e30, got inf");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, 1.1e30)),
            "rope: expected 0 < factor <= 1e30, got 1.1e+30");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, 1e30)), "accepted");
  EXPECT_EQ(made(8, 10000, options(pair_layout::half_split, 0, nan)), "rope: expected 0 < factor <= 1e30, got nan");
}

TEST(Rope, RefusalsOfExplicitFrequencies) {
  std::vector<double> frequencies(300, 0.5);
  const auto made = [&](index_t head_dim, index_t num_pairs, index_t rotary_dim = 0) {
    return refusal(
        [&] { rope(head_dim, frequencies.data(), num_pairs, options(pair_layout::half_split, rotary_dim)); });
  };
  const std::string pairs =
      "rope: expected 1 <= num_pairs <= head_dim / 2, and rotary_dim 0 or 2 * num_pairs, got num_pairs = ";
  EXPECT_EQ(made(8, 4), "accepted");
  EXPECT_EQ(made(8, 3, 6), "accepted");
  EXPECT_EQ(made(512, 256), "accepted");
  EXPECT_EQ(made(8, 0), pairs + "0");
  EXPECT_EQ(made(8, -1), pairs + "-1");
  EXPECT_EQ(made(512, 257), pairs + "257");
  EXPECT_EQ(made(8, la::unlimited), pairs + "9223372036854775807");
  EXPECT_EQ(made(8, 3, 8), pairs + "3");
  EXPECT_EQ(made(8, 5), pairs + "5");
  EXPECT_EQ(made(600, 5), "rope: expected 1 <= head_dim <= 512, got 600");
  frequencies[2] = std::nan("");
  EXPECT_EQ(made(8, 2), "accepted");
  EXPECT_EQ(made(8, 4), "rope: expected finite frequencies, got inverse_frequencies[2] = nan");
  frequencies[2] = -HUGE_VAL;
  EXPECT_EQ(made(8, 4), "rope: expected finite frequencies, got inverse_frequencies[2] = -inf");
}
