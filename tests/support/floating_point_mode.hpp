// The processor's mode of floating-point arithmetic, as somebody else's code may have left it.
#pragma once

#include <cfenv>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace support {

/// `flush_to_zero`: numbers that are not normal count as zero, as operands and as results.
enum class float_mode { nearest, upward, downward, toward_zero, flush_to_zero };
inline constexpr float_mode float_modes[] = {float_mode::nearest, float_mode::upward, float_mode::downward,
                                             float_mode::toward_zero, float_mode::flush_to_zero};

inline const char* name_of(float_mode mode) {
  switch (mode) {
    case float_mode::nearest:
      return "to nearest";
    case float_mode::upward:
      return "upward";
    case float_mode::downward:
      return "downward";
    case float_mode::toward_zero:
      return "toward zero";
    case float_mode::flush_to_zero:
      return "flush to zero";
  }
  return "?";
}

/// The mode is this thread's for as long as this lives.
class scoped_float_mode {
 public:
  explicit scoped_float_mode(float_mode mode) {
    std::fegetenv(&before_);
    if (mode == float_mode::flush_to_zero) {
      flush_to_zero();
    } else {
      std::fesetround(direction_of(mode));
    }
  }
  scoped_float_mode(const scoped_float_mode&) = delete;
  scoped_float_mode& operator=(const scoped_float_mode&) = delete;
  ~scoped_float_mode() { std::fesetenv(&before_); }

 private:
  static int direction_of(float_mode mode) {
    return mode == float_mode::upward     ? FE_UPWARD
           : mode == float_mode::downward ? FE_DOWNWARD
           : mode == float_mode::nearest  ? FE_TONEAREST
                                          : FE_TOWARDZERO;
  }
  static void flush_to_zero() {
#if defined(__x86_64__)
    constexpr unsigned results = 0x8000, operands = 0x0040;  // FTZ, DAZ
    _mm_setcsr(_mm_getcsr() | results | operands);
#elif defined(__aarch64__)
    std::uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | std::uint64_t{1} << 24));  // FZ
#endif
  }

  std::fenv_t before_;
};

}  // namespace support
