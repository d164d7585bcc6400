// The instruction sets that the kernels are compiled for.
#pragma once

#include <lambda_attention/config.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Every set includes the ones before it. `automatic` is the best that this machine has.
enum class isa_level {
  automatic,
  baseline,     ///< SSE2 on x86-64, NEON on AArch64, what the compiler makes of 16-byte vectors elsewhere
  avx2,         ///< AVX2, FMA and F16C
  avx512,       ///< AVX-512 F, BW, DQ and VL
  avx512_bf16,  ///< AVX-512 BF16 and VNNI: products of pairs of bfloat16, and of fours of bytes
};

/// The best instruction set that this machine runs.
inline isa_level isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? isa_level::avx512_bf16
                                                                                        : isa_level::avx512;
  // Every processor with AVX2 and FMA has F16C; compilers of this age have no word to ask for it.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return isa_level::avx2;
#endif
  return isa_level::baseline;
}

constexpr const char* name_of(isa_level level) {
  switch (level) {
    case isa_level::automatic:
      return "automatic";
    case isa_level::baseline:
      return "baseline";
    case isa_level::avx2:
      return "avx2";
    case isa_level::avx512:
      return "avx512";
    case isa_level::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
