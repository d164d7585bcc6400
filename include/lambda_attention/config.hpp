// Version, the index type, the library's namespaces and how it refuses bad input.
#pragma once

#include <lambda_attention/detail/unit.hpp>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(_MSC_VER) && !defined(__clang__)
#error "lambda_attention needs GCC or Clang: its kernels use vector extensions and per-function targets that MSVC lacks"
#endif

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 11
#error "lambda_attention needs GCC 11 or newer, or Clang: some kernels are for AMX, which GCC 10 does not know"
#endif

#if defined(__clang__) && !defined(__apple_build_version__) && __clang_major__ < 14
#error "lambda_attention needs Clang 14 or newer, or GCC: earlier ones do not know all instructions of its kernels"
#endif

#if __SIZEOF_POINTER__ < 8
#error "lambda_attention needs a 64-bit target: it counts bytes in 64 bits, and asks memory for as many"
#endif

#define LAMBDA_ATTENTION_VERSION_MAJOR 0
#define LAMBDA_ATTENTION_VERSION_MINOR 1
#define LAMBDA_ATTENTION_VERSION_PATCH 0

#if defined(__cpp_exceptions)
#include <stdexcept>
#define LAMBDA_ATTENTION_EXCEPTIONS 1
#else
#define LAMBDA_ATTENTION_EXCEPTIONS 0
#endif

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// A count or an index of tokens, heads or elements.
using index_t = std::int64_t;

/// The largest index: a window, a number of sinks or a distance limit of this size means "no bound".
inline constexpr index_t unlimited = INT64_MAX;

/// The largest head_dim and v_head_dim that the kernels take.
inline constexpr index_t max_head_dim = 512;

/// Where exceptions are off (-fno-exceptions), a refused call hands its message to this function; when it returns, the
/// program aborts. It is never called where exceptions are on: there a refusal throws std::invalid_argument.
using failure_handler = void (*)(const char* message);

namespace detail {
#if !LAMBDA_ATTENTION_EXCEPTIONS
inline void print_failure(const char* message) { std::fprintf(stderr, "lambda_attention: %s\n", message); }
inline failure_handler current_failure_handler = print_failure;
#endif

/// Reports bad input, printf-style. Nothing has been written when this is called.
[[noreturn]] __attribute__((format(printf, 1, 2), cold, noinline)) inline void refuse(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
#if LAMBDA_ATTENTION_EXCEPTIONS
  throw std::invalid_argument(message);
#else
  current_failure_handler(message);
  std::abort();
#endif
}

// index_t in a printf format, whatever the platform calls a 64-bit integer.
constexpr long long printable(index_t number) { return number; }

// Not std::min and std::max: an instantiation of a std template is a weak symbol that units with other flags share.
constexpr index_t min(index_t a, index_t b) { return a < b ? a : b; }
constexpr index_t max(index_t a, index_t b) { return a > b ? a : b; }

/// Not std::isfinite, which is an inline function of std, and which -ffast-math takes to be always true.
inline bool is_finite(double number) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  return ((bits >> 52) & 0x7ff) != 0x7ff;
}

// What scales, slopes, biases and factors have to be: far from where products with them overflow a float.
inline bool is_within(double number, double largest) {
  return is_finite(number) && number >= -largest && number <= largest;
}
inline constexpr double largest_factor = 1e30;

constexpr index_t divide_up(index_t count, index_t divisor) { return (count + divisor - 1) / divisor; }
constexpr index_t round_up(index_t count, index_t multiple) { return divide_up(count, multiple) * multiple; }
/// Towards zero.
constexpr index_t round_down(index_t count, index_t multiple) { return count / multiple * multiple; }

/// a + b for b >= 0, stopping at `unlimited`.
constexpr index_t saturating_add(index_t a, index_t b) { return a > unlimited - b ? unlimited : a + b; }

/// True, and *product = a * b, when a * b fits.
constexpr bool multiply(index_t a, index_t b, index_t* product) { return !__builtin_mul_overflow(a, b, product); }
}  // namespace detail

#if !LAMBDA_ATTENTION_EXCEPTIONS
/// Replaces the failure handler of this unit's flags; returns the one before.
inline failure_handler set_failure_handler(failure_handler handler) {
  const failure_handler before = detail::current_failure_handler;
  detail::current_failure_handler = handler;
  return before;
}
#endif

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
