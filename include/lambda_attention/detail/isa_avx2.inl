// AVX2, FMA, F16C. Included by kernels.hpp. Compiler builtins instead of the intrinsics: where the unit is compiled for
// AVX-512, the intrinsics are AVX-512 functions, which cannot be inlined here.

inline constexpr int vector_bytes = 32;
inline constexpr int num_registers = 16;
inline constexpr int tile_vectors = 2;

#include <lambda_attention/detail/vector_types.inl>

using floats = vector_of<float>;
using doubles = vector_of<double>;

LAMBDA_ATTENTION_INLINE floats fused(floats a, floats b, floats c) { return __builtin_ia32_vfmaddps256(a, b, c); }
LAMBDA_ATTENTION_INLINE doubles fused(doubles a, doubles b, doubles c) { return __builtin_ia32_vfmaddpd256(a, b, c); }

// b where either is a NaN; callers rely on that.
LAMBDA_ATTENTION_INLINE floats maximum(floats a, floats b) { return __builtin_ia32_maxps256(a, b); }
LAMBDA_ATTENTION_INLINE doubles maximum(doubles a, doubles b) { return __builtin_ia32_maxpd256(a, b); }

LAMBDA_ATTENTION_INLINE bool any(mask_of<float> mask) { return __builtin_ia32_movmskps256((floats)mask) != 0; }
LAMBDA_ATTENTION_INLINE bool any(mask_of<double> mask) { return __builtin_ia32_movmskpd256((doubles)mask) != 0; }

LAMBDA_ATTENTION_INLINE floats round_to_whole(floats x) { return __builtin_ia32_roundps256(x, 0); }
LAMBDA_ATTENTION_INLINE doubles round_to_whole(doubles x) { return __builtin_ia32_roundpd256(x, 0); }

// x where scale_by_power takes it; what is lower counts as zero there too.
LAMBDA_ATTENTION_INLINE floats power_in_range(floats x) { return maximum(floats{} + (lowest_power<float> - 1), x); }
LAMBDA_ATTENTION_INLINE doubles power_in_range(doubles x) { return maximum(doubles{} + (lowest_power<double> - 1), x); }

// y * 2^n for a whole n of at most 127 (1023); zero below lowest_power.
LAMBDA_ATTENTION_INLINE floats scale_by_power(floats y, floats n) {
  using bits = bits_of_lanes<float>;
  const bits exponent = (bits) __builtin_convertvector(n, mask_of<float>) << 23;
  return (floats)(((bits)y + exponent) & ~(bits)(n < lowest_power<float>));
}
LAMBDA_ATTENTION_INLINE doubles scale_by_power(doubles y, doubles n) {
  // AVX2 converts no double to a 64-bit integer: the last bits of n + 2^52 + 2^51 are the integer. n is opaque to the
  // optimiser (it comes from a rounding instruction), so -ffast-math has nothing to reassociate.
  using bits = bits_of_lanes<double>;
  const bits exponent = (bits)(n + 0x1.8p52) << 52;
  return (doubles)(((bits)y + exponent) & ~(bits)(n < lowest_power<double>));
}

LAMBDA_ATTENTION_INLINE floats load_f16(const unsigned char* source) {
  typedef short halves __attribute__((vector_size(16)));
  halves bits;
  std::memcpy(&bits, source, sizeof bits);
  return __builtin_ia32_vcvtph2ps256(bits);
}

// Widening loads: Clang has them as a conversion, which g++ 12 takes apart element by element; g++ has builtins, which
// Clang dropped.
LAMBDA_ATTENTION_INLINE floats load_bf16(const unsigned char* source) {
  typedef std::uint16_t narrow __attribute__((vector_size(16)));
  narrow bits;
  std::memcpy(&bits, source, sizeof bits);
#if defined(__clang__)
  const mask_of<float> wide = __builtin_convertvector(bits, mask_of<float>);
#else
  typedef short builtin_operand __attribute__((vector_size(16)));
  const mask_of<float> wide = (mask_of<float>)__builtin_ia32_pmovzxwd256((builtin_operand)bits);
#endif
  return (floats)(wide << 16);
}

LAMBDA_ATTENTION_INLINE floats load_int8(const unsigned char* source) {
#if defined(__clang__)
  typedef std::int8_t narrow __attribute__((vector_size(8)));
  narrow numbers;
  std::memcpy(&numbers, source, sizeof numbers);
  const mask_of<float> wide = __builtin_convertvector(numbers, mask_of<float>);
#else
  // Eight bytes written to memory and sixteen read again would wait for one another.
  typedef long long two_words __attribute__((vector_size(16)));
  typedef char builtin_operand __attribute__((vector_size(16)));
  long long numbers;
  std::memcpy(&numbers, source, sizeof numbers);
  const mask_of<float> wide = (mask_of<float>)__builtin_ia32_pmovsxbd256((builtin_operand)two_words{numbers, 0});
#endif
  return __builtin_convertvector(wide, floats);
}
