// Rows of signed bytes under one scale.
#pragma once

#include <lambda_attention/storage.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

namespace detail {

/// The scale of a row whose largest magnitude is `largest`. Zero where a division by it would overflow: such a row is as good
/// as zero. For the largest floats the quotient may be rounded up to where 127 times it overflows.
inline float int8_scale(float largest) {
  const float quotient = largest / 127;
  const float scale = is_finite(static_cast<double>(quotient * 127)) ? quotient : quotient * (1 - 0x1p-23f);
  return scale < 0x1p-120f ? 0 : scale;
}

}  // namespace detail

/// element = scale * byte, scale = (largest magnitude of the row) / 127. The error of an element is at most scale / 2; a row
/// whose scale would be below 2^-120 is stored as zeros, one with a NaN or an infinity as NaN.
struct int8 {
  using compute_type = float;
  static constexpr row_format format = row_format::int8;
  static constexpr index_t row_bytes(index_t dim) { return dim; }

  static float encode(const float* row, index_t dim, void* stored) {
    std::int8_t* const bytes = static_cast<std::int8_t*>(stored);
    float largest = 0;
    bool finite = true;
    for (index_t d = 0; d < dim; ++d) {
      const float magnitude = row[d] < 0 ? -row[d] : row[d];
      finite = finite && detail::is_finite(static_cast<double>(row[d]));
      largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = finite ? detail::int8_scale(largest) : 0;
    for (index_t d = 0; d < dim; ++d)
      bytes[d] = !finite      ? std::int8_t{1}
                 : scale == 0 ? std::int8_t{0}
                              : static_cast<std::int8_t>(__builtin_lrintf(row[d] / scale));
    return finite ? scale : __builtin_nanf("");
  }
  static void decode(const void* stored, float scale, index_t dim, float* row) {
    const std::int8_t* const bytes = static_cast<const std::int8_t*>(stored);
    for (index_t d = 0; d < dim; ++d) row[d] = scale * static_cast<float>(bytes[d]);
  }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
