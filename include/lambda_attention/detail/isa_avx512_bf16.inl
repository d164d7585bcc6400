// What AVX-512 BF16 adds to AVX-512, inside whose namespace this is. Included by kernels.hpp.

// sum += a0 * b0 + a1 * b1 for the pair in each word. Denormal numbers count as zero.
LAMBDA_ATTENTION_INLINE floats add_products_of_pairs(floats a, floats b, floats sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// 32 numbers, rounded to nearest, in order.
LAMBDA_ATTENTION_INLINE floats rounded(floats first, floats second) {
  return (floats)_mm512_cvtne2ps_pbh(second, first);
}

// Each number, rounded to nearest.
LAMBDA_ATTENTION_INLINE floats rounded_number(floats x) { return widened((__m256i)_mm512_cvtneps_pbh(x)); }

// Words of first[l] and second[l].
LAMBDA_ATTENTION_INLINE floats pairs_of(floats first, floats second) {
  typedef std::uint16_t halves __attribute__((vector_size(64)));
  const halves h = (halves)rounded(first, second);
  return (floats)shuffled<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                          13, 29, 14, 30, 15, 31>(h, h);
}
