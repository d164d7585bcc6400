// For projects with many units: include this in every unit that calls the library, and kernels_here.hpp in exactly one of
// the same flags. The kernels, most of the library's compile time, are then compiled once.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

extern template struct baseline::kernels<float>;
extern template struct baseline::kernels<double>;
#if defined(__x86_64__)
extern template struct avx2::kernels<float>;
extern template struct avx2::kernels<double>;
extern template struct avx512::kernels<float>;
extern template struct avx512::kernels<double>;
extern template struct avx512::bytes::kernels<float>;
extern template struct avx512::pairs::kernels<float>;
extern template struct avx512::pairs::matrices::kernels<float>;
#endif

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
