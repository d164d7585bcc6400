// What AVX-512 VNNI adds to AVX-512, inside whose namespace this is. Included by kernels.hpp.

// sum += the products of the four bytes of each word, those of a without a sign and those of b with one.
LAMBDA_ATTENTION_INLINE mask_of<float> add_products_of_bytes(mask_of<float> a, mask_of<float> b, mask_of<float> sum) {
  return (mask_of<float>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

LAMBDA_ATTENTION_INLINE mask_of<float> broadcast_four_bytes(const unsigned char* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return mask_of<float>{} + word;
}
