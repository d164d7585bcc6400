#include <lambda_attention/detail/buffer.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../refusal.hpp"

namespace la = lambda_attention;
using la::detail::buffer;

TEST(Buffer, IsZerosAtFirstAndAligned) {
  for (const la::index_t size : {1, 3, 64, 1000}) {
    const buffer<float> b(size);
    EXPECT_EQ(b.size(), size);
    EXPECT_EQ(b.bytes(), static_cast<std::size_t>(4 * size));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % la::detail::buffer_alignment, 0u);
    EXPECT_TRUE(std::all_of(b.data(), b.data() + size, [](float x) { return x == 0; }));
  }
}

TEST(Buffer, BeginsWithAHugePageWhereItHasOne) {
  constexpr la::index_t page = la::detail::huge_page;
  for (const la::index_t size : {page, page + 1, 3 * page - 1}) {
    buffer<char> b(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % page, 0u);
    b[size - 1] = 1;
    const buffer<char> copy = b;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(copy.data()) % page, 0u);
    EXPECT_EQ(copy[size - 1], 1);
  }
}

TEST(Buffer, MayBeEmpty) {
  EXPECT_EQ(buffer<int>().data(), nullptr);
  const buffer<int> empty(0);
  EXPECT_EQ(empty.data(), nullptr);
  EXPECT_EQ(empty.size(), 0);
  const buffer<int> copy = empty;  // NOLINT(performance-unnecessary-copy-initialization)
  EXPECT_EQ(copy.size(), 0);
}

TEST(Buffer, CopiesAreIndependent) {
  buffer<int> a(3);
  a[0] = 1;
  a[2] = 3;
  buffer<int> b = a;
  a[0] = 7;
  EXPECT_EQ(b.size(), 3);
  EXPECT_EQ(b[0], 1);
  EXPECT_EQ(b[1], 0);
  EXPECT_EQ(b[2], 3);
  buffer<int> c(10);
  c = b;
  EXPECT_EQ(c.size(), 3);
  EXPECT_EQ(c[2], 3);
  buffer<int>& itself = c;
  c = itself;
  EXPECT_EQ(c[2], 3);
}

TEST(Buffer, MovesTakeTheMemory) {
  buffer<int> a(3);
  a[1] = 5;
  const int* const data = a.data();
  buffer<int> b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.size(), 0);  // NOLINT(bugprone-use-after-move)
  buffer<int> c(2);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c[1], 5);
  EXPECT_TRUE(std::is_nothrow_move_constructible_v<buffer<int>>);
}

TEST(Buffer, RefusesSizesThatAreNone) {
  EXPECT_EQ(refusal([] { buffer<int>(-1); }), "buffer: -1 elements do not fit");
  EXPECT_EQ(refusal([] { buffer<double>(la::unlimited / 4); }), "buffer: 2305843009213693951 elements do not fit");
}
