// NEON of AArch64, where every processor has it: 16-byte vectors, and 32 registers for them. Included by kernels.hpp.

inline constexpr int vector_bytes = 16;
inline constexpr int num_registers = 32;
inline constexpr int tile_vectors = 4;

#include <lambda_attention/detail/vector_types.inl>

using floats = vector_of<float>;
using doubles = vector_of<double>;

LAMBDA_ATTENTION_INLINE floats fused(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
LAMBDA_ATTENTION_INLINE doubles fused(doubles a, doubles b, doubles c) { return vfmaq_f64(c, a, b); }

// b where either is a NaN; callers rely on that, and vmaxq_f32 gives the NaN.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector maximum(Vector a, Vector b) {
  return a > b ? a : b;
}

template <class Mask>
LAMBDA_ATTENTION_INLINE bool any(Mask mask) {
  return vmaxvq_u32((uint32x4_t)mask) != 0;
}

LAMBDA_ATTENTION_INLINE floats round_to_whole(floats x) { return vrndnq_f32(x); }
LAMBDA_ATTENTION_INLINE doubles round_to_whole(doubles x) { return vrndnq_f64(x); }

// x where scale_by_power takes it; what is lower counts as zero there too.
LAMBDA_ATTENTION_INLINE floats power_in_range(floats x) { return maximum(floats{} + (lowest_power<float> - 1), x); }
LAMBDA_ATTENTION_INLINE doubles power_in_range(doubles x) { return maximum(doubles{} + (lowest_power<double> - 1), x); }

// y * 2^n for a whole n of at most 127 (1023); zero below lowest_power.
LAMBDA_ATTENTION_INLINE floats scale_by_power(floats y, floats n) {
  using bits = bits_of_lanes<float>;
  const bits exponent = (bits)vshlq_n_s32(vcvtq_s32_f32(n), 23);
  return (floats)(((bits)y + exponent) & ~(bits)(n < lowest_power<float>));
}
LAMBDA_ATTENTION_INLINE doubles scale_by_power(doubles y, doubles n) {
  using bits = bits_of_lanes<double>;
  const bits exponent = (bits)vshlq_n_s64(vcvtq_s64_f64(n), 52);
  return (doubles)(((bits)y + exponent) & ~(bits)(n < lowest_power<double>));
}

LAMBDA_ATTENTION_INLINE floats load_f16(const unsigned char* source) {
  return vcvt_f32_f16((float16x4_t)vld1_u8(source));
}
LAMBDA_ATTENTION_INLINE floats load_bf16(const unsigned char* source) {
  return (floats)vshll_n_u16((uint16x4_t)vld1_u8(source), 16);
}
LAMBDA_ATTENTION_INLINE floats load_int8(const unsigned char* source) {
  std::int32_t four;
  std::memcpy(&four, source, sizeof four);
  const int16x8_t wide = vmovl_s8((int8x8_t)vdup_n_s32(four));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
