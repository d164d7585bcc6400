// AVX-512 F, BW, DQ, VL. Included by kernels.hpp. The maskz_ forms with a full mask are the plain instructions; g++ 12
// takes the plain intrinsics for reads of an uninitialised variable, and would warn in the user's build.

inline constexpr int vector_bytes = 64;
inline constexpr int num_registers = 32;
inline constexpr int tile_vectors = 4;

#include <lambda_attention/detail/vector_types.inl>

using floats = vector_of<float>;
using doubles = vector_of<double>;

LAMBDA_ATTENTION_INLINE floats fused(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
LAMBDA_ATTENTION_INLINE doubles fused(doubles a, doubles b, doubles c) { return _mm512_fmadd_pd(a, b, c); }

// b where either is a NaN; callers rely on that.
LAMBDA_ATTENTION_INLINE floats maximum(floats a, floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
LAMBDA_ATTENTION_INLINE doubles maximum(doubles a, doubles b) { return _mm512_maskz_max_pd(0xff, a, b); }

LAMBDA_ATTENTION_INLINE bool any(mask_of<float> mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
LAMBDA_ATTENTION_INLINE bool any(mask_of<double> mask) { return _mm512_movepi64_mask((__m512i)mask) != 0; }

LAMBDA_ATTENTION_INLINE floats round_to_whole(floats x) {
  return _mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LAMBDA_ATTENTION_INLINE doubles round_to_whole(doubles x) {
  return _mm512_maskz_roundscale_pd(0xff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// scale_by_power takes any power.
LAMBDA_ATTENTION_INLINE floats power_in_range(floats x) { return x; }
LAMBDA_ATTENTION_INLINE doubles power_in_range(doubles x) { return x; }

// y * 2^n for a whole n of at most 127 (1023); zero below lowest_power, where it is not computed, so that no
// result is subnormal.
LAMBDA_ATTENTION_INLINE floats scale_by_power(floats y, floats n) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, _mm512_set1_ps(lowest_power<float>), _CMP_NLT_UQ), y, n);
}
LAMBDA_ATTENTION_INLINE doubles scale_by_power(doubles y, doubles n) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(n, _mm512_set1_pd(lowest_power<double>), _CMP_NLT_UQ), y, n);
}

LAMBDA_ATTENTION_INLINE floats load_f16(const unsigned char* source) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}

LAMBDA_ATTENTION_INLINE floats widened(__m256i bfloat16s) {
  return (floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bfloat16s), 16);
}
LAMBDA_ATTENTION_INLINE floats load_bf16(const unsigned char* source) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}

LAMBDA_ATTENTION_INLINE floats load_int8(const unsigned char* source) {
  const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, numbers));
}

// The 16-bit halves of the words of a and b, woven into one another within blocks of 16 bytes.
LAMBDA_ATTENTION_INLINE floats weave_lower_halves(floats a, floats b) {
  return (floats)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
}
LAMBDA_ATTENTION_INLINE floats weave_upper_halves(floats a, floats b) {
  return (floats)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
}

// The same of bytes.
LAMBDA_ATTENTION_INLINE mask_of<float> weave_lower_bytes(mask_of<float> a, mask_of<float> b) {
  return (mask_of<float>)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b);
}
LAMBDA_ATTENTION_INLINE mask_of<float> weave_upper_bytes(mask_of<float> a, mask_of<float> b) {
  return (mask_of<float>)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b);
}
