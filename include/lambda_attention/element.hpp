// Element types of tensors: float, double, two 16-bit types of our own, and the trait by which other types join.
#pragma once

#include <lambda_attention/config.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

namespace detail {
inline std::uint32_t bits_of(float number) {
  std::uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// Rounds to nearest even; too large becomes infinity, a NaN stays a NaN.
inline std::uint16_t bfloat16_bits(float number) {
  const std::uint32_t bits = bits_of(number);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  if (is_nan) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float float_of_bfloat16(std::uint16_t bits) { return float_of(std::uint32_t{bits} << 16); }

inline std::uint16_t half_bits(float number) {
  const std::uint32_t bits = bits_of(number);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x1ffu);  // NaN, quiet
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and more round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is 2^-24, lets the FPU do the rounding.
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}
inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x0400u) {
    const float number = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -number : number;
  }
  return float_of(sign | ((magnitude << 13) + 0x38000000u));
}
}  // namespace detail

/// IEEE binary16. Conversion from float rounds to nearest even.
struct half {
  std::uint16_t bits;
  half() = default;
  explicit half(float number) : bits(detail::half_bits(number)) {}
  explicit operator float() const { return detail::float_of_half(bits); }
};

/// The upper half of a float. Conversion from float rounds to nearest even.
struct bfloat16 {
  std::uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float number) : bits(detail::bfloat16_bits(number)) {}
  explicit operator float() const { return detail::float_of_bfloat16(bits); }
};

/// How the bits of an element are read. `custom` elements go through element_traits::to_float and from_float.
enum class element_kind { f32, f64, f16, bf16, custom };

/// Specialise this to let a type of your own stand in a tensor_view. A type with the bits of one that the library knows
/// only names its kind, and is aligned as that is:
///
///     template <> struct lambda_attention::element_traits<my_half> { static constexpr auto kind = element_kind::f16; };
///
/// Any other type says `kind = element_kind::custom` and gives `static float to_float(T)` and `static T from_float(float)`,
/// which must not throw, and may run in several threads at once.
template <class T>
struct element_traits {
  static_assert(sizeof(T) == 0,
                "lambda_attention: tensors hold float, double, half, bfloat16, or a type with an element_traits "
                "specialisation (eigen.hpp has those of Eigen::half and Eigen::bfloat16)");
};
template <>
struct element_traits<float> {
  static constexpr element_kind kind = element_kind::f32;
};
template <>
struct element_traits<double> {
  static constexpr element_kind kind = element_kind::f64;
};
template <>
struct element_traits<half> {
  static constexpr element_kind kind = element_kind::f16;
};
template <>
struct element_traits<bfloat16> {
  static constexpr element_kind kind = element_kind::bf16;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
