#include <lambda_attention/detail/matrix_registers.hpp>
#include <lambda_attention/isa.hpp>

#include <gtest/gtest.h>

#include <cerrno>

namespace la = lambda_attention;

// What a caller had in errno stays there, whatever the system answers; and the answer stays.
TEST(MatrixRegisters, AreAskedForOnceAndWithoutATrace) {
  errno = 42;
  const bool ours = la::detail::ask_for_matrix_registers();
  EXPECT_EQ(errno, 42);
  EXPECT_EQ(la::detail::matrix_registers_are_ours(), ours);
  EXPECT_EQ(la::detail::ask_for_matrix_registers(), ours);
}

TEST(MatrixRegisters, AreWhatTheHighestSetTakes) {
  const bool has_pairs = la::detail::highest_isa_of_vectors() == la::isa_level::avx512_bf16;
  EXPECT_EQ(la::highest_isa() == la::isa_level::amx_bf16, has_pairs && la::detail::matrix_registers_are_ours());
}
