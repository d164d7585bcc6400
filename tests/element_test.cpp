#include <lambda_attention/attention.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "tensors.hpp"

namespace la = lambda_attention;

namespace {

// A 16-bit format by the book: value of a magnitude's bits, for any width of the exponent and the mantissa.
struct format {
  int mantissa_bits;
  int bias;
  std::uint32_t infinity;  // bits; the numbers lie below

  double value(std::uint32_t magnitude) const {
    const int exponent = static_cast<int>(magnitude >> mantissa_bits);
    const std::uint32_t mantissa = magnitude & ((1u << mantissa_bits) - 1);
    if (exponent == 0) return std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return std::ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
  }

  // The nearest of all magnitudes, found by bisection; the even one of two. What would be the next number after the
  // largest stands for infinity, whose bits follow it.
  std::uint32_t nearest(double magnitude) const {
    std::uint32_t below = 0, above = infinity;
    if (magnitude >= value(infinity)) return infinity;
    while (above - below > 1) {
      const std::uint32_t middle = (below + above) / 2;
      (value(middle) <= magnitude ? below : above) = middle;
    }
    const double down = magnitude - value(below), up = value(above) - magnitude;
    if (down != up) return down < up ? below : above;
    return below % 2 == 0 ? below : above;
  }
};
constexpr format half_format = {10, 15, 0x7c00};
constexpr format bfloat16_format = {7, 127, 0x7f80};

template <class T>
const format& format_of() {
  if constexpr (std::is_same_v<T, la::half>) return half_format;
  return bfloat16_format;
}

template <class T>
T with_bits(std::uint32_t bits) {
  T number;
  number.bits = static_cast<std::uint16_t>(bits);
  return number;
}

template <class T>
::testing::AssertionResult rounds_to_nearest_even(float number) {
  const std::uint32_t sign = std::signbit(number) ? 0x8000 : 0;
  const std::uint32_t right = sign | format_of<T>().nearest(std::fabs(static_cast<double>(number)));
  const std::uint32_t bits = T(number).bits;
  if (bits == right) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << std::hexfloat << number << std::hex << " became " << bits << ", not "
                                       << right;
}

}  // namespace

template <class T>
class Element : public ::testing::Test {};
using narrow_types = ::testing::Types<la::half, la::bfloat16>;
TYPED_TEST_SUITE(Element, narrow_types);

TYPED_TEST(Element, EveryNumberIsWhatItsBitsSay) {
  const format& f = format_of<TypeParam>();
  for (std::uint32_t magnitude = 0; magnitude < f.infinity; ++magnitude) {
    const float number = static_cast<float>(with_bits<TypeParam>(magnitude));
    ASSERT_EQ(number, f.value(magnitude));
    ASSERT_FALSE(std::signbit(number));
    const float negative = static_cast<float>(with_bits<TypeParam>(0x8000 | magnitude));
    ASSERT_EQ(negative, -f.value(magnitude));
    ASSERT_TRUE(std::signbit(negative));
  }
  EXPECT_EQ(static_cast<float>(with_bits<TypeParam>(f.infinity)), HUGE_VALF);
  EXPECT_EQ(static_cast<float>(with_bits<TypeParam>(0x8000 | f.infinity)), -HUGE_VALF);
}

TYPED_TEST(Element, AllBitPatternsRoundTrip) {
  const format& f = format_of<TypeParam>();
  const std::uint32_t quiet = 1u << (f.mantissa_bits - 1);
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float number = static_cast<float>(with_bits<TypeParam>(bits));
    const bool nan = (bits & 0x7fff) > f.infinity;
    ASSERT_EQ(std::isnan(number), nan) << bits;
    // A NaN keeps its payload, and becomes quiet.
    ASSERT_EQ(TypeParam(number).bits, nan ? bits | quiet : bits);
  }
}

TYPED_TEST(Element, RoundsToNearestEvenAtEveryBoundary) {
  const format& f = format_of<TypeParam>();
  for (std::uint32_t magnitude = 0; magnitude < f.infinity; ++magnitude) {
    const float boundary = static_cast<float>((f.value(magnitude) + f.value(magnitude + 1)) / 2);
    for (const float number : {boundary, std::nextafter(boundary, 0.0f), std::nextafter(boundary, HUGE_VALF)}) {
      if (std::isinf(number)) continue;
      ASSERT_TRUE(rounds_to_nearest_even<TypeParam>(number));
      ASSERT_TRUE(rounds_to_nearest_even<TypeParam>(-number));
    }
  }
}

TYPED_TEST(Element, RoundsToNearestEvenAnywhere) {
  std::mt19937 generator(7);
  for (int i = 0; i < 400000; ++i) {
    const float number = la::detail::float_of(static_cast<std::uint32_t>(generator()));
    if (!std::isfinite(number)) continue;
    ASSERT_TRUE(rounds_to_nearest_even<TypeParam>(number));
  }
}

TYPED_TEST(Element, OverflowAndSpecialNumbers) {
  const format& f = format_of<TypeParam>();
  EXPECT_EQ(TypeParam(std::numeric_limits<float>::max()).bits, f.infinity);
  EXPECT_EQ(TypeParam(-std::numeric_limits<float>::max()).bits, 0x8000 | f.infinity);
  EXPECT_EQ(TypeParam(HUGE_VALF).bits, f.infinity);
  EXPECT_EQ(TypeParam(-HUGE_VALF).bits, 0x8000 | f.infinity);
  EXPECT_EQ(TypeParam(0.0f).bits, 0);
  EXPECT_EQ(TypeParam(-0.0f).bits, 0x8000);
  // A NaN whose payload lies in the bits that are cut off must not become an infinity.
  for (const std::uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu, 0xffffffffu})
    EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(la::detail::float_of(nan))))) << nan;
}

TEST(Element, LargestHalf) {
  EXPECT_EQ(static_cast<float>(la::half(65504.0f)), 65504.0f);
  EXPECT_EQ(static_cast<float>(la::half(65519.996f)), 65504.0f);
  EXPECT_EQ(static_cast<float>(la::half(65520.0f)), HUGE_VALF);
}

// Types that join by the trait.
namespace {

// A sign and an exponent, no mantissa: nothing that the library knows.
struct power_of_two {
  std::int8_t exponent = -128;  // -128: zero
  bool negative = false;

  power_of_two() = default;
  explicit power_of_two(float number) : negative(number < 0) {
    if (number != 0) exponent = static_cast<std::int8_t>(std::lrint(std::log2(std::fabs(number))));
  }
  float value() const { return exponent == -128 ? 0 : std::ldexp(negative ? -1.0f : 1.0f, exponent); }
};

// Somebody else's half.
struct other_half {
  std::uint16_t bits;
};

}  // namespace

template <>
struct lambda_attention::element_traits<power_of_two> {
  static constexpr auto kind = element_kind::custom;
  static float to_float(power_of_two number) { return number.value(); }
  static power_of_two from_float(float number) { return power_of_two(number); }
};
template <>
struct lambda_attention::element_traits<other_half> {
  static constexpr auto kind = element_kind::f16;
};

TEST(ElementTraits, CustomTypeIsReadAndWrittenThroughFloat) {
  const la::lambda_shape shape = la::lm_infinite(2, 5);
  const la::rope position(24);
  sequence<power_of_two> s(21, 4, 2, 24, 10);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());

  sequence<float> f(21, 4, 2, 24, 10);
  for (std::size_t i = 0; i < s.q.elements.size(); ++i) f.q.elements[i] = s.q.elements[i].value();
  for (std::size_t i = 0; i < s.k.elements.size(); ++i) f.k.elements[i] = s.k.elements[i].value();
  for (std::size_t i = 0; i < s.v.elements.size(); ++i) f.v.elements[i] = s.v.elements[i].value();
  la::attend(f.q.view(), f.k.view(), f.v.view(), shape, position, f.out.view());

  ASSERT_LE(nmse(f.out.elements, expected(f, shape, position)), 1e-11);
  for (std::size_t i = 0; i < f.out.elements.size(); ++i)
    ASSERT_EQ(s.out.elements[i].value(), power_of_two(f.out.elements[i]).value());
}

TEST(ElementTraits, CustomTypeBesideDouble) {
  const la::lambda_shape shape = la::lm_infinite(2, 5);
  const la::rope position(24);
  sequence<power_of_two, double, power_of_two, double> s(21, 4, 2, 24, 10);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());
  sequence<double> d(21, 4, 2, 24, 10);
  for (std::size_t i = 0; i < s.q.elements.size(); ++i) d.q.elements[i] = static_cast<double>(s.q.elements[i].value());
  for (std::size_t i = 0; i < s.v.elements.size(); ++i) d.v.elements[i] = static_cast<double>(s.v.elements[i].value());
  EXPECT_LE(nmse(s.out.elements, expected(d, shape, position)), 1e-24);
}

TEST(ElementTraits, ATypeWithKnownBitsOnlyNamesItsKind) {
  const la::lambda_shape shape = la::lm_infinite(2, 5);
  const la::rope position(24);
  sequence<la::half> s(21, 4, 2, 24, 10);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view());

  std::vector<other_half> q, out(s.out.elements.size());
  for (const la::half number : s.q.elements) q.push_back({number.bits});
  la::attend(la::token_major(q.data(), 21, 4, 24), s.k.view(), s.v.view(), shape, position,
             la::token_major(out.data(), 21, 4, 10));
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i].bits, s.out.elements[i].bits);
}
