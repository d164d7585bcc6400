// The baseline: 16-byte vectors in the compiler's own vector extension, on any processor. Included by kernels.hpp.

inline constexpr int vector_bytes = 16;
inline constexpr int num_registers = 16;
inline constexpr int tile_vectors = 2;

#include <lambda_attention/detail/vector_types.inl>

using floats = vector_of<float>;
using doubles = vector_of<double>;

template <class Vector>
LAMBDA_ATTENTION_INLINE Vector fused(Vector a, Vector b, Vector c) {
  return a * b + c;
}

// b where either is a NaN, as x86 has it; callers rely on that.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector maximum(Vector a, Vector b) {
  return a > b ? a : b;
}

template <class Mask>
LAMBDA_ATTENTION_INLINE bool any(Mask mask) {
  std::uint64_t halves[2];
  std::memcpy(halves, &mask, sizeof halves);
  return (halves[0] | halves[1]) != 0;
}

// x rounded to a whole number, for |x| <= 2000. It goes through an integer conversion, which -ffast-math cannot see
// through as it can through the addition of a magic number.
template <class Real, class Vector>
LAMBDA_ATTENTION_INLINE Vector round_by_conversion(Vector x) {
  const mask_of<Real> shifted = __builtin_convertvector(x + Real(2048.5), mask_of<Real>);
  return __builtin_convertvector((mask_of<Real>)((bits_of_lanes<Real>)shifted - 2048), Vector);
}
LAMBDA_ATTENTION_INLINE floats round_to_whole(floats x) { return round_by_conversion<float>(x); }
LAMBDA_ATTENTION_INLINE doubles round_to_whole(doubles x) { return round_by_conversion<double>(x); }

// x where scale_by_power takes it; what is lower counts as zero there too.
LAMBDA_ATTENTION_INLINE floats power_in_range(floats x) { return maximum(floats{} + (lowest_power<float> - 1), x); }
LAMBDA_ATTENTION_INLINE doubles power_in_range(doubles x) { return maximum(doubles{} + (lowest_power<double> - 1), x); }

// y * 2^n for a whole n of at most 127 (1023); zero below lowest_power.
template <class Real, class Vector>
LAMBDA_ATTENTION_INLINE Vector add_to_exponent(Vector y, Vector n, int mantissa_bits) {
  using bits = bits_of_lanes<Real>;
  const bits exponent = (bits) __builtin_convertvector(n, mask_of<Real>) << mantissa_bits;
  return (Vector)(((bits)y + exponent) & ~(bits)(n < lowest_power<Real>));
}
LAMBDA_ATTENTION_INLINE floats scale_by_power(floats y, floats n) { return add_to_exponent<float>(y, n, 23); }
LAMBDA_ATTENTION_INLINE doubles scale_by_power(doubles y, doubles n) { return add_to_exponent<double>(y, n, 52); }

// Four 16-bit numbers as the lower halves of whole numbers.
LAMBDA_ATTENTION_INLINE mask_of<float> load_lower_halves(const unsigned char* source) {
  typedef long long words __attribute__((vector_size(16)));
  typedef std::uint16_t halves __attribute__((vector_size(16)));
  long long four;
  std::memcpy(&four, source, sizeof four);
  return (mask_of<float>)shuffled<0, 8, 1, 9, 2, 10, 3, 11>((halves)words{four, 0}, halves{});
}

LAMBDA_ATTENTION_INLINE floats load_f16(const unsigned char* source) {
  const mask_of<float> wide = load_lower_halves(source);
  // A half is a float whose exponent is 112 too small, or a multiple of 2^-24: no float on the way is subnormal, for those
  // count as zero where the processor flushes them.
  const mask_of<float> magnitude = (wide & 0x7fff) << 13;
  const mask_of<float> sign = (wide & 0x8000) << 16;
  const floats small = __builtin_convertvector(wide & 0x3ff, floats) * 0x1p-24f;
  const floats number = magnitude < 0x00800000 ? small : (floats)(magnitude + 0x38000000);
  const mask_of<float> special = (magnitude >= 0x0f800000) & 0x7f800000;  // infinity or NaN
  return (floats)((mask_of<float>)number | special | sign);
}

LAMBDA_ATTENTION_INLINE floats load_bf16(const unsigned char* source) {
  return (floats)(load_lower_halves(source) << 16);
}

LAMBDA_ATTENTION_INLINE floats load_int8(const unsigned char* source) {
  typedef std::uint8_t bytes __attribute__((vector_size(16)));
  typedef std::uint16_t halves __attribute__((vector_size(16)));
  std::int32_t four;
  std::memcpy(&four, source, sizeof four);
  // Doubled and doubled again, so that each fills its lane, from whose top a shift brings its sign along.
  const bytes once = (bytes)mask_of<float>{four, 0, 0, 0};
  const halves twice = (halves)shuffled<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(once, once);
  const mask_of<float> wide = (mask_of<float>)shuffled<0, 8, 1, 9, 2, 10, 3, 11>(twice, twice);
  return __builtin_convertvector(wide >> 24, floats);
}
