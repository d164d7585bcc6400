// What attend() accepts and gives; what it refuses is in detail/checks_test.cpp, streams are in kv_cache_test.cpp and
// detail/streams_test.cpp, and the laws in laws/.
#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/t5_bias.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::tensor_view;

namespace {

constexpr index_t n = 50, heads = 4, kv_heads = 2;
const la::lambda_shape shape = la::lm_infinite(3, 17);

template <class T>
void copy(const tensor_view<const T>& from, const tensor_view<T>& to) {
  for (index_t t = 0; t < from.tokens; ++t)
    for (index_t h = 0; h < from.heads; ++h) std::copy_n(from.row(t, h), from.dim, to.row(t, h));
}

template <class T>
std::vector<T> contents(const tensor_view<T>& view) {
  dense<std::remove_const_t<T>> result(view.tokens, view.heads, view.dim);
  copy<std::remove_const_t<T>>(view, result.view());
  return result.elements;
}

// Memory for tensors that the tests place themselves; what no tensor covers must stay as it is.
struct arena {
  std::vector<float> memory = std::vector<float>(100000, -7.0f);

  tensor_view<float> place(index_t offset, index_t view_heads, index_t dim, index_t token_stride, index_t head_stride) {
    return {memory.data() + offset, n, view_heads, dim, token_stride, head_stride};
  }
  std::size_t untouched() const { return static_cast<std::size_t>(std::count(memory.begin(), memory.end(), -7.0f)); }
};

struct placed {
  tensor_view<float> q, k, v, out;
};

// The sequence `s` in the places given; returns the output.
std::vector<float> attend_in(const placed& p, const sequence<float>& s) {
  copy(s.q.view(), p.q);
  copy(s.k.view(), p.k);
  copy(s.v.view(), p.v);
  la::attend(p.q, p.k, p.v, shape, la::rope(p.q.dim), p.out);
  return contents(p.out);
}

}  // namespace

TEST(Attend, EveryLayoutGivesTheSameBits) {
  constexpr index_t dim = 24, v_dim = 10;
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view());
  EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::rope(dim))), 1e-11);

  const auto try_strides = [&](auto token_stride_of, auto head_stride_of, const char* name) {
    arena a;
    const auto at = [&](index_t offset, index_t view_heads, index_t view_dim) {
      return a.place(offset, view_heads, view_dim, token_stride_of(view_heads, view_dim),
                     head_stride_of(view_heads, view_dim));
    };
    const placed p = {at(0, heads, dim), at(25000, kv_heads, dim), at(50000, kv_heads, v_dim), at(75000, heads, v_dim)};
    EXPECT_TRUE(same_bits(attend_in(p, s), s.out.elements)) << name;
    const std::size_t covered =
        static_cast<std::size_t>(n * (heads * dim + kv_heads * dim + kv_heads * v_dim + heads * v_dim));
    EXPECT_EQ(a.untouched(), a.memory.size() - covered) << name;
  };
  try_strides([](index_t h, index_t d) { return h * d; }, [](index_t, index_t d) { return d; }, "token-major");
  try_strides([](index_t, index_t d) { return d; }, [](index_t, index_t d) { return n * d; }, "head-major");
  try_strides([](index_t h, index_t d) { return h * (d + 3) + 5; }, [](index_t, index_t d) { return d + 3; }, "padded");
  try_strides([](index_t, index_t d) { return d + 1; }, [](index_t, index_t d) { return n * (d + 1) + 7; },
              "padded, head-major");
  try_strides([](index_t, index_t) { return 311; }, [](index_t, index_t) { return 37; }, "odd strides");
}

TEST(Attend, OutMayBeQ) {
  sequence<float> s(n, heads, kv_heads, 16, 16);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(16), s.out.view());
  dense<float> in_place = s.q;
  la::attend(in_place.view(), s.k.view(), s.v.view(), shape, la::rope(16), in_place.view());
  EXPECT_TRUE(same_bits(in_place.elements, s.out.elements));
}

TEST(Attend, OutMayBeQOfAStream) {
  sequence<float> s(n, heads, kv_heads, 16, 16);
  la::kv_cache_options options;
  options.max_append = 20;
  la::kv_cache<la::f32, la::rope> cache(shape, la::rope(16), kv_heads, 16, 16, options), again = cache;
  dense<float> in_place = s.q;
  for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 30}, {30, 1}, {31, 4}, {35, 15}}) {
    const auto k = s.k.view().slice(first, count), v = s.v.view().slice(first, count);
    la::attend(s.q.view().slice(first, count), k, v, cache, s.out.view().slice(first, count));
    la::attend(in_place.view().slice(first, count), k, v, again, in_place.view().slice(first, count));
  }
  EXPECT_TRUE(same_bits(in_place.elements, s.out.elements));
}

// As a projection leaves them: a token's q, k and v side by side.
TEST(Attend, FusedBufferInPlace) {
  constexpr index_t dim = 16, row = (heads + 2 * kv_heads) * dim;
  sequence<float> s(n, heads, kv_heads, dim, dim);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view());

  arena a;
  placed p;
  p.q = p.out = a.place(0, heads, dim, row, dim);
  p.k = a.place(heads * dim, kv_heads, dim, row, dim);
  p.v = a.place((heads + kv_heads) * dim, kv_heads, dim, row, dim);
  EXPECT_TRUE(same_bits(attend_in(p, s), s.out.elements));
  EXPECT_TRUE(same_bits(contents(p.k), s.k.elements));
  EXPECT_TRUE(same_bits(contents(p.v), s.v.elements));
}

// Out between the others, which it touches on both sides.
TEST(Attend, InterleavedNeighbours) {
  constexpr index_t dim = 16, v_dim = 10, row = heads * dim + heads * v_dim + kv_heads * (dim + v_dim);
  sequence<float> s(n, heads, kv_heads, dim, v_dim);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view());

  arena a;
  placed p;
  p.q = a.place(0, heads, dim, row, dim);
  p.out = a.place(heads * dim, heads, v_dim, row, v_dim);
  p.k = a.place(heads * (dim + v_dim), kv_heads, dim, row, dim);
  p.v = a.place(heads * (dim + v_dim) + kv_heads * dim, kv_heads, v_dim, row, v_dim);
  EXPECT_TRUE(same_bits(attend_in(p, s), s.out.elements));
  EXPECT_TRUE(same_bits(contents(p.q), s.q.elements));
  EXPECT_TRUE(same_bits(contents(p.k), s.k.elements));
  EXPECT_TRUE(same_bits(contents(p.v), s.v.elements));

  p.out.data -= 1;  // the last element of q
  EXPECT_EQ(refusal([&] { la::attend(p.q, p.k, p.v, shape, la::rope(dim), p.out); }),
            "attend: expected out not to overlap q (out may be exactly q), got overlapping memory");
  p.out.data += 2;  // the first element of k
  EXPECT_EQ(refusal([&] { la::attend(p.q, p.k, p.v, shape, la::rope(dim), p.out); }),
            "attend: expected out not to overlap k (out may be exactly q), got overlapping memory");
}

// The same head by head: [heads][tokens][q | k | v | out].
TEST(Attend, InterleavedNeighboursHeadMajor) {
  constexpr index_t dim = 16, row = 4 * dim;
  sequence<float> s(n, heads, heads, dim, dim);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::rope(dim), s.out.view());
  arena a;
  placed p;
  p.q = a.place(0, heads, dim, row, n * row);
  p.k = a.place(dim, heads, dim, row, n * row);
  p.v = a.place(2 * dim, heads, dim, row, n * row);
  p.out = a.place(3 * dim, heads, dim, row, n * row);
  EXPECT_TRUE(same_bits(attend_in(p, s), s.out.elements));
}

TEST(Attend, EmptySequences) {
  const auto nothing = la::token_major<float>(nullptr, 0, 2, 8);
  la::attend(nothing, nothing, nothing, shape, la::rope(8), nothing);
  la::kv_cache<la::f32, la::rope> cache(shape, la::rope(8), 2, 8, 8);
  la::attend(nothing, nothing, nothing, cache, nothing);
  la::attend(nothing, cache, nothing);
  la::append(nothing, nothing, cache);
  EXPECT_EQ(cache.num_tokens(), 0);
  // What is wrong with an empty call is wrong.
  EXPECT_EQ(refusal([&] { la::attend(nothing, nothing, nothing, shape, la::rope(10), nothing); }),
            "attend: expected head_dim = 10, that of the position encoding, got 8");
}

TEST(Attend, ARowThatSeesNoKeyIsZeros) {
  sequence<float> s(20, heads, kv_heads, 8, 8);
  std::fill(s.out.elements.begin(), s.out.elements.end(), -1.0f);
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::sliding_window(0), la::none(), s.out.view());
  EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size()));
}

TEST(Attend, ARowThatSeesOneKeyIsItsValue) {
  sequence<float> s(20, heads, kv_heads, 8, 8);
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::sliding_window(1), la::rope(8), s.out.view());
  for (index_t t = 0; t < 20; ++t)
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < 8; ++d)
        ASSERT_FLOAT_EQ(s.out.view().row(t, h)[d], s.v.view().row(t, h / 2)[d]) << t << ", " << h << ", " << d;
}

TEST(Attend, ValuesMayHaveAnotherDim) {
  for (const index_t dim : {1, 7, 64, 512}) {
    for (const index_t v_dim : {1, 15, 33, 512}) {
      sequence<float> s(30, 3, 1, dim, v_dim);
      la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::none(), s.out.view());
      EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::none())), 1e-11) << dim << ", " << v_dim;
    }
  }
}

// Element types of each tensor, and the error that its output's own rounding leaves.
template <class Q, class K, class V, class Out>
void expect_attention_of_types(double bound) {
  const la::rope position(24);
  sequence<Q, K, V, Out> s(n, heads, kv_heads, 24, 10);
  la::attention_options options;  // on an ISA that does not round queries to the type of the keys
  options.isa = std::min(la::isa(), la::isa_level::avx512);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, position, s.out.view(), options);
  EXPECT_LE(nmse(s.out.elements, expected(s, shape, position)), bound);

  // The same numbers as floats, rounded at the end, give the same bits, unless the call computes in double.
  sequence<float> f(n, heads, kv_heads, 24, 10);
  for (std::size_t i = 0; i < s.q.elements.size(); ++i) f.q.elements[i] = static_cast<float>(s.q.elements[i]);
  for (std::size_t i = 0; i < s.k.elements.size(); ++i) f.k.elements[i] = static_cast<float>(s.k.elements[i]);
  for (std::size_t i = 0; i < s.v.elements.size(); ++i) f.v.elements[i] = static_cast<float>(s.v.elements[i]);
  la::attend(f.q.view(), f.k.view(), f.v.view(), shape, position, f.out.view(), options);
  std::vector<Out> rounded;
  for (const float x : f.out.elements) rounded.push_back(static_cast<Out>(x));
  const bool in_double = std::is_same_v<la::detail::compute_type_of<Q, K, V, Out>, double>;
  EXPECT_TRUE(in_double || same_bits(s.out.elements, rounded));
}

TEST(Attend, ElementTypesMayDiffer) {
  constexpr double in_float = 1e-11, in_double = 1e-24, in_half = 0x1p-22 / 3, in_bfloat16 = 0x1p-16 / 3;
  expect_attention_of_types<la::half, la::half, la::half, la::half>(in_half);
  expect_attention_of_types<la::bfloat16, la::bfloat16, la::bfloat16, la::bfloat16>(in_bfloat16);
  expect_attention_of_types<float, la::half, la::bfloat16, float>(in_float);
  expect_attention_of_types<la::bfloat16, float, la::half, float>(in_float);
  expect_attention_of_types<la::half, la::bfloat16, float, la::bfloat16>(in_bfloat16);
  expect_attention_of_types<double, double, double, double>(in_double);
  expect_attention_of_types<double, float, float, double>(in_double);
  expect_attention_of_types<float, double, la::half, double>(in_double);
  expect_attention_of_types<la::half, float, double, double>(in_double);
  expect_attention_of_types<float, la::half, la::bfloat16, double>(in_double);
  expect_attention_of_types<double, float, float, float>(0x1p-48);  // computed in double, rounded to float
}

// A cache computes in the type of its storage, whatever the tensors are.
TEST(Attend, ElementTypesOfAStreamMayDiffer) {
  const la::rope position(24);
  sequence<double, la::half, float, la::bfloat16> s(n, heads, kv_heads, 24, 10);
  la::kv_cache<la::f32, la::rope> cache(shape, position, kv_heads, 24, 10);
  la::attend(s.q.view(), s.k.view(), s.v.view(), cache, s.out.view());
  EXPECT_LE(nmse(s.out.elements, expected(s, shape, position)), 0x1p-16 / 3);

  sequence<float, la::half, la::bfloat16, double> d(n, heads, kv_heads, 24, 10);
  la::kv_cache<la::f64, la::rope> wide(shape, position, kv_heads, 24, 10);
  la::attend(d.q.view(), d.k.view(), d.v.view(), wide, d.out.view());
  EXPECT_LE(nmse(d.out.elements, expected(d, shape, position)), 1e-24);
}

TEST(Attend, ViewsOfConstAreTaken) {
  const sequence<float> s(n, heads, kv_heads, 16, 16);
  dense<float> out(n, heads, 16);
  la::attend(s.q.view(), s.k.view(), s.v.view(), shape, la::none(), out.view());
  EXPECT_LE(nmse(out.elements, expected(s, shape, la::none())), 1e-11);
}
