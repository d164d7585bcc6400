#include <lambda_attention/key_run.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/workspace.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::row_rotation;

namespace {

constexpr index_t tokens = 40, heads = 4, kv_heads = 2, dim = 16;
const la::lambda_shape shape = la::lm_infinite(3, 10);

// An encoding that no table of frequencies describes.
struct turning : la::position_encoding {
  la::position_data data() const {
    la::position_data data;
    data.function = la::row_function_of(*this);
    return data;
  }
  template <class Real>
  void turn(std::uint64_t, Real*, index_t) const noexcept {}
};

// Keys [first, last) of a sequence where they lie.
template <class T>
la::key_run<const T, const T> run_of(const sequence<T>& s, index_t first, index_t last) {
  const auto k = s.k.view().slice(first, last - first), v = s.v.view().slice(first, last - first);
  return {first, k, v, row_rotation::none};
}

}  // namespace

// Pages of a few tokens in any order, in one pool, as paged caches have them: the newest token sees the sinks and its window.
TEST(KeyRuns, ArePagesOfACache) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  constexpr index_t page = 4;
  std::vector<la::key_run<const float, const float>> pages;
  for (index_t first = 0; first < tokens; first += page)
    if (first < shape.num_sinks || first + page > tokens - shape.window)
      pages.push_back(run_of(s, first, std::min(tokens, first + page)));
  std::reverse(pages.begin(), pages.end());
  ASSERT_EQ(pages.size(), 4u);

  dense<float> out(1, heads, dim);
  const la::rope position(dim);
  const la::query_run newest{tokens - 1, s.q.view().slice(tokens - 1, 1)};
  la::attend(newest, pages.data(), static_cast<index_t>(pages.size()), shape, position, out.view());
  const std::vector<double> all = expected(s, shape, position);
  EXPECT_LE(nmse(out.elements, std::vector<double>(all.end() - heads * dim, all.end())), 1e-11);
}

// Sinks that are multiplied as they lie, with rounded weights, beside a window that is turned first: where all values are one,
// so is every output.
TEST(KeyRuns, WeighSinksAndWindowAlike) {
  constexpr index_t num_sinks = 20, wide = 32;
  for (const index_t num_queries : {1, 2, 4, 5, 8, 16, 20}) {
    sequence<la::bfloat16> s(60, 1, 1, wide, wide);
    std::fill(s.v.elements.begin(), s.v.elements.end(), la::bfloat16(1.0f));
    la::key_run<const la::bfloat16, const la::bfloat16> runs[] = {run_of(s, 0, num_sinks), run_of(s, num_sinks, 60)};
    runs[0].rotation = row_rotation::to_position;
    const la::query_run newest{60 - num_queries, s.q.view().slice(60 - num_queries, num_queries)};
    for (const la::isa_level isa : {la::isa_level::automatic, la::isa_level::baseline, la::isa_level::avx512_bf16}) {
      if (isa > la::highest_isa()) continue;
      dense<float> out(num_queries, 1, wide);
      la::attention_options options;
      options.isa = isa;
      la::attend(newest, runs, 2, la::lm_infinite(num_sinks, 100), la::rope(wide), out.view(), options);
      for (const float number : out.elements) ASSERT_NEAR(number, 1, 2e-6) << num_queries << " queries";
    }
  }
}

TEST(KeyRuns, MayHoldMoreThanIsSeenAndKeysThatAreYetToCome) {
  sequence<> s(tokens, heads, kv_heads, dim, dim);
  const la::rope position(dim);
  const std::vector<double> all = expected(s, shape, position);
  constexpr index_t query = 20;
  for (index_t key = 0; key < tokens; ++key) {
    if (shape.visible(query, key)) continue;
    for (index_t h = 0; h < kv_heads; ++h) {
      s.k.view().row(key, h)[0] = std::numeric_limits<float>::quiet_NaN();
      s.v.view().row(key, h)[0] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  dense<float> out(1, heads, dim);
  const auto run = run_of(s, 0, tokens);
  la::attend(la::query_run{query, s.q.view().slice(query, 1)}, &run, 1, shape, position, out.view());
  EXPECT_LE(nmse(out.elements,
                 std::vector<double>(all.begin() + query * heads * dim, all.begin() + (query + 1) * heads * dim)),
            1e-11);
}

// What the encoding does not do has not been done, whatever a caller says.
TEST(KeyRuns, OfAnEncodingThatDoesNotRotateAreNotRotated) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  dense<float> out(tokens, heads, dim);
  auto run = run_of(s, 0, tokens);
  run.rotation = row_rotation::to_position;
  la::attend(la::query_run{0, s.q.view(), row_rotation::to_position}, &run, 1, shape, la::alibi(heads), out.view());
  EXPECT_LE(nmse(out.elements, expected(s, shape, la::alibi(heads))), 1e-11);
}

TEST(KeyRuns, OfARowFunctionAreTurnedWhenTheyAreNot) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  dense<float> out(tokens, heads, dim);
  const auto run = run_of(s, 0, tokens);
  la::attend(la::query_run{0, s.q.view()}, &run, 1, shape, turning(), out.view());
  EXPECT_LE(nmse(out.elements, expected(s, shape, la::none())), 1e-11);
}

TEST(KeyRuns, TakeNothingFromTheHeapWhereTheWorkspaceIsLargeEnough) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  dense<float> out(1, heads, dim);
  la::workspace scratch;
  la::attention_options options;
  options.workspace = &scratch;
  const auto run = run_of(s, 0, tokens);
  const auto decode = [&] {
    la::attend(la::query_run{30, s.q.view().slice(30, 1)}, &run, 1, shape, la::rope(dim), out.view(), options);
  };
  decode();
  const auto* const memory = scratch.data();
  const index_t bytes = scratch.bytes();
  decode();
  EXPECT_EQ(scratch.data(), memory);
  EXPECT_EQ(scratch.bytes(), bytes);
}

// The largest indices there may be.
TEST(KeyRuns, MayLieFarFromZero) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  const la::lambda_shape window = la::sliding_window(10);
  const la::rope position(dim);
  constexpr index_t first = (index_t{1} << 62) - tokens;
  la::key_run run = run_of(s, 0, tokens);
  run.first = first;
  const std::vector<double> all = expected(s, window, position);
  for (const index_t count : {20, 1}) {
    dense<float> out(count, heads, dim);
    la::attend(la::query_run{first + tokens - count, s.q.view().slice(tokens - count, count)}, &run, 1, window,
               position, out.view());
    EXPECT_LE(nmse(out.elements, std::vector<double>(all.end() - count * heads * dim, all.end())), 1e-11);
  }
}

// Of one type or of two, as wide as what computes or narrower: a few queries read some of them where they lie.
TEST(KeyRuns, MayBeOfAnyTypes) {
  const auto expect_formula = [](const auto& s, double bound) {
    auto out = s.out;
    const la::key_run run{0, s.k.view(), s.v.view()};
    la::attend(la::query_run{0, s.q.view().slice(0, 1)}, &run, 1, shape, la::none(), out.view().slice(0, 1));
    for (index_t first = 1; first < tokens; first += 3)
      la::attend(la::query_run{first, s.q.view().slice(first, 3)}, &run, 1, shape, la::none(),
                 out.view().slice(first, 3));
    EXPECT_LE(nmse(out.elements, expected(s, shape, la::none())), bound);
  };
  expect_formula(sequence<float, la::half, float>(tokens, heads, kv_heads, dim, dim), 1e-11);
  expect_formula(sequence<float, float, la::half>(tokens, heads, kv_heads, dim, dim), 1e-11);
  expect_formula(sequence<float, la::half, la::bfloat16>(tokens, heads, kv_heads, dim, dim), 1e-11);
  expect_formula(sequence<double, la::half, la::half>(tokens, heads, kv_heads, dim, dim), 1e-24);
}

TEST(KeyRuns, OfNoQueriesNeedNoKeys) {
  dense<float> none(0, heads, dim), keys(0, kv_heads, dim);
  const la::key_run run{0, keys.view(), keys.view()};
  la::attend(la::query_run{7, none.view()}, &run, 1, shape, la::rope(dim), none.view());
}

TEST(KeyRuns, OfNoKeysGiveZerosWhereNoneIsSeen) {
  const sequence<> s(1, heads, kv_heads, dim, dim);
  dense<float> out(1, heads, dim), keys(0, kv_heads, dim);
  std::fill(out.elements.begin(), out.elements.end(), 5.0f);
  const la::key_run run{0, keys.view(), keys.view()};
  la::attend(la::query_run{7, s.q.view()}, &run, 1, la::sliding_window(0), la::rope(dim), out.view());
  EXPECT_EQ(out.elements, std::vector<float>(heads * dim));
}

TEST(KeyRuns, OfSinksAreAllThatAWindowOfNoneNeeds) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  const la::lambda_shape sinks_only = {3, 0, 4};
  const la::key_run run = run_of(s, 0, 3);
  for (const index_t count : {1, 5, 20}) {
    dense<float> out(count, heads, dim);
    la::attend(la::query_run{tokens - count, s.q.view().slice(tokens - count, count)}, &run, 1, sinks_only,
               la::rope(dim), out.view());
    const std::vector<double> all = expected(s, sinks_only, la::rope(dim));
    EXPECT_LE(nmse(out.elements, std::vector<double>(all.end() - count * heads * dim, all.end())), 1e-11);
  }
}

TEST(KeyRuns, Refusals) {
  sequence<> s(tokens, heads, kv_heads, dim, dim);
  dense<float> other(tokens, kv_heads, 2 * dim), lse(tokens, heads, 1);
  const la::rope position(dim);
  std::fill(s.out.elements.begin(), s.out.elements.end(), 5.0f);
  struct call {
    std::vector<la::key_run<const float, const float>> runs;
    la::query_run<const float> queries;
    la::tensor_view<float> out;
    la::attention_options options = {};
  };
  const auto refused = [&](auto&& change) {
    call c = {{run_of(s, 0, 15), run_of(s, 15, tokens)}, {0, s.q.view()}, s.out.view()};
    change(c);
    const auto size = static_cast<index_t>(c.runs.size());
    const std::string message =
        refusal([&] { la::attend(c.queries, c.runs.data(), size, shape, position, c.out, c.options); });
    EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size(), 5.0f)) << message;
    return message;
  };
  EXPECT_EQ(refused([](call& c) { c.runs.pop_back(); }),
            "attend: expected a run with key 15, which query 15 sees, got none that has it");
  EXPECT_EQ(refused([&](call& c) {
              c.runs = {run_of(s, 0, 12), run_of(s, 13, tokens)};
            }),
            "attend: expected a run with key 12, which query 12 sees, got none that has it");
  EXPECT_EQ(refused([&](call& c) {
              c.runs = {run_of(s, 20, tokens), run_of(s, 0, 1)};
              c.queries = {30, s.q.view().slice(0, 1)};
              c.out = s.out.view().slice(0, 1);
            }),
            "attend: expected a run with key 1, which query 30 sees, got none that has it");
  EXPECT_EQ(refused([&](call& c) { c.runs[1] = run_of(s, 15, tokens - 1); }),
            "attend: expected a run with key 39, which query 39 sees, got none that has it");
  EXPECT_EQ(refused([&](call& c) { c.runs.push_back(run_of(s, 14, 16)); }),
            "attend: expected every key in one run, got key 14 in two");
  EXPECT_EQ(refused([](call& c) { c.runs.clear(); }),
            "attend: expected num_runs >= 1, got 0 (a run may have no tokens)");
  EXPECT_EQ(refusal([&] {
              const auto run = run_of(s, 0, tokens);
              la::attend(la::query_run{0, s.q.view()}, &run, -1, shape, position, s.out.view());
            }),
            "attend: expected num_runs >= 1, got -1 (a run may have no tokens)");
  EXPECT_EQ(refused([](call& c) { c.runs[1].first = -1; }), "attend: expected runs[1].first >= 0, got -1");
  EXPECT_EQ(refused([](call& c) { c.runs[1].first = la::unlimited - 3; }),
            "attend: expected indices below 2^62 in runs[1], got first = 9223372036854775804 and 25 tokens");
  EXPECT_EQ(refused([](call& c) { c.queries.first = (index_t{1} << 62) - tokens + 1; }),
            "attend: expected indices below 2^62 in q, got first = 4611686018427387865 and 40 tokens");
  EXPECT_EQ(refused([](call& c) {
              c.options.first_position = la::unlimited - 20;
              c.queries.q = c.queries.q.slice(0, 1);
              c.out = c.out.slice(0, 1);
            }),
            "attend: expected positions below 2^63, got first_position = 9223372036854775787 and 40 tokens");
  EXPECT_EQ(refused([](call& c) { c.queries.first = -5; }), "attend: expected q.first >= 0, got -5");
  EXPECT_EQ(refused([](call& c) { c.queries.rotation = row_rotation::to_zero; }),
            "attend: expected q.rotation to be none or to_position, got 2");
  EXPECT_EQ(refused([](call& c) { c.runs[0].rotation = static_cast<row_rotation>(7); }),
            "attend: expected runs[0].rotation to be none, to_position or to_zero, got 7");
  EXPECT_EQ(refused([](call& c) { c.runs[0].rotation = static_cast<row_rotation>(-1); }),
            "attend: expected runs[0].rotation to be none, to_position or to_zero, got -1");
  EXPECT_EQ(refused([&](call& c) { c.runs[1].v = other.view().slice(0, 25); }),
            "attend: expected runs[1] with heads, k.dim and v.dim as runs[0], 2, 16 and 16, got 2, 16 and 32");
  EXPECT_EQ(refused([&](call& c) { c.runs[1].k = other.view().slice(0, 25); }),
            "attend: expected runs[1] with heads, k.dim and v.dim as runs[0], 2, 16 and 16, got 2, 32 and 16");
  EXPECT_EQ(refused([](call& c) { c.runs[1].v.tokens = 3; }),
            "attend: expected runs[1].v with the tokens and heads of its k, [25, 2], got [3, 2]");
  EXPECT_EQ(refused([](call& c) { c.runs[1].k.heads = c.runs[1].v.heads = 1; }),
            "attend: expected runs[1] with heads, k.dim and v.dim as runs[0], 2, 16 and 16, got 1, 16 and 16");
  EXPECT_EQ(refused([](call& c) { c.runs[1].v.heads = 1; }),
            "attend: expected runs[1].v with the tokens and heads of its k, [25, 2], got [25, 1]");
  EXPECT_EQ(refused([](call& c) { c.runs[1].k.data = nullptr; }),
            "attend: expected runs[1].k with data, got a null pointer");
  EXPECT_EQ(refused([](call& c) { c.runs[1].v.data = nullptr; }),
            "attend: expected runs[1].v with data, got a null pointer");
  EXPECT_EQ(refused([&](call& c) {
              c.runs.assign(10, run_of(s, 0, 0));
              c.runs.push_back(run_of(s, 0, tokens));
              c.runs.back().first = -1;
            }),
            "attend: expected runs[10].first >= 0, got -1");
  EXPECT_EQ(refusal([&] {
              la::attend(la::query_run{0, s.q.view()},
                         static_cast<const la::key_run<const float, const float>*>(nullptr), 1, shape, position,
                         s.out.view());
            }),
            "attend: expected runs, got a null pointer");
  EXPECT_EQ(refused([&](call& c) { c.runs[1].k.data = s.out.elements.data(); }),
            "attend: expected out not to overlap runs[1].k (out may be exactly q), got overlapping memory");
  dense<float> weights(1, heads, 13);
  const auto with_weights = [&](auto change) {
    return refused([&](call& c) {
      c.queries = {tokens - 1, s.q.view().slice(tokens - 1, 1)};
      c.out = s.out.view().slice(tokens - 1, 1);
      c.options.weights = weights.view();
      change(c);
    });
  };
  EXPECT_EQ(with_weights([](call& c) { c.options.weights.dim = 12; }),
            "attend: expected options.weights to be [1, 4, at least 13], got [1, 4, 12]");
  EXPECT_EQ(with_weights([](call& c) { c.options.weights.data = const_cast<float*>(c.runs[1].v.data); }),
            "attend: expected options.weights not to overlap k or v, got overlapping memory");
  EXPECT_EQ(refused([&](call& c) { c.runs[1].v.data = s.out.elements.data(); }),
            "attend: expected out not to overlap runs[1].v (out may be exactly q), got overlapping memory");
  EXPECT_EQ(
      refused([&](call& c) { c.options.lse = {const_cast<float*>(c.runs[1].k.data), tokens, heads, 1, heads, 1}; }),
      "attend: expected options.lse not to overlap runs[1].k or .v, got overlapping memory");
  EXPECT_EQ(refused([](call& c) { c.queries.q.dim = 8; }), "attend: expected q.dim == k.dim, got 8 and 16");

  const auto whole = run_of(s, 0, tokens);
  EXPECT_EQ(refusal([&] {
              la::attend(la::query_run{0, s.q.view()}, &whole, 1, la::lambda_shape{-1, 10, 10}, position, s.out.view());
            }),
            "attend: expected num_sinks >= 0, got -1");
  auto rotated = whole;
  rotated.rotation = row_rotation::to_position;
  EXPECT_EQ(refusal([&] {
              la::attend(la::query_run{0, s.q.view()}, &rotated, 1, shape, turning(), s.out.view());
            }),
            "attend: expected runs[0].rotation to be none, as the encoding turns rows by a function, got 1");
  EXPECT_EQ(
      refusal([&] {
        la::attend(la::query_run{0, s.q.view(), row_rotation::to_position}, &whole, 1, shape, turning(), s.out.view());
      }),
      "attend: expected q.rotation to be none, as the encoding turns rows by a function, got 1");

  const la::partial_result result{s.out.view(), lse.view()};
  const auto part = run_of(s, 10, 20);
  EXPECT_EQ(refusal([&] {
              la::attend_partial(la::query_run{0, s.q.view()}, &part, 1, shape, position, {9, 20}, result);
            }),
            "attend_partial: expected a run with key 9, which query 9 sees, got none that has it");
  EXPECT_EQ(refusal([&] {
              la::attend_partial(la::query_run{0, s.q.view()}, &part, 1, shape, position, {12, 11}, result);
            }),
            "attend_partial: expected keys with 0 <= first <= last, got first = 12, last = 11");
  EXPECT_EQ(refusal([&] {
              la::attend_partial(
                  la::query_run{0, s.q.view()}, &part, 1, shape, position, {10, 20},
                  la::partial_result{s.out.view(), la::token_major(s.out.elements.data(), tokens, heads, 1)});
            }),
            "attend_partial: expected result.lse not to overlap another tensor, got overlapping memory");
  const auto early = run_of(s, 0, tokens);
  EXPECT_EQ(refusal([&] {
              const la::tensor_view<float> in_values(const_cast<float*>(s.v.elements.data()), tokens, heads, 1, heads,
                                                     1);
              la::attend_partial(la::query_run{0, s.q.view()}, &early, 1, shape, position, {0, tokens},
                                 la::partial_result{s.out.view(), in_values});
            }),
            "attend_partial: expected result.lse not to overlap runs[0].k or .v, got overlapping memory");

  // As many keys as no memory holds: every one is the same row.
  constexpr index_t many = index_t{1} << 61;
  const la::tensor_view<const float> row(s.k.elements.data(), many, kv_heads, dim, 0, dim);
  const la::key_run endless{0, row, row};
  EXPECT_EQ(refusal([&] {
              la::attend(la::query_run{many - 1, s.q.view().slice(0, 1)}, &endless, 1, la::full_causal(), position,
                         s.out.view().slice(0, 1));
            }),
            "attend: expected queries that see at most 2^40 keys together, got 2305843009213693952");
  EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size(), 5.0f));
}
