// The name of the inline namespace that everything lives in. It spells what the compiler may use in this translation unit: a
// digit for each set of instructions that some processors have and others lack, then the flags that change what code means.
// Two units compiled differently then share no weak symbol, so the linker cannot hand the code of one to the other.
//
//     unit_sse10000000_avx00000000_avx512_00000000_apx0_strict_throws        -msse3
#pragma once

#define LAMBDA_ATTENTION_PASTE(a, b) LAMBDA_ATTENTION_PASTE_OF(a, b)
#define LAMBDA_ATTENTION_PASTE_OF(a, b) a##b

// 1 where a macro is defined as 1, 0 where it is not defined: of the arguments of SECOND, the first is then ", 1" or not.
#define LAMBDA_ATTENTION_DIGIT(value) LAMBDA_ATTENTION_DIGIT_OF(value)
#define LAMBDA_ATTENTION_DIGIT_OF(value) LAMBDA_ATTENTION_SECOND(LAMBDA_ATTENTION_COMMA_##value 1, 0, )
#define LAMBDA_ATTENTION_COMMA_1 ,
#define LAMBDA_ATTENTION_SECOND(...) LAMBDA_ATTENTION_SECOND_OF(__VA_ARGS__)
#define LAMBDA_ATTENTION_SECOND_OF(first, second, ...) second

#define LAMBDA_ATTENTION_DIGITS(a, b, c, d, e, f, g, h) \
  LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_FOUR_DIGITS(a, b, c, d), LAMBDA_ATTENTION_FOUR_DIGITS(e, f, g, h))
#define LAMBDA_ATTENTION_FOUR_DIGITS(a, b, c, d)                                                       \
  LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_DIGIT(a), LAMBDA_ATTENTION_DIGIT(b)), \
                         LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_DIGIT(c), LAMBDA_ATTENTION_DIGIT(d)))

#if defined(__x86_64__)
#define LAMBDA_ATTENTION_UNIT_SSE \
  LAMBDA_ATTENTION_DIGITS(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__, __POPCNT__, __LZCNT__, __BMI__, __BMI2__)
#define LAMBDA_ATTENTION_UNIT_AVX \
  LAMBDA_ATTENTION_DIGITS(__AVX__, __F16C__, __FMA__, __AVX2__, __AVXVNNI__, __MOVBE__, __FMA4__, __XOP__)
#define LAMBDA_ATTENTION_UNIT_AVX512                                                                                \
  LAMBDA_ATTENTION_DIGITS(__AVX512F__, __AVX512BW__, __AVX512VL__, __AVX512VBMI__, __AVX512VNNI__, __AVX512VBMI2__, \
                          __AVX512BF16__, __AVX512FP16__)
#define LAMBDA_ATTENTION_UNIT_ISA                                                                                   \
  LAMBDA_ATTENTION_PASTE(                                                                                           \
      LAMBDA_ATTENTION_PASTE(sse, LAMBDA_ATTENTION_UNIT_SSE),                                                       \
      LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_PASTE(_avx, LAMBDA_ATTENTION_UNIT_AVX),                               \
                             LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_PASTE(_avx512_, LAMBDA_ATTENTION_UNIT_AVX512), \
                                                    LAMBDA_ATTENTION_PASTE(_apx, LAMBDA_ATTENTION_DIGIT(__APX_F__)))))
#elif defined(__aarch64__)
#define LAMBDA_ATTENTION_UNIT_ISA                                                                              \
  LAMBDA_ATTENTION_PASTE(                                                                                      \
      LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_PASTE(mops, LAMBDA_ATTENTION_DIGIT(__ARM_FEATURE_MOPS)), _neon), \
      LAMBDA_ATTENTION_DIGITS(__ARM_FEATURE_ATOMICS, __ARM_FEATURE_COMPLEX, __ARM_FEATURE_DOTPROD,             \
                              __ARM_FEATURE_FP16_VECTOR_ARITHMETIC, __ARM_FEATURE_MATMUL_INT8,                 \
                              __ARM_FEATURE_BF16_VECTOR_ARITHMETIC, __ARM_FEATURE_SVE, __ARM_FEATURE_SVE2))
#else
#define LAMBDA_ATTENTION_UNIT_ISA plain
#endif

#if defined(__FAST_MATH__)
#define LAMBDA_ATTENTION_UNIT_MATH _fast_math
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#define LAMBDA_ATTENTION_UNIT_MATH _finite_math
#else
#define LAMBDA_ATTENTION_UNIT_MATH _strict
#endif

#if defined(__cpp_exceptions)
#define LAMBDA_ATTENTION_UNIT_ERRORS _throws
#else
#define LAMBDA_ATTENTION_UNIT_ERRORS _aborts
#endif

#define LAMBDA_ATTENTION_UNIT                                                      \
  LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_PASTE(unit_, LAMBDA_ATTENTION_UNIT_ISA), \
                         LAMBDA_ATTENTION_PASTE(LAMBDA_ATTENTION_UNIT_MATH, LAMBDA_ATTENTION_UNIT_ERRORS))
