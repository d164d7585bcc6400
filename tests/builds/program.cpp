// A program without a test framework that compares what the library computes with the formula: for compilers, flags and
// tools that a framework is in the way of; see run. Exit status 0: all is within the bounds.
#include <lambda_attention/eigen.hpp>
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>
#include <lambda_attention/reference.hpp>

#include <support/call.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <cstdio>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr std::uint64_t seed = 5;
constexpr lambda_shape shapes[] = {lm_infinite(3, 20), {2, 20, 9}, streaming_llm(3, 17), full_causal()};
constexpr extents sizes = {90, 2, 4, 32, 64};

int num_compared = 0, num_wrong = 0;

void compare(double error, double bound, const char* what, isa_level isa) {
  ++num_compared;
  if (error <= bound) return;
  ++num_wrong;
  std::printf("seed %d, comparison %d, %s, %s: error %g, bound %g\n", static_cast<int>(seed), num_compared, what,
              name_of(isa), error, bound);
}

template <class Real, class Position>
void compare_sequences(const inputs<>& in, const expected_rows& expected, const lambda_shape& shape,
                       const Position& position, const attention_options& options, const char* what) {
  compare(expected.nmse(attend_sequence<Real>(in, shape, position, options)), arithmetic_bound<Real>(2), what,
          options.isa);
}

// In a chunk, and token by token.
template <class Storage, class Position>
void compare_streams(const inputs<>& in, const expected_rows& expected, const lambda_shape& shape,
                     const Position& position, const attention_options& options, const char* what) {
  if (shape.window == unlimited) return;
  auto cache = cache_for<Storage>(in, shape, position);
  auto out = output_for<typename Storage::compute_type>(in);
  attend_part(in, 0, 40, cache, out, options);
  for (index_t token = 40; token < sizes.tokens; ++token) attend_part(in, token, 1, cache, out, options);
  compare(expected.nmse(out), storage_bound<Storage>(2, options.isa), what, options.isa);
}

template <class Position>
void compare_all(const Position& position, const char* what) {
  generator random(seed);
  const inputs<> in = random_inputs(random, sizes);
  for (const lambda_shape& shape : shapes) {
    const expected_rows expected(random, in.q, in.k, in.v, shape, position, {}, 30);
    for (int level = 1; level <= static_cast<int>(highest_isa()); ++level) {
      attention_options options;
      options.isa = static_cast<isa_level>(level);
      compare_sequences<float>(in, expected, shape, position, options, what);
      compare_sequences<double>(in, expected, shape, position, options, what);
      compare_streams<f64>(in, expected, shape, position, options, what);
      compare_streams<f32>(in, expected, shape, position, options, what);
      compare_streams<f16>(in, expected, shape, position, options, what);
      compare_streams<bf16>(in, expected, shape, position, options, what);
      compare_streams<int8>(in, expected, shape, position, options, what);
    }
  }
}

}  // namespace

int main() {
  compare_all(rope(sizes.head_dim), "rope");
  compare_all(rope(sizes.head_dim, 10000, {pair_layout::interleaved, 16, 1.125}), "rope of some pairs");
  compare_all(alibi(sizes.heads()), "alibi");
  compare_all(none(), "none");
  std::printf("%d comparisons up to %s, %d wrong\n", num_compared, name_of(highest_isa()), num_wrong);
  return num_wrong == 0 && num_compared > 0 ? 0 : 1;
}
