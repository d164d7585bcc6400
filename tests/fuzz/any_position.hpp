// Every encoding as one type, so that a target is compiled once; and one whose rotations round nothing.
#pragma once

#include <lambda_attention/position.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/t5_bias.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "input.hpp"

namespace fuzz {

using lambda_attention::pair_layout;
using lambda_attention::position_data;

/// Pair p turns by p % 4 quarters a position: numbers change places and signs, and a factor that is a power of two changes
/// exponents. A row of few bits stays one, at any position.
class quarter_turns : public lambda_attention::position_encoding {
 public:
  quarter_turns(index_t head_dim, index_t num_pairs, pair_layout layout, double factor, bool by_function)
      : head_dim_(head_dim), layout_(layout), factor_(factor), by_function_(by_function) {
    for (index_t p = 0; p < num_pairs; ++p) turns_.push_back(static_cast<std::uint64_t>(p % 4) << 62);
  }

  index_t head_dim() const { return head_dim_; }
  double factor() const { return factor_; }

  position_data data() const {
    position_data data;
    if (by_function_)
      data.function = lambda_attention::row_function_of(*this);
    else
      data.rotation = {turns_.data(), num_pairs(), layout_, factor_};
    return data;
  }

  template <class Real>
  void turn(std::uint64_t position, Real* row, index_t /*head_dim*/) const noexcept {
    for (index_t p = 0; p < num_pairs(); ++p) {
      Real &a = row[first_of(p)], &b = row[second_of(p)];
      const Real factor = static_cast<Real>(factor_), x = a * factor, y = b * factor;
      const int quarters = quarters_of(p, position);
      a = quarters == 0 ? x : quarters == 1 ? -y : quarters == 2 ? -x : y;
      b = quarters == 0 ? y : quarters == 1 ? x : quarters == 2 ? -y : -x;
    }
  }

  long double score(const long double* query, const long double* key, index_t head_dim, index_t distance) const {
    std::vector<long double> turned(query, query + head_dim), at_zero(key, key + head_dim);
    turn(static_cast<std::uint64_t>(distance), turned.data(), head_dim);
    turn(0, at_zero.data(), head_dim);
    return position_encoding::score(turned.data(), at_zero.data(), head_dim, 0);
  }

 private:
  index_t num_pairs() const { return static_cast<index_t>(turns_.size()); }
  index_t first_of(index_t pair) const { return layout_ == pair_layout::half_split ? pair : 2 * pair; }
  index_t second_of(index_t pair) const {
    return layout_ == pair_layout::half_split ? pair + num_pairs() : 2 * pair + 1;
  }
  int quarters_of(index_t pair, std::uint64_t position) const {
    return static_cast<int>((position * turns_[static_cast<std::size_t>(pair)]) >> 62);
  }

  index_t head_dim_;
  pair_layout layout_;
  double factor_;
  bool by_function_;
  std::vector<std::uint64_t> turns_;
};

/// An encoding that is chosen at run time.
class any_position : public lambda_attention::position_encoding {
 public:
  /// `exact`: whether rows of few bits stay so.
  template <class Position>
  any_position(Position position, const char* name, bool exact, double factor = 1)
      : held_(std::make_shared<const held_as<Position>>(std::move(position))),
        name_(name),
        exact_(exact),
        factor_(factor) {}

  index_t num_heads() const { return held_->num_heads(); }
  index_t head_dim() const { return held_->head_dim(); }
  position_data data() const { return held_->data(); }
  long double score(const long double* query, const long double* key, index_t head_dim, index_t distance) const {
    return held_->score(query, key, head_dim, distance);
  }
  long double bias(index_t head, index_t distance) const { return held_->bias(head, distance); }

  const char* name() const { return name_; }
  bool exact() const { return exact_; }
  double factor() const { return factor_; }

 private:
  struct held {
    virtual ~held() = default;
    virtual index_t num_heads() const = 0;
    virtual index_t head_dim() const = 0;
    virtual position_data data() const = 0;
    virtual long double score(const long double*, const long double*, index_t, index_t) const = 0;
    virtual long double bias(index_t head, index_t distance) const = 0;
  };
  template <class Position>
  struct held_as : held {
    explicit held_as(Position p) : position(std::move(p)) {}
    index_t num_heads() const override { return position.num_heads(); }
    index_t head_dim() const override { return position.head_dim(); }
    position_data data() const override { return position.data(); }
    long double score(const long double* q, const long double* k, index_t dim, index_t distance) const override {
      return position.score(q, k, dim, distance);
    }
    long double bias(index_t head, index_t distance) const override { return position.bias(head, distance); }
    Position position;
  };

  std::shared_ptr<const held> held_;
  const char* name_;
  bool exact_;
  double factor_;
};

/// For that many heads and that head_dim, both at least 1.
inline any_position position_from(input& in, index_t num_heads, index_t head_dim) {
  using namespace lambda_attention;
  const index_t kind = in.below(9);
  const index_t most_pairs = head_dim / 2;
  const pair_layout layout = in.one_in(2) ? pair_layout::interleaved : pair_layout::half_split;
  const index_t num_pairs = in.one_in(4) ? in.below(most_pairs + 1) : most_pairs;
  if (kind == 0) return {none(), "none", true};
  if (kind == 1) return {lambda_attention::alibi(num_heads), "alibi", true};
  if (kind == 2) {
    constexpr index_t num_buckets = 8, max_distance = 20;
    numbers random(7);
    std::vector<float> weights(static_cast<std::size_t>(num_buckets * num_heads));
    random.fill(weights.data(), num_buckets * num_heads);
    return {lambda_attention::t5_bias(weights.data(), num_buckets, num_heads, max_distance), "t5_bias", true};
  }
  if (kind < 6) {
    const double factor =
        in.one_in(4) && 2 * num_pairs == head_dim ? 2 : 1;  // of all numbers: int8 has one scale a row
    const bool by_function = kind == 5;
    return {quarter_turns(head_dim, num_pairs, layout, factor, by_function),
            by_function ? "quarter_turns by a function" : "quarter_turns", true, factor};
  }
  if (num_pairs == 0) return {none(), "none", true};
  rope_options options;
  options.layout = layout;
  options.rotary_dim = 2 * num_pairs;
  options.factor = kind == 8 ? 1.125 : 1;
  return {rope(head_dim, 10000, options), "rope", false, options.factor};
}

}  // namespace fuzz
