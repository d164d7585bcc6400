// Law 8: appended and taken back == never appended; a fork, and a stream saved and loaded, == the original. Bit for bit.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// A draft of max_rewind tokens takes two steps: their rows come on top of those that a step takes.
constexpr index_t num_tokens = 85, max_append = 3, max_rewind = 5;

// One for each way in which a cache keeps rows; the longest ring has 16 - 1 + 8 rows, and wraps three times.
constexpr lambda_shape shapes[] = {lm_infinite(3, 16), {2, 16, 5}, {4, 0, 3}, sliding_window(9), streaming_llm(4, 12)};

class rewind_law : public law {};
INSTANTIATE_TEST_SUITE_P(laws, rewind_law,
                         testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 4)), name_of_case);

// The real tokens of a stream, and others that are taken back.
template <class Storage, class Position>
class two_streams {
 public:
  using cache = kv_cache<Storage, Position>;
  using output = tensor<typename Storage::compute_type>;

  two_streams(generator& random, const extents& e, const lambda_shape& shape, const Position& position)
      : real_(random_inputs(random, e)), rejected_(real_), shape_(shape), position_(position) {
    for (tensor<float>* rows : {&rejected_.k, &rejected_.v})
      for_each_element(rows->view(), [](float& x) { x = std::numeric_limits<float>::quiet_NaN(); });
  }

  cache made() const { return cache_for<Storage>(real_, shape_, position_, {max_append, max_rewind}); }
  output room() const { return output_for<typename Storage::compute_type>(real_); }

  // The real tokens [first, last) in random steps; before each, if `rejected`, other tokens come and go, whose keys and values
  // are NaN.
  void feed(generator random, index_t first, index_t last, cache& stream, output& out, bool rejected = false) const {
    for (index_t count; first < last; first += count) {
      count = std::min(last - first, draw(random, 1, max_append));
      for (index_t drafts = draw(random, 0, 2); drafts > 0; --drafts) {
        const index_t draft = std::min(last - first, draw(random, 1, max_rewind));
        if (!rejected) continue;
        output unused = room();
        attend_part(rejected_, first, draft, stream, unused);
        stream.rewind(draft);
      }
      attend_part(real_, first, count, stream, out);
    }
  }

 private:
  inputs<> real_;
  inputs<> rejected_;
  const lambda_shape& shape_;
  const Position& position_;
};

template <class Use>
void for_each_stream(encoding encoded, index_t group, Use&& use) {
  constexpr int seed = 8;
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 2, group};
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      for_each_storage([&](auto storage, const char* name) {
        SCOPED_TRACE(name);
        generator random(seed);
        const two_streams<decltype(storage), std::decay_t<decltype(position)>> streams(random, e, shape, position);
        use(random, streams);
      });
    }
  });
}

TEST_P(rewind_law, tokens_taken_back_never_came) {
  for_each_stream(encoding_under_test(), group(), [](const generator& random, const auto& streams) {
    auto plain = streams.made(), drafted = plain;
    auto expected = streams.room(), out = expected;
    streams.feed(random, 0, num_tokens, plain, expected);
    streams.feed(random, 0, num_tokens, drafted, out, true);
    EXPECT_TRUE(same_bits(out.view(), expected.view()));
  });
}

TEST_P(rewind_law, forks_and_loaded_streams_are_the_original) {
  for_each_stream(encoding_under_test(), group(), [](const generator& random, const auto& streams) {
    // In the sinks, before a window is full, after the ring has wrapped.
    for (const index_t middle : {2, 11, 60}) {
      SCOPED_TRACE("after " + std::to_string(middle) + " tokens");
      auto original = streams.made();
      auto expected = streams.room();
      streams.feed(random, 0, middle, original, expected, true);
      std::stringstream file;
      original.save(file);
      auto fork = original, loaded = streams.made();
      auto of_fork = expected, of_loaded = expected, other = expected;
      streams.feed(random, 0, 30, loaded, other);  // whose past is replaced
      loaded.load(file);
      EXPECT_EQ(loaded.num_tokens(), middle);
      const index_t back = std::min(middle, max_rewind);
      for (auto* stream : {&original, &fork, &loaded}) stream->rewind(back);
      streams.feed(random, middle - back, num_tokens, original, expected);
      streams.feed(random, middle - back, num_tokens, fork, of_fork);
      streams.feed(random, middle - back, num_tokens, loaded, of_loaded);
      EXPECT_TRUE(same_bits(of_fork.view(), expected.view()));
      EXPECT_TRUE(same_bits(of_loaded.view(), expected.view()));
    }
  });
}

// A cache whose rings are longer, or shorter, keeps the rows at other places.
TEST_P(rewind_law, caches_with_other_rings_take_a_stream_in) {
  constexpr int seed = 9;
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 2, group()};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      generator random(seed);
      const inputs<> in = random_inputs(random, e);
      auto original = cache_for<f16>(in, shape, position, {max_append, max_rewind});
      auto expected = output_for<float>(in);
      for (index_t first = 0; first < 60; first += max_append) attend_part(in, first, max_append, original, expected);
      std::stringstream file;
      original.save(file);
      for (const kv_cache_options& rings : {kv_cache_options{20, 7}, kv_cache_options{1, 2}, kv_cache_options{3, 0}}) {
        SCOPED_TRACE("max_append " + std::to_string(rings.max_append));
        auto loaded = cache_for<f16>(in, shape, position, rings);
        file.seekg(0);
        loaded.load(file);
        auto stream = original;
        for (auto* s : {&stream, &loaded}) s->rewind(std::min<index_t>(rings.max_rewind, max_rewind));
        const index_t first = stream.num_tokens(), count = num_tokens - first;
        auto out = expected;
        attend_part(in, first, count, stream, expected);
        attend_part(in, first, count, loaded, out);
        const auto tail = [&](const tensor<float>& t) { return t.view().slice(first, count); };
        EXPECT_LE(nmse(tail(out), tail(expected)), between_two(stored_bound<f16>(isa_level::automatic)));
      }
    }
  });
}

}  // namespace
