// Law 9: fewer KV heads than query heads == as many, each given to its query heads in turn.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>

#include <gtest/gtest.h>

#include <algorithm>

namespace {

using namespace support;
using namespace lambda_attention;

template <class T>
tensor<T> repeated(const tensor<T>& heads, index_t times) {
  const tensor_view<const T> from = heads.view();
  tensor<T> result(from.tokens, from.heads * times, from.dim);
  for (index_t t = 0; t < from.tokens; ++t)
    for (index_t h = 0; h < from.heads * times; ++h)
      std::copy_n(from.row(t, h / times), from.dim, result.view().row(t, h));
  return result;
}

class groups : public law {};
INSTANTIATE_TEST_SUITE_P(laws, groups, every_encoding_and_group(), name_of_case);

TEST_P(groups, are_repeated_heads) {
  constexpr int seed = 9;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {100, 3, group()};
  const inputs<> in = random_inputs(random, e);
  const inputs<> alone = {in.q, repeated(in.k, group()), repeated(in.v, group())};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : {lm_infinite(3, 24), lambda_shape{2, 40, 7}, streaming_llm(4, 20)}) {
      SCOPED_TRACE(to_string(shape));
      for (const isa_level isa : isa_levels()) {
        SCOPED_TRACE(name_of(isa));
        attention_options options;
        options.isa = isa;
        if (has_own_kernels(isa, row_format::f32)) {
          EXPECT_LE(nmse(attend_sequence<float>(in, shape, position, options).view(),
                         attend_sequence<float>(alone, shape, position, options).view()),
                    between_two(arithmetic_bound<float>()));
        }
        for_each_storage([&](auto storage, const char* name) {
          using storage_type = decltype(storage);
          if (!has_own_kernels(isa, storage_type::format)) return;
          for (const index_t max_append : {1, 40}) {  // rows at a time, tiles at a time
            EXPECT_LE(nmse(attend_stream<storage_type>(in, shape, position, {max_append}, options).view(),
                           attend_stream<storage_type>(alone, shape, position, {max_append}, options).view()),
                      between_two(stored_bound<storage_type>(isa)))
                << name;
          }
        });
      }
    }
  });
}

}  // namespace
