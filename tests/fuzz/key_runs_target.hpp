// Keys in runs that an input has cut, laid out, rotated, left out and shuffled: the sequence that they come from, or a
// refusal.
#pragma once

#include <lambda_attention/key_run.hpp>
#include <lambda_attention/partial.hpp>

#include <support/random_tensor.hpp>
#include <support/reversed_executor.hpp>

#include <cmath>
#include <limits>
#include <utility>

#include "expected_row.hpp"

namespace fuzz {

using lambda_attention::row_rotation;
using support::layout;
using support::tensor;

/// A row after a rotation, by the definition of rotation_data.
template <class T>
void rotate(const lambda_attention::rotation_data& rotation, std::uint64_t position, T* row) {
  for (index_t p = 0; p < rotation.num_pairs; ++p) {
    const bool split = rotation.layout == pair_layout::half_split;
    T& a = row[split ? p : 2 * p];
    T& b = row[split ? p + rotation.num_pairs : 2 * p + 1];
    const long double angle =
        static_cast<long double>(position * rotation.turns[p]) * (6.283185307179586476925286766559005768L * 0x1p-64L);
    const long double x = number(a), y = number(b);
    a = support::element<T>(static_cast<double>((x * std::cos(angle) - y * std::sin(angle)) * rotation.factor));
    b = support::element<T>(static_cast<double>((y * std::cos(angle) + x * std::sin(angle)) * rotation.factor));
  }
}

template <class T>
class runs_call {
 public:
  explicit runs_call(input& in)
      : in_(in),
        random_(in.word() & 0xffff),
        tokens_(in.one_in(4) ? in.between(0, 90) : in.between(0, 30)),
        kv_heads_(in.between(1, 2)),
        group_(in.between(1, 5)),
        head_dim_(dim()),
        v_head_dim_(in.one_in(2) ? dim() : head_dim_),
        shape_{in.below(12), in.one_in(4) ? in.below(90) : in.below(20), unlimited},
        position_(position_from(in, heads(), head_dim_)),
        q_(tokens_, heads(), head_dim_),
        k_(tokens_, kv_heads_, head_dim_),
        v_(tokens_, kv_heads_, v_head_dim_),
        few_bits_(in.one_in(2)) {
    const index_t kind = in.below(4);
    if (kind == 0) shape_.distance_limit = in.below(shape_.window + 2);
    if (kind == 1) shape_.sinks_at = lambda_attention::sink_distance::cache_slot;
    if (in.one_in(16)) shape_.window = unlimited;
    first_query_ = in.below(tokens_ + 1);
    last_query_ = std::min(tokens_, first_query_ + (in.one_in(2) ? in.below(5) : in.below(90)));
    if (in.one_in(4)) options_.first_position = std::max<index_t>(0, in.hostile());
    options_.isa = static_cast<isa_level>(in.below(static_cast<index_t>(lambda_attention::highest_isa()) + 1));
    if (in.one_in(4)) options_.soft_cap = 20;
    fill(q_, false);
    fill(k_, few_bits_);
    fill(v_, few_bits_);
  }

  /// Whether the call was computed.
  bool run() {
    cut();
    allowed_ = allowed_ && farthest() <= unlimited - options_.first_position;
    const row_rotation of_queries = in_.one_in(3) ? row_rotation::to_position : row_rotation::none;
    allowed_ = allowed_ && (of_queries == row_rotation::none || !by_function());
    const tensor<T> q = rows_of(q_, first_query_, last_query_, of_queries);
    tensor<real> out(num_queries(), heads(), v_head_dim_, any_layout());
    tensor<float> lse(num_queries(), heads(), 1);
    const bool in_parts = in_.one_in(3), backwards = in_.one_in(2);
    try {
      const lambda_attention::query_run queries{first_query_, q.view(), of_queries};
      if (in_parts) {
        attend_in_parts(queries, out, lse);
      } else {
        options_.lse = lse.view();
        backwards ? attend(queries, views_.data(), num_runs(), shape_, position_, out.view(), options_,
                           support::reversed_executor())
                  : attend(queries, views_.data(), num_runs(), shape_, position_, out.view(), options_);
      }
    } catch (const std::invalid_argument& refusal) {
      if (allowed_) throw failure("expected runs to be accepted, got a refusal: " + std::string(refusal.what()));
      support::for_each_element(out.view(), [](real x) {
        if (!std::isnan(x)) throw failure("expected a refused call to write nothing");
      });
      return false;
    }
    if (!allowed_) throw failure("expected runs to be refused, got an output");
    check(q_, out, lse);
    return true;
  }

  std::string description() const {
    std::string text = std::string(position_.name()) + " of factor " + std::to_string(position_.factor()) +
                       (few_bits_ ? ", few bits" : "") + ", kv_heads " + std::to_string(kv_heads_) + ", group " +
                       std::to_string(group_) + ", head_dim " + std::to_string(head_dim_) + ", v_head_dim " +
                       std::to_string(v_head_dim_) + ", num_sinks " + std::to_string(shape_.num_sinks) + ", window " +
                       std::to_string(shape_.window) + ", distance_limit " + std::to_string(shape_.distance_limit) +
                       ", sinks_at " + std::to_string(static_cast<int>(shape_.sinks_at)) + ", first_position " +
                       std::to_string(options_.first_position) + ", isa " + name_of(options_.isa) + ", queries " +
                       std::to_string(first_query_) + " to " + std::to_string(last_query_) + ", runs";
    for (const owned_run& r : runs_)
      text += " " + std::to_string(r.first) + "+" + std::to_string(r.k.view().tokens) + " rotated " +
              std::to_string(static_cast<int>(r.rotation));
    return text;
  }

 private:
  using real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  struct owned_run {
    index_t first;
    tensor<T> k, v;
    row_rotation rotation;
  };

  index_t heads() const { return kv_heads_ * group_; }
  index_t dim() { return in_.one_in(3) ? 32 * in_.between(1, 2) : in_.between(1, 24); }
  layout any_layout() { return in_.one_of(support::layouts); }
  index_t num_queries() const { return last_query_ - first_query_; }
  index_t num_runs() const { return static_cast<index_t>(views_.size()); }
  bool by_function() const { return position_.data().function.self != nullptr; }
  // One past the last position that a run or a query has.
  index_t farthest() const {
    index_t last = last_query_;
    for (const owned_run& r : runs_) last = std::max(last, r.first + r.k.view().tokens);
    return last;
  }

  void fill(tensor<T>& t, bool few_bits) {
    const auto view = t.view();
    for (index_t i = 0; i < view.tokens; ++i)
      for (index_t h = 0; h < view.heads; ++h)
        few_bits ? random_.fill_exactly(view.row(i, h), view.dim) : random_.fill(view.row(i, h), view.dim);
  }

  bool seen(index_t key) const {
    for (index_t query = first_query_; query < last_query_; ++query)
      if (shape_.visible(query, key)) return true;
    return false;
  }

  tensor<T> rows_of(const tensor<T>& all, index_t first, index_t last, row_rotation rotation) {
    const auto source = all.view().slice(first, last - first);
    tensor<T> rows(source.tokens, source.heads, source.dim, any_layout());
    for (index_t t = 0; t < source.tokens; ++t)
      for (index_t h = 0; h < source.heads; ++h) {
        std::copy_n(source.row(t, h), source.dim, rows.view().row(t, h));
        const std::uint64_t position =
            static_cast<std::uint64_t>(options_.first_position) + static_cast<std::uint64_t>(first + t);
        if (rotation != row_rotation::none)
          rotate(position_.data().rotation, rotation == row_rotation::to_zero ? 0 : position, rows.view().row(t, h));
      }
    return rows;
  }

  void add(index_t first, index_t last) {
    const row_rotation rotation = static_cast<row_rotation>(in_.below(8) < 4 ? 0 : in_.below(3));
    owned_run r = {first, rows_of(k_, first, last, rotation), rows_of(v_, first, last, row_rotation::none), rotation};
    const T nan = support::element<T>(std::numeric_limits<double>::quiet_NaN());
    for (index_t key = first; key < last; ++key) {
      if (seen(key)) continue;
      support::for_each_element(r.k.view().slice(key - first, 1), [&](T& x) { x = nan; });
      support::for_each_element(r.v.view().slice(key - first, 1), [&](T& x) { x = nan; });
    }
    if (rotation != row_rotation::none && by_function()) allowed_ = false;
    runs_.push_back(std::move(r));
  }

  void cut() {
    const bool forgets = in_.one_in(16), repeats = in_.one_in(16);
    for (index_t first = 0, last; first < tokens_; first = last) {
      last = std::min(tokens_, first + (in_.one_in(2) ? in_.between(1, 3) : in_.between(1, 40)));
      bool needed = false;
      for (index_t key = first; key < last; ++key) needed = needed || seen(key);
      const bool kept = forgets ? !in_.one_in(4) : needed || in_.one_in(2);
      if (kept) add(first, last);
      allowed_ = allowed_ && (kept || !needed);
      if (kept && repeats && in_.one_in(4)) {
        add(in_.one_in(2) ? first : last - 1, last);
        allowed_ = false;
      }
    }
    if (runs_.empty() || in_.one_in(4)) {
      const index_t nowhere = in_.below(tokens_ + 1);
      add(nowhere, nowhere);
    }
    for (std::size_t i = runs_.size(); i > 1; --i)
      std::swap(runs_[i - 1], runs_[static_cast<std::size_t>(random_.below(static_cast<index_t>(i)))]);
    for (const owned_run& r : runs_) views_.push_back({r.first, r.k.view(), r.v.view(), r.rotation});
  }

  // The keys before some index, those from it on, and one softmax of both. Weights of doubles want an lse in double.
  template <class Queries>
  void attend_in_parts(const Queries& queries, tensor<real>& out, tensor<float>& lse) {
    const index_t split = in_.below(tokens_ + 1);
    tensor<real> more = out, first_lse(num_queries(), heads(), 1), more_lse = first_lse;
    const lambda_attention::partial_result<real, real> parts[] = {{out.view(), first_lse.view()},
                                                                  {more.view(), more_lse.view()}};
    attend_partial(queries, views_.data(), num_runs(), shape_, position_, {split, unlimited}, parts[1], options_);
    attend_partial(queries, views_.data(), num_runs(), shape_, position_, {0, split}, parts[0], options_);
    merge(parts[0], parts[1], parts[0]);
    for (index_t i = 0; i < num_queries(); ++i)
      for (index_t h = 0; h < heads(); ++h) *lse.view().row(i, h) = static_cast<float>(*first_lse.view().row(i, h));
  }

  void check(const tensor<T>& q, const tensor<real>& out, const tensor<float>& lse) {
    roundings r = roundings::of_tensors(std::is_same_v<T, lambda_attention::bfloat16>, options_.isa);
    if (!position_.exact()) {  // rotated rows were rounded to T
      r.queries += element_rounding<T>();
      r.keys += element_rounding<T>();
    }
    for (index_t row = 0; row < std::min<index_t>(3, num_queries()); ++row) {
      const index_t i = row == 0 ? num_queries() - 1 : random_.below(num_queries()), head = random_.below(heads());
      const index_t query = first_query_ + i;
      const expected_row expected(q.view().row(query, head), query, head, heads(), k_.view(), v_.view(), shape_,
                                  position_, options_);
      expected.check<real>(out.view().row(i, head), r);
      expected.check_lse<real>(*lse.view().row(i, head), r);
    }
  }

  input& in_;
  numbers random_;
  index_t tokens_, kv_heads_, group_, head_dim_, v_head_dim_;
  lambda_shape shape_;
  any_position position_;
  tensor<T> q_, k_, v_;
  bool few_bits_;
  index_t first_query_, last_query_;
  attention_options options_;
  std::vector<owned_run> runs_;
  std::vector<lambda_attention::key_run<const T, const T>> views_;
  bool allowed_ = true;
};

template <class T>
bool run_on_runs(input& in) {
  runs_call<T> call(in);
  try {
    return call.run();
  } catch (const failure& error) {
    throw failure(std::string(error.what()) + ": " + call.description());
  }
}

/// Whether the input's call was computed; it was refused else.
inline bool try_runs(const std::uint8_t* data, std::size_t size) {
  input in(data, size);
  constexpr bool (*calls[])(input&) = {run_on_runs<float>, run_on_runs<double>, run_on_runs<lambda_attention::half>,
                                       run_on_runs<lambda_attention::bfloat16>};
  return in.one_of(calls)(in);
}

}  // namespace fuzz
