#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/scratch.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace la = lambda_attention;
using la::detail::scratch_arena;

TEST(ScratchArena, HandsOutAlignedPiecesThatDoNotOverlap) {
  la::detail::buffer<unsigned char> memory(1024);
  scratch_arena arena(memory.data());
  float* const a = arena.take<float>(3);
  double* const b = arena.take<double>(9);
  float* const nothing = arena.take<float>(0);
  float* const c = arena.take<float>(1);
  for (const void* piece : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(c)})
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece) % la::detail::buffer_alignment, 0u);
  EXPECT_EQ(static_cast<void*>(a), memory.data());
  EXPECT_GE(static_cast<void*>(b), static_cast<void*>(a + 3));
  EXPECT_GE(static_cast<void*>(c), static_cast<void*>(b + 9));
  EXPECT_EQ(nothing, c);
  EXPECT_GE(memory.data() + arena.used(), reinterpret_cast<unsigned char*>(c + 1));
}

TEST(ScratchArena, WithoutMemoryCountsTheSame) {
  la::detail::buffer<unsigned char> memory(1024);
  scratch_arena arena(memory.data()), counter(nullptr);
  for (const la::index_t count : {1, 16, 17, 0, 40}) {
    arena.take<float>(count);
    EXPECT_EQ(counter.take<float>(count), nullptr);
    EXPECT_EQ(counter.used(), arena.used());
  }
}
