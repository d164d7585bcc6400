// Law 3: one call == any chunks == token by token, also after the ring has wrapped three times.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr index_t num_tokens = 150;
constexpr index_t max_append = 20;  // in tiles, where the last round has few tokens

// The rings of a stream in rounds have at most 24 - 1 + max_append rows: 150 tokens overwrite each more than three times.
constexpr lambda_shape shapes[] = {
    lm_infinite(3, 24),    // limit == window
    {2, 24, 7},            // limit inside the window: two rings
    {0, 24, 22},           // the last limit that is
    {4, 24, 23},           // the first that is not
    {5, 1, 0},             // a query sees itself and the sinks
    {6, 0, 3},             // the sinks alone
    sliding_window(19),    //
    streaming_llm(4, 20),  //
};

// Every way of cutting the stream has its own cache; all of them see the same stored rows.
template <class Storage, class Position>
class stream {
 public:
  using output = tensor<typename Storage::compute_type>;

  stream(const inputs<>& in, const lambda_shape& shape, const Position& position, isa_level isa)
      : in_(in), shape_(shape), position_(position) {
    options_.isa = isa;
  }

  // One round of so many tokens that nothing is ever overwritten before it has been used.
  output at_once() const { return attend_stream<Storage>(in_, shape_, position_, {num_tokens}, options_); }

  // One call, which the ring cuts into rounds.
  output in_rounds() const { return attend_stream<Storage>(in_, shape_, position_, {max_append}, options_); }

  output token_by_token() const {
    auto cache = cache_for<Storage>(in_, shape_, position_, {1});
    output out = output_for<typename Storage::compute_type>(in_);
    for (index_t i = 0; i < num_tokens; ++i) attend_part(in_, i, 1, cache, out, options_);
    return out;
  }

  // No tokens, fewer and more than a round; every other chunk is appended first and attended to then.
  output in_chunks(generator& random) const {
    auto cache = cache_for<Storage>(in_, shape_, position_, {max_append});
    output out = output_for<typename Storage::compute_type>(in_);
    for (index_t first = 0; first < num_tokens;) {
      const index_t count = std::min(draw(random, 0, 2 * max_append), num_tokens - first);
      if (count > max_append || draw(random, 0, 1) == 0) {
        attend_part(in_, first, count, cache, out, options_);
      } else {
        append(in_.k.view().slice(first, count), in_.v.view().slice(first, count), cache, options_.isa);
        attend(in_.q.view().slice(first, count), cache, out.view().slice(first, count), options_);
      }
      first += count;
    }
    return out;
  }

  // In one call with a shorter stream.
  output in_company() const {
    auto cache = cache_for<Storage>(in_, shape_, position_, {max_append}), other_cache = cache;
    output out = output_for<typename Storage::compute_type>(in_), other_out = out;
    const auto step = [&](index_t count, auto& of, output& to) {
      return stream_step{in_.q.view().slice(0, count), in_.k.view().slice(0, count), in_.v.view().slice(0, count), &of,
                         to.view().slice(0, count)};
    };
    const std::vector steps = {step(num_tokens / 2, other_cache, other_out), step(num_tokens, cache, out)};
    attend(steps.data(), 2, options_);
    return out;
  }

 private:
  const inputs<>& in_;
  const lambda_shape& shape_;
  const Position& position_;
  attention_options options_;
};

class streams : public law {};
INSTANTIATE_TEST_SUITE_P(laws, streams, every_encoding_and_group(), name_of_case);

TEST_P(streams, may_be_cut_anywhere) {
  constexpr int seed = 3;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {num_tokens, 2, group()};
  const inputs<> in = random_inputs(random, e, layout::head_major);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      const expected_rows expected(random, in.q, in.k, in.v, shape, position);
      for (const isa_level isa : isa_levels()) {
        SCOPED_TRACE(name_of(isa));
        for_each_storage([&](auto storage, const char* name) {
          SCOPED_TRACE(name);
          using storage_type = decltype(storage);
          if (!has_own_kernels(isa, storage_type::format)) return;
          const stream<storage_type, std::decay_t<decltype(position)>> s(in, shape, position, isa);
          const auto whole = s.at_once();
          const double bound = between_two(stored_bound<storage_type>(isa));
          EXPECT_LE(expected.nmse(whole), storage_bound<storage_type>(1, isa));
          EXPECT_LE(nmse(s.in_rounds().view(), whole.view()), bound);
          EXPECT_LE(nmse(s.in_chunks(random).view(), whole.view()), bound);
          EXPECT_LE(nmse(s.in_company().view(), whole.view()), bound);
          EXPECT_LE(nmse(s.token_by_token().view(), whole.view()), bound);
        });
      }
    }
  });
}

// Rows from a token on as the storage gives them back.
template <class Storage>
void store_and_load(tensor<float>& rows, index_t first_token) {
  const tensor_view<float> view = rows.view();
  std::vector<unsigned char> stored(static_cast<std::size_t>(Storage::row_bytes(view.dim)));
  for (index_t t = first_token; t < view.tokens; ++t) {
    for (index_t h = 0; h < view.heads; ++h) {
      const float scale = Storage::encode(view.row(t, h), view.dim, stored.data());
      Storage::decode(stored.data(), scale, view.dim, view.row(t, h));
    }
  }
}

class streams_without_rotation : public law {};
INSTANTIATE_TEST_SUITE_P(laws, streams_without_rotation,
                         testing::Combine(testing::Values(encoding::alibi, encoding::t5_bias, encoding::none),
                                          every_group()),
                         name_of_case);

// Where a row is stored as it came, the rounding is that of the storage, once, and of nothing but the window's rows.
TEST_P(streams_without_rotation, round_a_row_once_and_no_sink) {
  constexpr int seed = 4;
  SCOPED_TRACE("seed " + std::to_string(seed));
  const lambda_shape shape = lm_infinite(3, 24);
  for (const index_t dim : {1, 7, 16, 33}) {
    SCOPED_TRACE("head_dim " + std::to_string(dim));
    const extents e = {num_tokens, 2, group(), dim, 40 - dim};
    with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
      for_each_storage([&](auto storage, const char* name) {
        using storage_type = decltype(storage);
        if constexpr (std::is_same_v<typename storage_type::compute_type, float>) {
          SCOPED_TRACE(name);
          generator random(seed);
          const inputs<> in = random_inputs(random, e);
          inputs<> rounded = in;
          store_and_load<storage_type>(rounded.k, shape.num_sinks);
          store_and_load<storage_type>(rounded.v, shape.num_sinks);
          const expected_rows expected(random, rounded.q, rounded.k, rounded.v, shape, position);
          for (const isa_level isa : isa_levels()) {
            if (!has_own_kernels(isa, storage_type::format)) continue;
            const stream<storage_type, std::decay_t<decltype(position)>> s(in, shape, position, isa);
            EXPECT_LE(expected.nmse(s.in_rounds()), stored_bound<storage_type>(isa)) << name_of(isa);
            EXPECT_LE(expected.nmse(s.token_by_token()), stored_bound<storage_type>(isa)) << name_of(isa);
          }
        }
      });
    });
  }
}

}  // namespace
