// The instruction sets that the kernels are compiled for.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/matrix_registers.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Every set includes the ones before it. `automatic` is the fastest that this machine has; see isa().
enum class isa_level {
  automatic,
  baseline,     ///< SSE2 on x86-64, NEON on AArch64, what the compiler makes of 16-byte vectors elsewhere
  avx2,         ///< AVX2, FMA and F16C
  avx512,       ///< AVX-512 F, BW, DQ and VL
  avx512_vnni,  ///< AVX-512 VNNI: products of fours of bytes
  avx512_bf16,  ///< AVX-512 BF16: products of pairs of bfloat16
  amx_bf16,  ///< AMX: products of matrices of bfloat16, for head dimensions that are multiples of 32; else avx512_vnni
};

namespace detail {

// The highest below amx_bf16.
inline isa_level highest_isa_of_vectors() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512vnni")) return isa_level::avx512;
    return __builtin_cpu_supports("avx512bf16") ? isa_level::avx512_bf16 : isa_level::avx512_vnni;
  }
  // Every processor with AVX2 and FMA has F16C; compilers of this age have no word to ask for it.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return isa_level::avx2;
#endif
  return isa_level::baseline;
}

inline bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// The fastest below amx_bf16. Products of pairs take Intel's processors four times as long as those of floats, for twice as
// many numbers; measured on Sapphire Rapids.
inline isa_level isa_of_vectors() {
  const isa_level highest = highest_isa_of_vectors();
  return highest == isa_level::avx512_bf16 && is_intel() ? isa_level::avx512_vnni : highest;
}

inline bool has_matrices() { return highest_isa_of_vectors() == isa_level::avx512_bf16 && matrix_registers_are_ours(); }

}  // namespace detail

/// The highest instruction set that this machine has. Any up to it may be asked for.
inline isa_level highest_isa() {
  return detail::has_matrices() ? isa_level::amx_bf16 : detail::highest_isa_of_vectors();
}

/// The instruction set that `automatic` takes: the highest, but for avx512_bf16 on Intel's processors, which multiply pairs more
/// slowly than floats.
inline isa_level isa() { return detail::has_matrices() ? isa_level::amx_bf16 : detail::isa_of_vectors(); }

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
    case isa_level::avx512_vnni:
      return "avx512_vnni";
    case isa_level::avx512_bf16:
      return "avx512_bf16";
    case isa_level::amx_bf16:
      return "amx_bf16";
  }
  return "?";
}

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
