// The root-mean-square error is at most twice that of a naive loop in the same precision.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr extents sizes = {300, 1, 2, 64, 64};  // 300 x 64 outputs of one head a query

// Rows as a model turns them, by the cosines and sines of their own positions; as they are without frequencies.
template <class Real>
tensor<Real> turned(const tensor<float>& rows, const std::vector<double>& frequencies) {
  const tensor_view<const float> from = rows.view();
  tensor<Real> result(from.tokens, from.heads, from.dim);
  for (index_t t = 0; t < from.tokens; ++t) {
    for (index_t h = 0; h < from.heads; ++h) {
      Real* const to = result.view().row(t, h);
      std::copy_n(from.row(t, h), from.dim, to);
      for (std::size_t p = 0; p < frequencies.size(); ++p) {
        const double angle = static_cast<double>(t) * frequencies[p];
        const Real c = static_cast<Real>(std::cos(angle)), s = static_cast<Real>(std::sin(angle));
        const Real a = to[p], b = to[p + frequencies.size()];
        to[p] = a * c - b * s;
        to[p + frequencies.size()] = b * c + a * s;
      }
    }
  }
  return result;
}

// Full causal attention, in the order of the formula.
template <class Real>
tensor<Real> naive_loop(const tensor<Real>& queries, const tensor<Real>& keys, const tensor<float>& values) {
  const auto q = queries.view(), k = keys.view();
  const auto v = values.view();
  tensor<Real> result(q.tokens, q.heads, v.dim);
  for (index_t i = 0; i < q.tokens; ++i) {
    for (index_t h = 0; h < q.heads; ++h) {
      const index_t kv_head = h / (q.heads / k.heads);
      std::vector<Real> weights;
      for (index_t j = 0; j <= i; ++j) {
        Real score = 0;
        for (index_t d = 0; d < q.dim; ++d) score += q.row(i, h)[d] * k.row(j, kv_head)[d];
        weights.push_back(score / std::sqrt(static_cast<Real>(q.dim)));
      }
      const Real largest = *std::max_element(weights.begin(), weights.end());
      Real sum = 0;
      for (Real& weight : weights) sum += weight = std::exp(weight - largest);
      for (index_t d = 0; d < v.dim; ++d) {
        Real out = 0;
        for (index_t j = 0; j <= i; ++j)
          out += weights[static_cast<std::size_t>(j)] * static_cast<Real>(v.row(j, kv_head)[d]);
        result.view().row(i, h)[d] = out / sum;
      }
    }
  }
  return result;
}

template <class Real, class Storage, class Position>
void compare(const inputs<>& in, const Position& position, const std::vector<double>& frequencies,
             const expected_rows& expected) {
  const double naive = std::sqrt(
      expected.nmse(naive_loop<Real>(turned<Real>(in.q, frequencies), turned<Real>(in.k, frequencies), in.v)));
  for (const isa_level isa : isa_levels()) {
    attention_options options;
    options.isa = isa;
    const lambda_shape shape = sliding_window(sizes.tokens);
    EXPECT_LE(std::sqrt(expected.nmse(attend_sequence<Real>(in, shape, position, options))), 2 * naive)
        << name_of(isa) << ", " << 8 * sizeof(Real) << " bits";
    EXPECT_LE(std::sqrt(expected.nmse(attend_stream<Storage>(in, shape, position, {1}, options))), 2 * naive)
        << name_of(isa) << ", " << 8 * sizeof(Real) << " bits, token by token";
  }
}

TEST(naive_loop, is_at_least_half_as_wrong) {
  constexpr int seed = 12;
  for (const double sigma : {1, 10}) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", sigma " + std::to_string(sigma));
    generator random(seed);
    const inputs<> in = random_inputs(random, sizes, layout::token_major, sigma);
    const rope turning(sizes.head_dim);
    std::vector<double> frequencies;
    for (index_t p = 0; p < turning.num_pairs(); ++p) frequencies.push_back(turning.inverse_frequency(p));

    const expected_rows without(random, in.q, in.k, in.v, full_causal(), none{});
    compare<float, f32>(in, none{}, {}, without);
    compare<double, f64>(in, none{}, {}, without);
    const expected_rows with(random, in.q, in.k, in.v, full_causal(), turning);
    compare<float, f32>(in, turning, frequencies, with);
    compare<double, f64>(in, turning, frequencies, with);
  }
}

}  // namespace
