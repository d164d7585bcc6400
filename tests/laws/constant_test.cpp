// Law 10: neither the memory of a cache nor the allocations of a decode step, which are none, depend on the tokens seen.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/heap.hpp>

#include <gtest/gtest.h>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr lambda_shape shapes[] = {lm_infinite(4, 24), {4, 24, 9}, streaming_llm(4, 20)};

// Allocations of `step` more tokens.
template <class Cache, class Out>
long allocations_of(const inputs<>& in, index_t step, Cache& cache, tensor<Out>& out,
                    const attention_options& options) {
  const long before = heap::num_allocations;
  attend_part(in, 0, step, cache, out, options);
  return heap::num_allocations - before;
}

class constant : public law {};
INSTANTIATE_TEST_SUITE_P(laws, constant, every_encoding_and_group(), name_of_case);

TEST_P(constant, are_the_allocations_of_a_step) {
  generator random(10);
  const extents e = {40, 2, group()};
  const inputs<> in = random_inputs(random, e, layout::padded);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      for (const isa_level isa : isa_levels()) {
        SCOPED_TRACE(name_of(isa));
        for_each_storage([&](auto storage, const char* name) {
          SCOPED_TRACE(name);
          using storage_type = decltype(storage);
          if (!has_own_kernels(isa, storage_type::format)) return;
          for (const index_t step : {1, 3, 40}) {
            auto cache = cache_for<storage_type>(in, shape, position, {40});
            auto out = output_for<typename storage_type::compute_type>(in);
            attention_options options;
            options.isa = isa;
            EXPECT_GT(allocations_of(in, step, cache, out, options), 0) << "nothing is counted";

            workspace scratch(scratch_bytes(cache, e.heads(), step, 1, isa));
            const index_t reserved = scratch.bytes();
            options.workspace = &scratch;
            cache.clear();
            while (cache.num_tokens() < 150)
              ASSERT_EQ(allocations_of(in, step, cache, out, options), 0) << "at token " << cache.num_tokens();
            EXPECT_EQ(scratch.bytes(), reserved);
          }
        });
      }
    }
  });
}

TEST(constant_for_ever, are_bytes_and_allocations) {
  generator random(11);
  const inputs<> in = random_inputs(random, {500, 1, 1});
  const rope position(12);
  for (const lambda_shape& shape : shapes) {
    SCOPED_TRACE(to_string(shape));
    for_each_storage([&](auto storage, const char* name) {
      SCOPED_TRACE(name);
      using storage_type = decltype(storage);
      auto cache = cache_for<storage_type>(in, shape, position);
      auto out = output_for<typename storage_type::compute_type>(in);
      workspace scratch(scratch_bytes(cache, 1, 1));
      attention_options options;
      options.workspace = &scratch;
      const index_t bytes = cache.bytes();
      for (const index_t num_tokens : {1000, 1000000}) {
        const long before = heap::num_allocations;
        while (cache.num_tokens() < num_tokens) append(in.k.view(), in.v.view(), cache);
        EXPECT_EQ(heap::num_allocations - before, 0);
        EXPECT_EQ(cache.num_tokens(), num_tokens);
        EXPECT_EQ(cache.bytes(), bytes);
        auto fork = cache;
        EXPECT_EQ(allocations_of(in, 1, fork, out, options), 0);
        EXPECT_EQ(fork.bytes(), bytes);
      }
    });
  }
}

// bytes() is not a number of its own: it is what the cache has allocated, and itself.
TEST(constant_for_ever, bytes_are_what_is_allocated) {
  for_each_storage([&](auto storage, const char* name) {
    for (const lambda_shape& shape : shapes) {
      const long before = heap::num_bytes;
      const kv_cache<decltype(storage), lambda_attention::none> cache(shape, {}, 2, 12, 20);
      EXPECT_EQ(cache.bytes(), heap::num_bytes - before + static_cast<long>(sizeof cache))
          << name << ", " << to_string(shape);
    }
  });
}

}  // namespace
