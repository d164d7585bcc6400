// Leave to use AMX. A process has to ask Linux for it before it touches the matrix registers, for they are large: a thread that
// has used them takes 8 KiB more where its registers are saved.
#pragma once

#include <lambda_attention/config.hpp>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#endif

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

inline bool ask_for_matrix_registers() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned amx_bf16 = 1U << 22, amx_tile = 1U << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  const int errno_before = errno;
  const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  errno = errno_before;
  return granted;
#else
  return false;
#endif
}

// Whether this machine has them and this process may use them. Asks once.
inline bool matrix_registers_are_ours() {
  static const bool ours = ask_for_matrix_registers();
  return ours;
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
