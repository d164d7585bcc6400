#include <lambda_attention/detail/cache_file.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/t5_bias.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::checksum;

namespace {

template <class Position>
std::uint64_t fingerprint_of(const Position& position) {
  return la::detail::fingerprint(position.data(), position.num_heads());
}

}  // namespace

TEST(Checksum, DoesNotDependOnWhereCallsEnd) {
  std::vector<std::uint32_t> words(40);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint32_t>(i * i);
  checksum whole;
  whole.add(words.data(), 160);
  for (index_t first = 0; first <= 160; first += 4) {
    checksum parts;
    parts.add(words.data(), first);
    parts.add(words.data() + first / 4, 160 - first);
    EXPECT_EQ(parts.value(), whole.value());
  }
}

TEST(Checksum, ShowsAChangeOfAnyWordAndTheOrder) {
  std::set<std::uint64_t> sums;
  std::vector<std::uint32_t> words(20);
  const auto add = [&] {
    checksum sum;
    sum.add(words.data(), 80);
    EXPECT_TRUE(sums.insert(sum.value()).second);
  };
  add();
  for (std::uint32_t& word : words) {
    for (int bit = 0; bit < 32; ++bit) {
      word = std::uint32_t{1} << bit;
      add();
    }
    word = 0;
  }
  checksum shorter;
  shorter.add(words.data(), 76);
  EXPECT_TRUE(sums.insert(shorter.value()).second);
}

TEST(Fingerprint, TellsEncodingsApart) {
  std::set<std::uint64_t> seen;
  const auto is_new = [&](const auto& position) { return seen.insert(fingerprint_of(position)).second; };
  std::vector<float> weights(8 * 4, 0.5f);
  EXPECT_TRUE(is_new(la::none()));
  EXPECT_TRUE(is_new(la::rope(16)));
  EXPECT_TRUE(is_new(la::rope(16, 10000.001)));
  EXPECT_TRUE(is_new(la::rope(16, 10000, {la::pair_layout::interleaved})));
  EXPECT_TRUE(is_new(la::rope(16, 10000, {la::pair_layout::half_split, 8})));
  EXPECT_TRUE(is_new(la::rope(16, 10000, {la::pair_layout::half_split, 16, 1.01})));
  EXPECT_TRUE(is_new(la::alibi(4)));
  EXPECT_TRUE(is_new(la::alibi(8)));
  EXPECT_TRUE(is_new(la::t5_bias(weights.data(), 8, 4)));
  EXPECT_TRUE(is_new(la::t5_bias(weights.data(), 8, 4, 64)));
  weights.back() = 0.75f;
  EXPECT_TRUE(is_new(la::t5_bias(weights.data(), 8, 4)));
  EXPECT_FALSE(is_new(la::t5_bias(weights.data(), 8, 4)));
  const double slopes[] = {0.5, 0.25}, other_slopes[] = {0.5, 0.125};
  EXPECT_TRUE(is_new(la::alibi(slopes, 2)));
  EXPECT_TRUE(is_new(la::alibi(other_slopes, 2)));
  EXPECT_FALSE(is_new(la::rope(16)));
  EXPECT_FALSE(is_new(la::alibi(8)));
}

TEST(Fingerprint, TellsDataApart) {
  la::position_data data;
  const auto fingerprint = [&] { return la::detail::fingerprint(data, 1); };
  std::set<std::uint64_t> seen = {fingerprint()};
  data.function.turn_f32 = [](const void*, std::uint64_t, float*, index_t) {};
  EXPECT_TRUE(seen.insert(fingerprint()).second);
  data = {};
  la::bias_table biases(1, 9);
  data.biases = &biases;
  EXPECT_TRUE(seen.insert(fingerprint()).second);
  biases.set(0, 8, 0.5);  // the last distance alone
  EXPECT_TRUE(seen.insert(fingerprint()).second);
}

// Frequencies that another processor computes may differ in their last bits.
TEST(Fingerprint, TakesNoNoticeOfTheLastBits) {
  const double frequency = 0.1234567890123;
  const auto with = [](double f) { return fingerprint_of(la::rope(2, &f, 1)); };
  EXPECT_EQ(with(frequency), with(frequency * (1 + 0x1p-52)));
  EXPECT_NE(with(frequency), with(frequency * (1 + 0x1p-30)));
  EXPECT_EQ(with(0.0), with(-0x1p-60));  // a turn less a little is nearly none
}
