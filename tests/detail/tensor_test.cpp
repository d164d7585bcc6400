// The geometry of memory: which tensors share bytes, and which rows overlap. Against lists of all their bytes.
#include <lambda_attention/detail/tensor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "../refusal.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::detail::tensor;

namespace {

alignas(16) unsigned char memory[4096];

// A tensor of `element_size` bytes an element, as erase() makes it.
tensor made(index_t first_byte, index_t tokens, index_t heads, index_t dim, index_t token_stride, index_t head_stride,
            index_t element_size) {
  tensor t;
  t.data = memory + first_byte;
  t.tokens = tokens;
  t.heads = heads;
  t.dim = dim;
  t.token_stride = tokens > 1 ? token_stride : 0;
  t.head_stride = heads > 1 ? head_stride : 0;
  t.element_size = element_size;
  return t;
}

// Every byte of a tensor, as often as it is part of a row, in order.
std::vector<index_t> bytes_of(const tensor& t) {
  std::vector<index_t> bytes;
  for (index_t i = 0; i < t.tokens; ++i)
    for (index_t h = 0; h < t.heads; ++h)
      for (index_t b = 0; b < t.dim * t.element_size; ++b) bytes.push_back(t.row(i, h) - memory + b);
  std::sort(bytes.begin(), bytes.end());
  return bytes;
}

bool share_a_byte(const tensor& a, const tensor& b) {
  const std::vector<index_t> of_a = bytes_of(a), of_b = bytes_of(b);
  std::vector<index_t> both;
  std::set_intersection(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), std::back_inserter(both));
  return !both.empty();
}

bool rows_overlap(const tensor& t) {
  const std::vector<index_t> bytes = bytes_of(t);
  return std::adjacent_find(bytes.begin(), bytes.end()) != bytes.end();
}

std::string name(const tensor& t) {
  const auto text = [](index_t number) { return std::to_string(number); };
  return "at " + text(t.data - memory) + " [" + text(t.tokens) + ", " + text(t.heads) + ", " + text(t.dim) +
         "] strides " + text(t.token_stride) + ", " + text(t.head_stride) + " of " + text(t.element_size) + " bytes; ";
}

class numbers {
 public:
  index_t between(index_t least, index_t most) {
    return std::uniform_int_distribution<index_t>(least, most)(generator_);
  }

 private:
  std::mt19937 generator_{1};
};

}  // namespace

// Tensors with the same strides, as those of one buffer have: the answer is exact.
TEST(Overlap, OfEqualStridesIsExact) {
  numbers random;
  int shared = 0;
  for (int i = 0; i < 40000; ++i) {
    const index_t token_stride = random.between(0, 30), head_stride = random.between(0, 30);
    const index_t element_size = random.between(1, 2) * 2;
    const auto draw = [&] {
      return made(random.between(0, 300), random.between(0, 4), random.between(0, 4), random.between(0, 6),
                  token_stride, head_stride, element_size);
    };
    const tensor a = draw(), b = draw();
    ASSERT_EQ(overlap(a, b), share_a_byte(a, b)) << name(a) << name(b);
    shared += overlap(a, b);
  }
  EXPECT_GT(shared, 4000);
  EXPECT_LT(shared, 36000);
}

// Others may be taken to overlap where they do not, but never the other way.
TEST(Overlap, IsNeverMissed) {
  numbers random;
  int apart = 0;
  for (int i = 0; i < 40000; ++i) {
    const auto draw = [&] {
      return made(random.between(0, 300), random.between(0, 4), random.between(0, 4), random.between(0, 6),
                  random.between(0, 30), random.between(0, 30), random.between(1, 2) * 2);
    };
    const tensor a = draw(), b = draw();
    ASSERT_TRUE(overlap(a, b) || !share_a_byte(a, b)) << name(a) << name(b);
    ASSERT_EQ(overlap(a, b), overlap(b, a)) << name(a) << name(b);
    apart += !overlap(a, b);
  }
  EXPECT_GT(apart, 10000);
}

// q, k, v and out of a token side by side, with other dims, other heads and other element sizes.
TEST(Overlap, NeighboursAreApart) {
  const index_t row = 4 * 8 * 4 + 2 * 8 * 2 + 2 * 6 * 2 + 4 * 6 * 4;  // bytes
  const tensor q = made(0, 5, 4, 8, row / 4, 8, 4), k = made(128, 5, 2, 8, row / 2, 8, 2),
               v = made(160, 5, 2, 6, row / 2, 6, 2), out = made(184, 5, 4, 6, row / 4, 6, 4);
  for (const tensor* a : {&q, &k, &v, &out})
    for (const tensor* b : {&q, &k, &v, &out}) EXPECT_EQ(overlap(*a, *b), a == b) << name(*a) << name(*b);
  tensor moved = out;
  moved.data -= 1;
  EXPECT_TRUE(overlap(moved, v));
  moved.data += 2;
  EXPECT_TRUE(overlap(moved, q));
}

TEST(Overlap, OfNothingIsNone) {
  const tensor a = made(0, 3, 2, 4, 8, 4, 4);
  for (const tensor& empty : {made(0, 0, 2, 4, 8, 4, 4), made(0, 3, 0, 4, 8, 4, 4), made(0, 3, 2, 0, 8, 4, 4)}) {
    EXPECT_FALSE(overlap(a, empty));
    EXPECT_FALSE(overlap(empty, a));
    EXPECT_EQ(empty.extent_bytes(), 0);
  }
}

TEST(DistinctRows, AreThoseThatShareNoByte) {
  numbers random;
  int distinct = 0;
  for (int i = 0; i < 40000; ++i) {
    const tensor t = made(0, random.between(0, 4), random.between(0, 4), random.between(0, 6), random.between(0, 30),
                          random.between(0, 30), 2);
    const bool accepted = refusal([&] { check_distinct_rows(t, "f", "t"); }) == "accepted";
    ASSERT_FALSE(accepted && rows_overlap(t)) << name(t);
    distinct += accepted;
  }
  EXPECT_GT(distinct, 10000);
}

// Where one kind of rows lies within the gaps of the other, as in every sane layout, distinct rows are accepted.
TEST(DistinctRows, AreAcceptedInNestedLayouts) {
  for (index_t dim = 1; dim < 5; ++dim) {
    for (index_t inner = dim; inner < dim + 3; ++inner) {
      for (index_t count = 1; count < 4; ++count) {
        for (index_t outer = (count - 1) * inner + dim; outer < count * inner + 3; ++outer) {
          EXPECT_NO_THROW(check_distinct_rows(made(0, 3, count, dim, outer, inner, 4), "f", "t"));
          EXPECT_NO_THROW(check_distinct_rows(made(0, count, 3, dim, inner, outer, 4), "f", "t"));
        }
      }
    }
  }
}

TEST(Tensor, ErasesAViewsTypeAndNothingElse) {
  const la::bfloat16 elements[40] = {};
  const tensor t = la::detail::erase(la::tensor_view<const la::bfloat16>(elements, 2, 3, 4, 20, 5));
  EXPECT_EQ(static_cast<const void*>(t.data), elements);
  EXPECT_EQ(t.tokens, 2);
  EXPECT_EQ(t.heads, 3);
  EXPECT_EQ(t.dim, 4);
  EXPECT_EQ(t.element_size, 2);
  EXPECT_EQ(t.format, la::row_format::bf16);
  EXPECT_EQ(static_cast<const void*>(t.row(1, 2)), elements + 30);
  EXPECT_EQ(t.extent_bytes(), 2 * (20 + 2 * 5 + 4));
  EXPECT_EQ(static_cast<const void*>(t.slice(1, 1).row(0, 2)), elements + 30);
  EXPECT_EQ(t.slice(1, 1).tokens, 1);
  EXPECT_EQ(t.slice(2, 0).extent_bytes(), 0);
}

TEST(Tensor, StridesThatLeadNowhereAreZero) {
  const float elements[4] = {};
  const tensor t = la::detail::erase(la::tensor_view<const float>(elements, 1, 1, 4, 20, 5));
  EXPECT_EQ(t.token_stride, 0);
  EXPECT_EQ(t.head_stride, 0);
}

// Products and sums that are small again once they have overflowed.
TEST(Tensor, ExtentsThatOverflowAreRefused) {
  constexpr index_t most = la::unlimited, quarter = index_t{1} << 62;
  const auto checked = [](const tensor& t) { return refusal([&] { la::detail::check_tensor(t, "f", "t"); }); };
  EXPECT_EQ(checked(made(0, 5, 1, 4, quarter, 0, 1)),
            "f: expected t to end within 2^63 bytes, got [5, 1, 4] with strides 4611686018427387904, 0");
  EXPECT_NE(checked(made(0, 1, 5, 4, 0, quarter, 1)), "accepted");
  EXPECT_NE(checked(made(0, 2, 2, 4, most, most, 1)), "accepted");
  EXPECT_NE(checked(made(0, 2, 1, 4, most - 1, 0, 1)), "accepted");
  EXPECT_NE(checked(made(0, 2, 1, 4, quarter, 0, 4)), "accepted");
  EXPECT_EQ(checked(made(0, 2, 1, 4, most - 4, 0, 1)), "accepted");
}

TEST(Tensor, FormatsOfTheElementTypes) {
  EXPECT_EQ(la::detail::erase(la::tensor_view<float>()).format, la::row_format::f32);
  EXPECT_EQ(la::detail::erase(la::tensor_view<double>()).format, la::row_format::f64);
  EXPECT_EQ(la::detail::erase(la::tensor_view<la::half>()).format, la::row_format::f16);
  EXPECT_EQ(la::detail::erase(la::tensor_view<const la::half>()).format, la::row_format::f16);
}

TEST(Tensor, SameRowsAreTheSameMemoryInTheSameOrder) {
  const tensor t = made(0, 3, 2, 4, 16, 4, 4);
  EXPECT_TRUE(same_rows(t, t));
  const auto differs = [&](auto change) {
    tensor other = t;
    change(other);
    return !same_rows(t, other);
  };
  EXPECT_TRUE(differs([](tensor& o) { o.data += 4; }));
  EXPECT_TRUE(differs([](tensor& o) { o.tokens = 2; }));
  EXPECT_TRUE(differs([](tensor& o) { o.heads = 1; }));
  EXPECT_TRUE(differs([](tensor& o) { o.dim = 3; }));
  EXPECT_TRUE(differs([](tensor& o) { o.token_stride = 17; }));
  EXPECT_TRUE(differs([](tensor& o) { o.head_stride = 5; }));
  EXPECT_TRUE(differs([](tensor& o) { o.element_size = 2; }));
  EXPECT_TRUE(differs([](tensor& o) { o.format = la::row_format::f16; }));
}
