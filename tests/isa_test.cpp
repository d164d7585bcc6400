#include <lambda_attention/attention.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::isa_level;

namespace {

constexpr isa_level levels[] = {isa_level::baseline,    isa_level::avx2,        isa_level::avx512,
                                isa_level::avx512_vnni, isa_level::avx512_bf16, isa_level::amx_bf16};

sequence<float> attend_with(isa_level level) {
  sequence<float> s(70, 6, 2, 24, 10);
  la::attention_options options;
  options.isa = level;
  la::attend(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(3, 17), la::rope(24), s.out.view(), options);
  return s;
}

}  // namespace

TEST(Isa, Names) {
  EXPECT_STREQ(name_of(isa_level::automatic), "automatic");
  EXPECT_STREQ(name_of(isa_level::baseline), "baseline");
  EXPECT_STREQ(name_of(isa_level::avx2), "avx2");
  EXPECT_STREQ(name_of(isa_level::avx512), "avx512");
  EXPECT_STREQ(name_of(isa_level::avx512_vnni), "avx512_vnni");
  EXPECT_STREQ(name_of(isa_level::avx512_bf16), "avx512_bf16");
  EXPECT_STREQ(name_of(isa_level::amx_bf16), "amx_bf16");
  EXPECT_STREQ(name_of(static_cast<isa_level>(17)), "?");
}

TEST(Isa, IsOneOfThoseWithKernels) {
  EXPECT_GE(la::isa(), isa_level::baseline);
  EXPECT_LE(la::isa(), la::highest_isa());
  EXPECT_LE(la::highest_isa(), isa_level::amx_bf16);
  EXPECT_EQ(la::isa(), la::isa());
}

// Sets grow: what this machine has is all up to one of them.
TEST(Isa, EveryLevelUpToTheHighestComputesAndNoneAbove) {
  for (const isa_level level : levels) {
    if (level <= la::highest_isa()) {
      const sequence<float> s = attend_with(level);
      EXPECT_LE(nmse(s.out.elements, expected(s, la::lm_infinite(3, 17), la::rope(24))), 1e-11) << name_of(level);
    } else {
      EXPECT_EQ(refusal([&] { attend_with(level); }),
                std::string("attend: expected an isa that this machine has, at most ") + name_of(la::highest_isa()) +
                    ", got " + name_of(level));
    }
  }
}

TEST(Isa, AutomaticIsTheFastest) {
  EXPECT_TRUE(same_bits(attend_with(isa_level::automatic).out.elements, attend_with(la::isa()).out.elements));
}

#if defined(__x86_64__)
// Only where products of pairs are fast.
TEST(Isa, PairsAreTakenBySomeProcessorsOnly) {
  const bool passed_over = la::highest_isa() == isa_level::avx512_bf16 && __builtin_cpu_is("intel");
  EXPECT_EQ(la::isa(), passed_over ? isa_level::avx512_vnni : la::highest_isa());
  EXPECT_EQ(la::detail::pair_kernels_for<float>(isa_level::automatic) != nullptr, la::isa() >= isa_level::avx512_bf16);
}
#endif

// Another instruction set sums in another order: that it is used at all can be seen by the last bits.
TEST(Isa, TheLevelAskedForIsTheOneThatRuns) {
  if (la::highest_isa() < isa_level::avx2) GTEST_SKIP() << "this machine has one level";
  EXPECT_FALSE(same_bits(attend_with(isa_level::baseline).out.elements, attend_with(isa_level::avx2).out.elements));
}

#if defined(__x86_64__)
// A tile has as many lanes as its vectors.
TEST(Isa, TablesAreThoseOfTheirLevel) {
  const auto lanes = [](isa_level level) { return la::detail::kernels_for<float>(level).lanes; };
  EXPECT_EQ(lanes(isa_level::baseline), 4);
  EXPECT_EQ(lanes(isa_level::avx2), 8);
  for (const isa_level level : {isa_level::avx512, isa_level::avx512_vnni, isa_level::avx512_bf16, isa_level::amx_bf16})
    EXPECT_EQ(lanes(level), 16);
  // Bytes, and pairs, have kernels of their own for a few queries.
  const auto few = [](isa_level level, bool in_pairs) {
    return &la::detail::position_kernels_for<float>(level, in_pairs);
  };
  EXPECT_NE(few(isa_level::baseline, false), few(isa_level::avx2, false));
  EXPECT_NE(few(isa_level::avx2, false), few(isa_level::avx512, false));
  EXPECT_NE(few(isa_level::avx512, false), few(isa_level::avx512_vnni, false));
  EXPECT_EQ(few(isa_level::avx512_vnni, false), few(isa_level::avx512_bf16, false));
  EXPECT_NE(few(isa_level::avx512_bf16, false), few(isa_level::avx512_bf16, true));
  EXPECT_NE(few(isa_level::avx512_bf16, true), few(isa_level::amx_bf16, true));
}
#endif

// Keys that one instruction set has taken in can be read by another.
TEST(Isa, AStreamMayChangeIt) {
  sequence<float> s(70, 6, 2, 24, 10);
  const la::lambda_shape shape = la::lm_infinite(3, 17);
  la::kv_cache<la::f32, la::rope> cache(shape, la::rope(24), 2, 24, 10);
  for (la::index_t i = 0; i < 70; ++i) {
    la::attention_options options;
    options.isa = levels[i % static_cast<la::index_t>(la::highest_isa())];
    la::append(s.k.view().slice(i, 1), s.v.view().slice(i, 1), cache,
               levels[i / 3 % static_cast<la::index_t>(la::highest_isa())]);
    la::attend(s.q.view().slice(i, 1), cache, s.out.view().slice(i, 1), options);
  }
  EXPECT_LE(nmse(s.out.elements, expected(s, shape, la::rope(24))), 1e-11);
}
