// Compiles the kernels into this unit, for units that include kernels_elsewhere.hpp.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/kernels_elsewhere.hpp>  // Clang refuses it after the definitions

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

template struct baseline::kernels<float>;
template struct baseline::kernels<double>;
#if defined(__x86_64__)
template struct avx2::kernels<float>;
template struct avx2::kernels<double>;
template struct avx512::kernels<float>;
template struct avx512::kernels<double>;
template struct avx512::bytes::kernels<float>;
template struct avx512::pairs::kernels<float>;
template struct avx512::pairs::matrices::kernels<float>;
#endif

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
