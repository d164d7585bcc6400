// How far results are from each other and from the formula, and how far they may be.
#pragma once

#include <lambda_attention/reference.hpp>
#include <lambda_attention/storage.hpp>

#include <support/random_tensor.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

namespace support {

/// Normalised mean squared error: sum (actual - expected)^2 / sum expected^2. NaN wherever an element is.
class error_sum {
 public:
  void add(long double actual, long double expected) {
    error_ += (actual - expected) * (actual - expected);
    power_ += expected * expected;
  }
  double nmse() const { return error_ == 0 ? 0 : static_cast<double>(error_ / power_); }

 private:
  long double error_ = 0;
  long double power_ = 0;
};

template <class A, class B>
void add_errors(const tensor_view<A>& actual, const tensor_view<B>& expected, error_sum& sum) {
  for (index_t t = 0; t < expected.tokens; ++t)
    for (index_t h = 0; h < expected.heads; ++h)
      for (index_t d = 0; d < expected.dim; ++d)
        sum.add(lambda_attention::reference::number(actual.row(t, h)[d]),
                lambda_attention::reference::number(expected.row(t, h)[d]));
}

template <class A, class B>
double nmse(const tensor_view<A>& actual, const tensor_view<B>& expected) {
  error_sum sum;
  add_errors(actual, expected, sum);
  return sum.nmse();
}

/// Equality of bits: a NaN equals itself, and -0 is not 0.
template <class A, class B>
bool same_bits(const tensor_view<A>& a, const tensor_view<B>& b) {
  for (index_t t = 0; t < a.tokens; ++t)
    for (index_t h = 0; h < a.heads; ++h)
      if (std::memcmp(a.row(t, h), b.row(t, h), static_cast<std::size_t>(a.dim) * sizeof(A)) != 0) return false;
  return true;
}

/// The bound for arithmetic in Real, on numbers as they are; sigma is the standard deviation of the logits.
template <class Real>
double arithmetic_bound(double sigma = 1) {
  return sizeof(Real) == sizeof(double) ? 1e-24 : 1e-11 * std::fmax(1, sigma * sigma);
}

/// u^2, the mean squared relative error of a number that a format rounds; of int8, in rows of 128 normal numbers.
constexpr double squared_rounding(lambda_attention::row_format format) {
  using lambda_attention::row_format;
  return format == row_format::f16 ? 5e-8 : format == row_format::bf16 ? 2.5e-6 : format == row_format::int8 ? 4e-5 : 0;
}

/// The bound of what roundings leave: c u^2 (values + keys sigma^2) for so many of each.
///
/// With weights p and independent errors, rounded values v (1 + e) move the output by sum p e v: u^2 of its own square sum
/// p^2 v^2. So do rounded weights. Rounded keys, or queries, move each logit by an error of variance u^2 sigma^2, and the
/// output by sum p error (v - out): u^2 sigma^2 of that square where head dimensions are many (weighted_sigma: few). So c = 1
/// on average. It is 2 here: a case has few rows, and int8's u^2 grows with the largest number of a row: by a third at 512.
constexpr double rounding_bound(double u2, double values, double keys, double sigma) {
  return 2 * u2 * (values + keys * sigma * sigma);
}

/// The sigma of rounding_bound for so few head dimensions: its square is sigma^2 (1 + 12 sigma^2 / head_dim).
///
/// A logit sum a k of a query a, scaled, and a key k is moved by sum a k e, of variance u^2 sum a^2 k^2. Keys of large
/// logits, whose k are large along a, have the weight: normal k, weighted by p^2 ~ exp(2 sum a k), have k^2 = 1 + 4 a^2 on
/// average. And a normal a, sigma^2 / head_dim on average in its square, has 3 sigma^4 / head_dim^2 in its fourth power. Sigma
/// is that of scores: biases are not rounded. Queries of large a have more weight than others too; that is not counted, and
/// comes to less than the other 2 up to 2^18 keys: at head_dim 16 and sigma 2 to 0.86 of the bound.
inline double weighted_sigma(double sigma, index_t head_dim) {
  return sigma * std::sqrt(1 + 12 * sigma * sigma / static_cast<double>(head_dim));
}

/// What is more where an ISA takes bfloat16s in pairs, for it rounds weights and queries to them, and keys that it turns.
inline double pairs_bound(lambda_attention::row_format format, lambda_attention::isa_level isa, double keys,
                          double sigma) {
  using lambda_attention::isa_level;
  const isa_level level = isa == isa_level::automatic ? lambda_attention::isa() : isa;
  const bool in_pairs = format == lambda_attention::row_format::bf16 && level >= isa_level::avx512_bf16;
  return in_pairs ? rounding_bound(squared_rounding(format), 1, keys, sigma) : 0;
}

/// What is more where an ISA takes bytes as they are: it rounds queries to 1 / 16256 of the largest of their
/// numbers, which of normal ones is 3.5 times their standard deviation, and weights to 1 / 65535 of the largest of 256 keys:
/// u^2 = 3.5^2 / 12 / 16256^2 = 4e-9, and 256 / 12 / 65535^2 = 5e-9.
inline double bytes_bound(lambda_attention::row_format format, lambda_attention::isa_level isa, double sigma) {
  using lambda_attention::isa_level;
  const isa_level level = isa == isa_level::automatic ? lambda_attention::isa() : isa;
  const bool as_they_are = format == lambda_attention::row_format::int8 && level >= isa_level::avx512_vnni;
  return as_they_are ? rounding_bound(5e-9, 1, 1, sigma) : 0;
}

/// The bound of a call on tensors of a format.
template <class Real>
double tensor_bound(lambda_attention::row_format format, lambda_attention::isa_level isa, double sigma = 1) {
  return arithmetic_bound<Real>(sigma) + pairs_bound(format, isa, 2, sigma);
}

/// The bound of a call on the rows that a cache has stored.
template <class Storage>
double stored_bound(lambda_attention::isa_level isa, double sigma = 1) {
  return arithmetic_bound<typename Storage::compute_type>(sigma) + pairs_bound(Storage::format, isa, 1, sigma) +
         bytes_bound(Storage::format, isa, sigma);
}

/// The bound through a cache, which may round keys and values.
template <class Storage>
double storage_bound(double sigma = 1, lambda_attention::isa_level isa = lambda_attention::isa_level::automatic) {
  return stored_bound<Storage>(isa, sigma) + rounding_bound(squared_rounding(Storage::format), 1, 1, sigma);
}

/// Two results that are each within a bound of a third are within this of each other.
inline double between_two(double bound) { return 4 * bound; }

}  // namespace support
