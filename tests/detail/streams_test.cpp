// attend() of a span of streams.
#include <lambda_attention/attention.hpp>
#include <lambda_attention/detail/streams.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../refusal.hpp"
#include "../tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

constexpr index_t dim = 16, v_dim = 10;
using cache_type = la::kv_cache<la::f16, la::rope>;
using step_type = la::stream_step<float, float, float, la::f16, la::rope, float>;

// A stream with all its tokens, of which some are in the cache already.
struct stream {
  sequence<float> s;
  cache_type cache;

  stream(index_t tokens, index_t heads, index_t kv_heads, const la::lambda_shape& shape, index_t max_append,
         std::uint32_t seed)
      : s(tokens, heads, kv_heads, dim, v_dim, seed),
        cache(shape, la::rope(dim, 1000.0 * seed), kv_heads, dim, v_dim, options(max_append)) {}

  static la::kv_cache_options options(index_t max_append) {
    la::kv_cache_options result;
    result.max_append = max_append;
    return result;
  }
  // The next tokens.
  step_type step(index_t count) {
    const index_t first = cache.num_tokens();
    return {s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), &cache,
            s.out.view().slice(first, count)};
  }
  void attend(index_t count) {
    const step_type next = step(count);
    la::attend(next.q, next.k, next.v, cache, next.out);
  }
};

// Streams that differ in everything but their types.
std::vector<stream> streams() {
  std::vector<stream> all;
  all.emplace_back(60, 4, 2, la::lm_infinite(3, 11), 8, 1);
  all.emplace_back(60, 3, 1, la::lambda_shape{2, 11, 5}, 20, 2);
  all.emplace_back(60, 2, 2, la::streaming_llm(4, 9), 8, 3);
  all.emplace_back(60, 8, 2, la::sliding_window(30), 5, 4);
  all.emplace_back(60, 1, 1, la::lm_infinite(0, 1), 1, 5);
  return all;
}

// Throws when it is asked to run for the nth time.
class failing_executor {
 public:
  explicit failing_executor(int nth) : runs_left_(nth) {}
  index_t num_workers() const { return 1; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) {
    for (index_t task = 0; task < num_tasks; ++task) {
      if (runs_left_ == 1 && task == num_tasks / 2) throw std::runtime_error("no more");
      f(task, index_t{0});
    }
    --runs_left_;
  }

 private:
  int runs_left_;
};

}  // namespace

TEST(Streams, OfUnequalLengthsEqualSingleCalls) {
  std::vector<stream> together = streams(), alone = streams();
  const std::vector<std::vector<index_t>> calls = {{5, 0, 1, 23, 8}, {1, 1, 1, 1, 1},   {0, 30, 9, 0, 3},
                                                   {0, 0, 0, 0, 0},  {17, 2, 40, 4, 1}, {1, 0, 1, 1, 0}};
  for (const std::vector<index_t>& counts : calls) {
    std::vector<step_type> steps;
    for (std::size_t i = 0; i < together.size(); ++i) {
      steps.push_back(together[i].step(counts[i]));
      alone[i].attend(counts[i]);
    }
    la::attend(steps.data(), static_cast<index_t>(steps.size()));
    for (std::size_t i = 0; i < together.size(); ++i) {
      ASSERT_EQ(together[i].cache.num_tokens(), alone[i].cache.num_tokens()) << i;
      ASSERT_TRUE(same_bits(together[i].s.out.elements, alone[i].s.out.elements)) << i;
    }
  }
}

TEST(Streams, ALongCallEqualsItsSteps) {
  stream long_call(60, 4, 2, la::lm_infinite(3, 11), 8, 1), steps(60, 4, 2, la::lm_infinite(3, 11), 8, 1);
  long_call.attend(60);
  for (index_t i = 0; i < 60; i += 8) steps.attend(std::min(index_t{8}, 60 - i));
  EXPECT_TRUE(same_bits(long_call.s.out.elements, steps.s.out.elements));
}

TEST(Streams, NoneIsAccepted) {
  la::attend(static_cast<const step_type*>(nullptr), 0);
  std::vector<stream> all = streams();
  const step_type step = all[0].step(3);
  la::attend(&step, 0);
  EXPECT_EQ(all[0].cache.num_tokens(), 0);
}

TEST(Streams, TypesAreDeduced) {
  stream a(4, 2, 1, la::lm_infinite(1, 2), 8, 1), b(4, 2, 1, la::lm_infinite(1, 2), 8, 1);
  const la::stream_step step{a.s.q.view(), a.s.k.view(), a.s.v.view(), &a.cache, a.s.out.view()};
  la::attend(&step, 1);
  b.attend(4);
  EXPECT_TRUE(same_bits(a.s.out.elements, b.s.out.elements));
}

TEST(Streams, Refusals) {
  // What is said of the three streams, each with 5 tokens in its cache and 4 to come, one thing of them spoilt.
  const auto refused = [](auto change, index_t count = 3) {
    std::vector<stream> all = streams();
    all.erase(all.begin() + 3, all.end());
    std::vector<step_type> steps;
    for (stream& s : all) {
      s.attend(5);
      steps.push_back(s.step(4));
    }
    change(steps);
    std::vector<std::vector<float>> before;
    for (const stream& s : all) before.push_back(s.s.out.elements);
    const std::string message = refusal([&] { la::attend(steps.data(), count); });
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(all[i].cache.num_tokens(), message == "accepted" ? 9 : 5) << message;
      EXPECT_EQ(all[i].s.out.elements == before[i], message != "accepted") << message;
    }
    return message;
  };
  using steps_type = std::vector<step_type>;
  EXPECT_EQ(refused([](steps_type&) {}), "accepted");
  EXPECT_EQ(refused([](steps_type&) {}, -1), "attend: expected num_streams >= 0, got -1");
  for (const index_t count : {1, 2})
    EXPECT_EQ(refusal([&] { la::attend(static_cast<const step_type*>(nullptr), count); }),
              "attend: expected streams, got a null pointer");
  EXPECT_EQ(refused([](steps_type& s) { s[1].cache = nullptr; }),
            "attend: stream 1: expected a cache, got a null pointer");
  EXPECT_EQ(refused([](steps_type& s) {
              s[2].k = s[0].k;
              s[2].v = s[0].v;
              s[2].cache = s[0].cache;
            }),
            "attend: expected every cache once, got the same for streams 0 and 2");
  // The last of the streams is wrong: the others must not have begun.
  EXPECT_EQ(refused([](steps_type& s) { s[2].k.tokens = s[2].v.tokens = 3; }),
            "attend: stream 2: expected k.tokens == q.tokens, got 3 and 4");
  EXPECT_EQ(refused([](steps_type& s) { s[2].out.data = nullptr; }),
            "attend: stream 2: expected out with data, got a null pointer");

  const auto overlap = [](int a, int b) {
    return "attend: expected out of stream " + std::to_string(a) + " not to overlap a tensor of stream " +
           std::to_string(b) + ", got overlapping memory";
  };
  EXPECT_EQ(refused([](steps_type& s) { s[1].out.data = const_cast<float*>(s[0].q.data); }), overlap(1, 0));
  EXPECT_EQ(refused([](steps_type& s) { s[0].out.data = const_cast<float*>(s[2].k.data); }), overlap(0, 2));
  EXPECT_EQ(refused([](steps_type& s) { s[0].out.data = const_cast<float*>(s[1].v.data); }), overlap(0, 1));
  EXPECT_EQ(refused([](steps_type& s) { s[2].out.data = s[1].out.data; }), overlap(2, 1));
}

// An output of several rows, and in the gap behind its first another stream's; all rows of both are found.
TEST(Streams, OutputsMayInterleave) {
  constexpr index_t tokens = 4, heads = 2, row = heads * v_dim;
  std::vector<stream> all, alone;
  for (std::vector<stream>* of : {&all, &alone})
    for (const std::uint32_t seed : {1u, 2u, 3u}) of->emplace_back(60, heads, 1, la::lm_infinite(3, 11), 8, seed);
  std::vector<float> memory(2 * tokens * row + tokens * heads * dim);
  std::vector<step_type> steps = {all[0].step(tokens), all[1].step(1), all[2].step(tokens)};
  steps[0].out = la::token_major(memory.data(), tokens, heads, v_dim, 2 * row);
  steps[1].out = la::token_major(memory.data() + row, 1, heads, v_dim);
  steps[2].q = la::token_major(memory.data() + 2 * tokens * row - row, tokens, heads, dim);
  la::attend(steps.data(), 3);
  alone[0].attend(tokens);
  alone[1].attend(1);
  for (index_t d = 0; d < row; ++d) {
    const auto at = static_cast<std::size_t>(d);
    for (std::size_t t = 0; t < tokens; ++t) EXPECT_EQ(memory[2 * row * t + at], alone[0].s.out.elements[row * t + at]);
    EXPECT_EQ(memory[row + at], alone[1].s.out.elements[at]);
  }

  steps = {all[0].step(tokens), all[1].step(1), all[2].step(tokens)};
  steps[0].out = la::token_major(memory.data(), tokens, heads, v_dim, 2 * row);
  steps[1].out = la::token_major(memory.data() + row, 1, heads, v_dim);
  steps[2].q = la::token_major(memory.data() + 2 * tokens * row - row - 1, tokens, heads, dim);
  EXPECT_EQ(refusal([&] { la::attend(steps.data(), 3); }),
            "attend: expected out of stream 0 not to overlap a tensor of stream 2, got overlapping memory");
}

TEST(Streams, OutputsMayLieInAnyOrder) {
  std::vector<stream> all = streams();
  std::vector<float> memory(1000);
  std::vector<step_type> steps;
  for (std::size_t i = 0; i < all.size(); ++i) {  // downwards
    steps.push_back(all[i].step(1));
    steps[i].out.data = memory.data() + 200 * (all.size() - 1 - i);
  }
  la::attend(steps.data(), static_cast<index_t>(steps.size()));
  steps[0].q.data = memory.data();
  EXPECT_EQ(refusal([&] { la::attend(steps.data(), static_cast<index_t>(steps.size())); }),
            "attend: expected out of stream 4 not to overlap a tensor of stream 0, got overlapping memory");
}

// Each stream is checked against its own encoding.
TEST(Streams, EncodingsMayDiffer) {
  sequence<float> first(4, 6, 2, dim, v_dim, 1), other(4, 6, 2, dim, v_dim, 2);
  const auto caches = [](index_t heads) {
    return la::kv_cache<la::f32, la::alibi>(la::lm_infinite(3, 11), la::alibi(heads), 2, dim, v_dim);
  };
  auto right = caches(6), wrong = caches(4);
  const std::vector steps = {la::stream_step{first.q.view(), first.k.view(), first.v.view(), &right, first.out.view()},
                             la::stream_step{other.q.view(), other.k.view(), other.v.view(), &wrong, other.out.view()}};
  EXPECT_EQ(refusal([&] { la::attend(steps.data(), 2); }),
            "attend: stream 1: expected q.heads = 4, that of the position encoding, got 6");
  EXPECT_EQ(right.num_tokens(), 0);
}

// Streams may read the same memory: many answers to one prompt.
TEST(Streams, InputsMayBeShared) {
  stream a(8, 4, 2, la::lm_infinite(3, 11), 8, 1), b = a;
  std::vector<step_type> steps = {a.step(8), b.step(8)};
  steps[1].q = steps[0].q;
  steps[1].k = steps[0].k;
  steps[1].v = steps[0].v;
  la::attend(steps.data(), 2);
  EXPECT_TRUE(same_bits(a.s.out.elements, b.s.out.elements));
}

TEST(Streams, LseIsOfOneStream) {
  std::vector<stream> all = streams();
  const std::vector<step_type> steps = {all[0].step(4), all[2].step(4)};
  std::vector<float> lse(16, -1.0f);
  la::attention_options options;
  options.lse = la::token_major(lse.data(), 4, 4, 1);
  EXPECT_EQ(refusal([&] { la::attend(steps.data(), 2, options); }),
            "attend: expected no options.lse with more than one stream, got 2 streams");
  EXPECT_EQ(lse, std::vector<float>(16, -1.0f));
  la::attend(steps.data(), 1, options);
  EXPECT_EQ(std::count(lse.begin(), lse.end(), -1.0f), 0);
}

TEST(Streams, AFailedStepIsNotCountedIn) {
  for (const int nth : {1, 2, 3}) {
    std::vector<stream> failed = streams(), alone = streams();
    std::vector<step_type> steps;
    for (std::size_t i = 0; i < failed.size(); ++i) {
      failed[i].attend(10 + static_cast<index_t>(i));
      alone[i].attend(10 + static_cast<index_t>(i));
      steps.push_back(failed[i].step(18));
    }
    EXPECT_THROW(la::attend(steps.data(), 5, {}, failing_executor(nth)), std::runtime_error);
    for (std::size_t i = 0; i < failed.size(); ++i) {
      // The steps before the failed one, of at most max_append tokens each.
      const index_t done = std::min((nth - 1) * failed[i].cache.max_append(), index_t{18});
      ASSERT_EQ(failed[i].cache.num_tokens(), 10 + static_cast<index_t>(i) + done) << i;
      // The call may be made again, or another in its place.
      failed[i].attend(18 - done);
      alone[i].attend(18);
      ASSERT_EQ(failed[i].cache.num_tokens(), alone[i].cache.num_tokens());
      const auto rest = (10 + static_cast<index_t>(i)) * failed[i].s.q.heads * v_dim;
      ASSERT_TRUE(std::equal(failed[i].s.out.elements.begin() + rest, failed[i].s.out.elements.end(),
                             alone[i].s.out.elements.begin() + rest))
          << "stream " << i << ", failed in step " << nth;
    }
  }
}

// A step that failed has overwritten keys that only queries of older tokens see: asking for these again is refused
// rather than answered wrongly.
TEST(Streams, AfterAFailedStepOlderQueriesAreRefused) {
  stream s(40, 4, 2, la::lm_infinite(3, 11), 8, 1);
  for (int i = 0; i < 3; ++i) s.attend(8);
  const std::vector<float> before = s.s.out.elements;
  const auto again = [&](index_t count) {
    return refusal(
        [&] { la::attend(s.s.q.view().slice(24 - count, count), s.cache, s.s.out.view().slice(24 - count, count)); });
  };
  EXPECT_EQ(again(8), "accepted");

  const step_type step = s.step(3);
  EXPECT_THROW(la::attend(&step, 1, {}, failing_executor(1)), std::runtime_error);
  EXPECT_EQ(s.cache.num_tokens(), 24);
  EXPECT_EQ(again(6), "attend: expected q.tokens <= 5, got 6 (cache.max_append() = 8, cache.num_rewindable() = 5)");
  std::fill(s.s.out.elements.begin() + 19 * 40, s.s.out.elements.begin() + 24 * 40, -1.0f);
  EXPECT_EQ(again(5), "accepted");
  for (std::size_t i = 0; i < 24 * 40; ++i) ASSERT_NEAR(s.s.out.elements[i], before[i], 1e-5) << i;

  s.attend(3);  // succeeds; the ring is whole again
  EXPECT_EQ(refusal([&] { la::attend(s.s.q.view().slice(19, 8), s.cache, s.s.out.view().slice(19, 8)); }), "accepted");
}
