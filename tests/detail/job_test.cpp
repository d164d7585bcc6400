#include <lambda_attention/detail/job.hpp>

#include <gtest/gtest.h>

#include <utility>

namespace la = lambda_attention;
using la::index_t;
using la::detail::attention_job;
using la::detail::bias_distance_of;
using la::detail::key_kind;
using la::detail::plan_shape;

namespace {

attention_job<float> job(const la::lambda_shape& shape, index_t tokens, index_t heads = 8, index_t kv_heads = 2) {
  attention_job<float> j = {};
  j.plan = {shape, true};
  j.q.tokens = tokens;
  j.q.heads = heads;
  j.num_kv_heads = kv_heads;
  return j;
}

}  // namespace

TEST(AttentionJob, GroupsQueryHeads) {
  EXPECT_EQ(job(la::full_causal(), 1, 8, 2).group(), 4);
  EXPECT_EQ(job(la::full_causal(), 1, 5, 5).group(), 1);
}

TEST(AttentionJob, SeesSinksAndTheWindowsOfItsQueries) {
  attention_job<float> j = job(la::lm_infinite(16, 1024), 3, 4, 2);
  j.first_query = 5000;
  EXPECT_EQ(j.keys_seen(), 16 + 1024 + 2);
}

// As many as make 16 queries, or what kernels take of pairs, with the heads of a group, and 4 of any.
TEST(AttentionJob, FewTokensOfAStreamAreReadByPosition) {
  for (const bool in_pairs : {false, true}) {
    const auto& kernels = la::detail::position_kernels_for<float>(la::isa_level::automatic, in_pairs);
    const index_t most = kernels.most_queries;
    EXPECT_EQ(most, in_pairs && la::isa() == la::isa_level::amx_bf16 ? 32 : 16);
    for (const auto& [group, tokens] :
         {std::pair<index_t, index_t>{1, most}, {3, most / 3}, {4, most / 4}, {8, 4}, {40, 4}}) {
      attention_job<float> j = job(la::full_causal(), tokens, group, 1);
      EXPECT_FALSE(j.by_position());
      j.one_position = &kernels;
      EXPECT_EQ(j.most_tokens(), la::detail::most_tokens_by_position(group)) << "rows that are copied first";
      j.rows.window_as_stored = true;
      EXPECT_TRUE(j.by_position());
      ++j.q.tokens;
      EXPECT_FALSE(j.by_position());
    }
  }
}

TEST(BiasDistance, OfNearKeysIsTheTrueOne) {
  const plan_shape plan = {la::lm_infinite(4, 10), true};
  for (const key_kind kind : {key_kind::sinks_near, key_kind::window_near}) {
    const auto d = bias_distance_of(plan, kind, 100, 93);
    EXPECT_EQ(d.distance, 7);
    EXPECT_EQ(d.lane_step, 1);
    EXPECT_EQ(d.key_step, 1);
  }
}

TEST(BiasDistance, OfFarKeysIsTheLimitForAllOfThem) {
  const plan_shape plan = {la::lm_infinite(4, 10), true};
  for (const key_kind kind : {key_kind::sinks_far, key_kind::window_far}) {
    const auto d = bias_distance_of(plan, kind, 100, 3);
    EXPECT_EQ(d.distance, 10);
    EXPECT_EQ(d.lane_step, 0);
    EXPECT_EQ(d.key_step, 0);
  }
}

TEST(BiasDistance, OfFarSinksAtSlotsIsTheSameForAllQueries) {
  const plan_shape plan = {la::streaming_llm(4, 10), true};
  const auto d = bias_distance_of(plan, key_kind::sinks_far, 100, 3);
  EXPECT_EQ(d.distance, 13 - 3);
  EXPECT_EQ(d.lane_step, 0);
  EXPECT_EQ(d.key_step, 1);
}

// The far query meets keys turned to zero, or sinks turned to their own position.
TEST(FarQueryPosition, IsTheLimitOrTheLastSlot) {
  attention_job<float> clamped = job(la::lm_infinite(4, 10), 1), slots = job(la::streaming_llm(4, 10), 1);
  clamped.first_position = slots.first_position = 1000;
  EXPECT_EQ(far_query_position(clamped), 10u);
  EXPECT_EQ(far_query_position(slots), 1013u);
}
