// A program of calls on three caches that an input has chosen, against streams that forget nothing.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <support/random_tensor.hpp>
#include <support/reversed_executor.hpp>

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <sstream>
#include <utility>

#include "expected_row.hpp"

namespace fuzz {

using lambda_attention::kv_cache;
using lambda_attention::kv_cache_options;
using support::layout;
using support::tensor;

/// Element types of keys and values: one that the storage takes as it is, where there is one.
template <class Storage>
struct element_of {
  using type = float;
};
template <>
struct element_of<lambda_attention::f64> {
  using type = double;
};
template <>
struct element_of<lambda_attention::f16> {
  using type = lambda_attention::half;
};
template <>
struct element_of<lambda_attention::bf16> {
  using type = lambda_attention::bfloat16;
};

/// A small bounded shape: any relation of its numbers.
inline lambda_shape bounded_shape_from(input& in) {
  lambda_shape shape = {in.below(9), in.one_in(4) ? in.below(40) : in.below(14), unlimited};
  const index_t kind = in.below(8);
  if (kind < 3) shape.distance_limit = in.below(shape.window + 3);
  if (kind == 3) shape.distance_limit = shape.window;
  if (kind == 4) shape.distance_limit = std::max<index_t>(0, shape.window - 1);
  if (kind == 5) shape.distance_limit = std::max<index_t>(0, shape.window - 2);
  if (kind == 7) shape.sinks_at = lambda_attention::sink_distance::cache_slot;
  return shape;
}

template <class Storage>
class cache_program {
 public:
  explicit cache_program(input& in)
      : in_(in),
        random_(in.word() & 0xffff),
        kv_heads_(in.between(1, 2)),
        group_(in.between(1, 5)),
        head_dim_(dim()),
        v_head_dim_(in.one_in(2) ? dim() : head_dim_),
        few_bits_(in.one_in(2)),
        isa_(isa()),
        shape_(bounded_shape_from(in)),
        position_(position_from(in, heads(), head_dim_)),
        first_position_(first_position()),
        slots_{slot(*this), slot(*this), slot(*this)} {}

  /// The number of rows that were compared.
  index_t run() {
    for (steps_ = 0; steps_ < 40 && !in_.ended(); ++steps_) {
      operation_ = in_.below(16);
      slot& s = any_slot();
      if (operation_ < 5) take_in(s);
      if (operation_ == 5) take_in_without_queries(s);
      if (operation_ == 6) attend_newest(s);
      if (operation_ == 7) rewind(s);
      if (operation_ == 8) fork(s, any_slot());
      if (operation_ == 9) load(any_slot(), s);
      if (operation_ == 10) clear(s);
      if (operation_ == 11) draft(s);
      if (operation_ == 12) take_in_together();
      if (operation_ == 13) twins(s);
      if (operation_ >= 14) call_wrongly(s);
      for (const slot& each : slots_) check_counts(each);
    }
    return rows_;
  }

  std::string description() const {
    return std::string(position_.name()) + " of factor " + std::to_string(position_.factor()) +
           (few_bits_ ? ", few bits" : "") + ", kv_heads " + std::to_string(kv_heads_) + ", group " +
           std::to_string(group_) + ", head_dim " + std::to_string(head_dim_) + ", v_head_dim " +
           std::to_string(v_head_dim_) + ", num_sinks " + std::to_string(shape_.num_sinks) + ", window " +
           std::to_string(shape_.window) + ", distance_limit " + std::to_string(shape_.distance_limit) + ", sinks_at " +
           std::to_string(static_cast<int>(shape_.sinks_at)) + ", first_position " + std::to_string(first_position_) +
           ", isa " + name_of(isa_) + ", step " + std::to_string(steps_) + ", operation " + std::to_string(operation_);
  }

 private:
  using real = typename Storage::compute_type;
  using element = typename element_of<Storage>::type;
  using cache_type = kv_cache<Storage, any_position>;
  static constexpr index_t most_tokens = 160;

  // All that a stream has been told, and which of its keys the rings no longer hold.
  struct stream_model {
    index_t tokens = 0;
    std::vector<element> keys, values;
    index_t first_held = 0;  // of the window's keys; earlier ones are overwritten
  };

  struct slot {
    explicit slot(cache_program& of)
        : rings{of.in_.one_in(4) ? of.in_.between(1, 24) : of.in_.between(1, 6), of.in_.below(7), of.first_position_},
          cache(of.shape_, of.position_, of.kv_heads_, of.head_dim_, of.v_head_dim_, rings),
          bytes(cache.bytes()) {}
    kv_cache_options rings;
    cache_type cache;
    stream_model model;
    index_t bytes;
  };

  // Rows of new tokens, in any layout.
  struct step {
    tensor<float> q;
    tensor<element> k, v;
    tensor<real> out;
    tensor<float> lse;
  };

  index_t heads() const { return kv_heads_ * group_; }
  index_t dim() { return in_.one_in(3) ? 32 * in_.between(1, 2) : in_.between(1, 24); }
  isa_level isa() {
    return static_cast<isa_level>(in_.below(static_cast<index_t>(lambda_attention::highest_isa()) + 1));
  }
  index_t first_position() {
    if (in_.one_in(8)) return unlimited - in_.below(100);
    return in_.one_in(4) ? std::max<index_t>(0, in_.hostile()) : 0;
  }
  slot& any_slot() { return slots_[static_cast<std::size_t>(in_.below(3))]; }

  // --- the model ---

  // How many keys before it a query sees of the window, of those that are in a ring of their own. Where rotated keys are
  // needed for the newest limit + 1 alone, that ring is the shortest.
  index_t reach() const {
    const bool two_rings = position_.data().rotates() && shape_.distance_limit < shape_.window - 1;
    return std::max<index_t>(0, two_rings ? shape_.distance_limit : shape_.window - 1);
  }
  index_t ring_rows(const slot& s) const { return reach() + s.rings.max_append + s.rings.max_rewind; }

  void overwrite(slot& s, index_t tokens) const {
    s.model.first_held = std::max(s.model.first_held, tokens - ring_rows(s));
  }
  // The most tokens that can be taken back so that the next query finds all that it sees.
  index_t newest_held(const slot& s) const {
    if (s.model.first_held == 0) return s.model.tokens;
    return std::max<index_t>(0, std::min(s.model.tokens, s.model.tokens - reach() - s.model.first_held));
  }

  void commit(slot& s, const step& taken) const {
    const auto append = [](std::vector<element>& to, const tensor<element>& rows) {
      support::for_each_element(rows.view(), [&](const element& x) { to.push_back(x); });
    };
    append(s.model.keys, taken.k);
    append(s.model.values, taken.v);
    s.model.tokens += taken.k.view().tokens;
    overwrite(s, s.model.tokens);
  }
  void take_back(slot& s, index_t tokens) const {
    s.model.tokens -= tokens;
    s.model.keys.resize(static_cast<std::size_t>(s.model.tokens * kv_heads_ * head_dim_));
    s.model.values.resize(static_cast<std::size_t>(s.model.tokens * kv_heads_ * v_head_dim_));
  }

  bool has_positions(const slot& s, index_t tokens) const {
    return s.model.tokens + tokens <= unlimited - first_position_;
  }

  // --- calls ---

  layout any_layout() { return in_.one_of(support::layouts); }

  step new_step(index_t tokens) {
    step s = {{tokens, heads(), head_dim_, any_layout()},
              {tokens, kv_heads_, head_dim_, any_layout()},
              {tokens, kv_heads_, v_head_dim_, any_layout()},
              {tokens, heads(), v_head_dim_, any_layout()},
              {tokens, heads(), 1}};
    const auto fill = [&](auto& t, bool few_bits) {
      const auto view = t.view();
      for (index_t i = 0; i < view.tokens; ++i)
        for (index_t h = 0; h < view.heads; ++h)
          few_bits ? random_.fill_exactly(view.row(i, h), view.dim) : random_.fill(view.row(i, h), view.dim);
    };
    fill(s.q, false);
    fill(s.k, few_bits_);
    fill(s.v, few_bits_);
    return s;
  }

  attention_options any_options() {
    constexpr double scales[] = {0, 0, 0.25}, caps[] = {0, 0, 0, 20};
    attention_options options;
    options.isa = in_.one_in(4) ? isa() : isa_;
    options.scale = in_.one_of(scales);
    options.soft_cap = in_.one_of(caps);
    return options;
  }

  template <class Call>
  static std::string refusal_of(Call&& call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }
  static bool accepted(const std::string& refusal, bool expected) {
    if (refusal.empty() == expected) return expected;
    throw failure(expected ? "expected a call to be accepted, got a refusal: " + refusal
                           : std::string("expected a call to be refused, got an output"));
  }

  void take_in(slot& s) {
    const index_t tokens = in_.one_in(4) ? in_.below(40) : in_.below(12);
    if (s.model.tokens + tokens > most_tokens) return;
    step taken = new_step(tokens);
    attention_options options = any_options();
    if (in_.one_in(2)) options.lse = taken.lse.view();
    const index_t last = s.model.tokens + tokens, num_sinks = std::min(shape_.num_sinks, last);
    const bool few = tokens <= std::max<index_t>(4, 16 / group_), weighed = in_.one_in(3);
    tensor<float> weights(tokens, heads(), num_sinks + std::min(shape_.window, last - num_sinks) + in_.below(3));
    if (weighed) options.weights = weights.view();
    const bool backwards = in_.one_in(2);
    const bool expected = has_positions(s, tokens) && (!weighed || few || weights.view().data == nullptr);
    const std::string before = expected ? "" : saved(s.cache);
    const auto call = [&](auto&& executor) {
      attend(taken.q.view(), taken.k.view(), taken.v.view(), s.cache, taken.out.view(), options, executor);
    };
    const std::string refusal =
        refusal_of([&] { backwards ? call(support::reversed_executor()) : call(lambda_attention::serial_executor()); });
    if (!accepted(refusal, expected)) return check_unchanged(s, before);
    commit(s, taken);
    check_rows(s, taken, options);
    if (weighed && weights.view().data != nullptr) check_weights(s, taken, weights, options);
  }

  void take_in_without_queries(slot& s) {
    const index_t tokens = in_.one_in(4) ? in_.below(40) : in_.below(12);
    if (s.model.tokens + tokens > most_tokens) return;
    const step taken = new_step(tokens);
    const bool expected = has_positions(s, tokens);
    const std::string before = expected ? "" : saved(s.cache);
    const std::string refusal = refusal_of([&] { append(taken.k.view(), taken.v.view(), s.cache, isa_); });
    if (!accepted(refusal, expected)) return check_unchanged(s, before);
    commit(s, taken);
  }

  void attend_newest(slot& s) {
    const index_t tokens = in_.below(s.rings.max_append + 2);
    step newest = new_step(tokens);
    attention_options options = any_options();
    if (in_.one_in(2)) options.lse = newest.lse.view();
    const std::string refusal = refusal_of([&] { attend(newest.q.view(), s.cache, newest.out.view(), options); });
    if (accepted(refusal, tokens <= std::min(newest_held(s), s.rings.max_append))) check_rows(s, newest, options);
  }

  void rewind(slot& s) {
    const index_t tokens = in_.one_in(8) ? in_.hostile() : in_.below(12);
    const std::string refusal = refusal_of([&] { s.cache.rewind(tokens); });
    if (accepted(refusal, tokens >= 0 && tokens <= newest_held(s))) take_back(s, tokens);
  }

  static void fork(const slot& from, slot& to) { to = slot(from); }

  void load(slot& into, const slot& from) {
    std::stringstream file(saved(from.cache) + "more");
    into.cache.load(file);
    if (std::string(std::istreambuf_iterator<char>(file), {}) != "more")
      throw failure("expected load() to read a file and no more");
    const index_t held = newest_held(from);
    into.model.tokens = from.model.tokens;
    into.model.keys = from.model.keys;
    into.model.values = from.model.values;
    into.model.first_held = std::max<index_t>(0, from.model.tokens - held - reach());
    if (held == from.model.tokens) into.model.first_held = 0;
    overwrite(into, into.model.tokens);
  }

  static void clear(slot& s) {
    s.cache.clear();
    s.model = {};
  }

  // Tokens that come and go, and whose keys and values would show in any row.
  void draft(slot& s) {
    const index_t tokens = in_.below(s.rings.max_rewind + 3);
    if (!has_positions(s, tokens)) return;
    slot drafted = s;
    drafted.model.tokens += tokens;
    overwrite(drafted, drafted.model.tokens);
    if (tokens > newest_held(drafted)) return;
    step rejected = new_step(tokens);
    for (tensor<element>* rows : {&rejected.k, &rejected.v})
      support::for_each_element(
          rows->view(), [](element& x) { x = support::element<element>(std::numeric_limits<double>::quiet_NaN()); });
    append(rejected.k.view(), rejected.v.view(), s.cache);
    s.cache.rewind(tokens);
    overwrite(s, s.model.tokens + tokens);
  }

  void take_in_together() {
    using lambda_attention::stream_step;
    std::vector<step> steps;
    std::vector<stream_step<const float, const element, const element, Storage, any_position, real>> calls;
    std::string before;
    bool expected = true;
    for (slot& s : slots_) {
      const index_t tokens = in_.below(12);
      if (s.model.tokens + tokens > most_tokens) return;
      steps.push_back(new_step(tokens));
      expected = expected && has_positions(s, tokens);
      before += saved(s.cache);
    }
    for (std::size_t i = 0; i < 3; ++i)
      calls.push_back({steps[i].q.view(), steps[i].k.view(), steps[i].v.view(), &slots_[i].cache, steps[i].out.view()});
    if (in_.one_in(8)) {
      calls[in_.one_in(2) ? 1u : 2u].cache = in_.one_in(2) ? &slots_[0].cache : nullptr;
      expected = false;
    }
    const attention_options options = any_options();
    const std::string refusal = refusal_of([&] { attend(calls.data(), 3, options); });
    if (!accepted(refusal, expected)) {
      std::string after;
      for (const slot& s : slots_) after += saved(s.cache);
      if (before != after) throw failure("expected a refused call to leave all caches as they were");
      return;
    }
    for (std::size_t i = 0; i < 3; ++i) {
      commit(slots_[i], steps[i]);
      check_rows(slots_[i], steps[i], options);
    }
  }

  // A fork, and a stream saved and loaded, go on as the original, bit for bit.
  void twins(slot& s) {
    slot fork = s, loaded(s), original(s);
    loaded.cache.clear();
    const std::string file = saved(s.cache);
    std::istringstream stream(file);
    loaded.cache.load(stream);
    if (saved(loaded.cache) != file) throw failure("expected a loaded stream to be saved as the same file");
    if (in_.one_in(2)) original.cache = cache_type(fork.cache);
    const index_t back = std::min(newest_held(s), in_.below(4)), tokens = in_.below(9);
    if (!has_positions(s, tokens)) return;
    step taken = new_step(tokens);
    tensor<real> outs[] = {taken.out, taken.out, taken.out};
    cache_type* const caches[] = {&original.cache, &fork.cache, &loaded.cache};
    const attention_options options = any_options();
    for (std::size_t i = 0; i < 3; ++i) {
      caches[i]->rewind(back);
      attend(taken.q.view(), taken.k.view(), taken.v.view(), *caches[i], outs[i].view(), options);
      if (!support::same_bits(outs[0].view(), outs[i].view()))
        throw failure(i == 1 ? "expected the same bits of a fork" : "expected the same bits of a loaded stream");
    }
    check_counts(s);
  }

  // Calls that no cache takes.
  void call_wrongly(slot& s) {
    const std::string before = saved(s.cache);
    step wrong = new_step(in_.between(1, 5));
    auto q = wrong.q.view();
    auto k = wrong.k.view();
    auto v = wrong.v.view();
    auto out = wrong.out.view();
    attention_options options = any_options();
    const index_t kind = in_.below(10);
    if (kind == 0) q.tokens -= 1;
    if (kind == 1) k.heads += 1;
    if (kind == 2) v.dim += 1;
    if (kind == 3) out.token_stride = -1, out.head_stride = -1, out.heads = 2;
    if (kind == 4) out.data = nullptr;
    if (kind == 5) options.first_position = 1;
    if (kind == 6) k.dim = in_.hostile() | 1 << 20;
    if (kind == 7) v.tokens = in_.hostile() | 1 << 20;
    if (kind == 8) options.scale = std::numeric_limits<double>::quiet_NaN();
    std::string refusal;
    if (kind == 9) {
      std::istringstream damaged(before.substr(0, before.size() - static_cast<std::size_t>(in_.between(1, 100))));
      refusal = refusal_of([&] { s.cache.load(damaged); });
    } else {
      refusal = refusal_of([&] { attend(q, k, v, s.cache, out, options); });
    }
    accepted(refusal, false);
    check_unchanged(s, before);
  }

  // --- what is asked of results ---

  static std::string saved(const cache_type& cache) {
    std::ostringstream file;
    cache.save(file);
    return file.str();
  }
  static void check_unchanged(const slot& s, const std::string& before) {
    if (saved(s.cache) != before) throw failure("expected a refused call to leave the cache as it was");
  }

  void check_counts(const slot& s) const {
    if (s.cache.num_tokens() != s.model.tokens)
      throw failure("expected " + std::to_string(s.model.tokens) + " tokens, got " +
                    std::to_string(s.cache.num_tokens()));
    if (s.cache.bytes() != s.bytes)
      throw failure("expected " + std::to_string(s.bytes) + " bytes, got " + std::to_string(s.cache.bytes()));
  }

  roundings roundings_of(const attention_options& options) const {
    // Elements of the storage's own are rounded where they are turned by other than quarters.
    const bool as_they_are = few_bits_ || !std::is_same_v<Storage, lambda_attention::int8>;
    return roundings::of_cache(Storage::format, options.isa, as_they_are && position_.exact());
  }

  template <class Use>
  void for_some_rows(const slot& s, const step& newest, const attention_options& options, Use&& use) {
    const index_t tokens = newest.q.view().tokens, first = s.model.tokens - tokens;
    const auto k = lambda_attention::token_major(s.model.keys.data(), s.model.tokens, kv_heads_, head_dim_);
    const auto v = lambda_attention::token_major(s.model.values.data(), s.model.tokens, kv_heads_, v_head_dim_);
    for (index_t row = 0; row < std::min<index_t>(2, tokens); ++row) {
      const index_t i = row == 0 ? tokens - 1 : random_.below(tokens), head = random_.below(heads());
      ++rows_;
      use(i, head,
          expected_row(newest.q.view().row(i, head), first + i, head, heads(), k, v, shape_, position_, options));
    }
  }

  void check_rows(const slot& s, const step& newest, const attention_options& options) {
    const roundings r = roundings_of(options);
    for_some_rows(s, newest, options, [&](index_t i, index_t head, const expected_row& expected) {
      expected.check<real>(newest.out.view().row(i, head), r);
      if (options.lse.data != nullptr) expected.check_lse<real>(*newest.lse.view().row(i, head), r);
    });
  }

  void check_weights(const slot& s, const step& newest, const tensor<float>& weights,
                     const attention_options& options) {
    const roundings r = roundings_of(options);
    for_some_rows(s, newest, options, [&](index_t i, index_t head, const expected_row& expected) {
      const index_t query = s.model.tokens - newest.q.view().tokens + i;
      const auto window = shape_.window_keys(query);
      for (index_t column = 0; column < weights.view().dim; ++column) {
        const float actual = weights.view().row(i, head)[column];
        const index_t key = column < shape_.num_sinks ? column : window.first + column - shape_.num_sinks;
        if (key <= query && shape_.visible(query, key))
          expected.check_weight(actual, key, r);
        else if (actual != 0)
          throw failure("expected a zero in column " + std::to_string(column) + " of weights");
      }
    });
  }

  input& in_;
  numbers random_;
  index_t kv_heads_, group_, head_dim_, v_head_dim_;
  bool few_bits_;
  isa_level isa_;
  lambda_shape shape_;
  any_position position_;
  index_t first_position_;
  std::vector<slot> slots_;
  index_t steps_ = 0, operation_ = 0, rows_ = 0;
};

template <class Storage>
index_t run_program(input& in) {
  cache_program<Storage> program(in);
  try {
    return program.run();
  } catch (const failure& error) {
    throw failure(std::string(error.what()) + ": " + program.description());
  }
}

/// How many rows the input's program has compared with the formula.
inline index_t try_caches(const std::uint8_t* data, std::size_t size) {
  input in(data, size);
  constexpr index_t (*programs[])(input&) = {run_program<lambda_attention::f32>, run_program<lambda_attention::f64>,
                                             run_program<lambda_attention::f16>, run_program<lambda_attention::bf16>,
                                             run_program<lambda_attention::int8>};
  return in.one_of(programs)(in);
}

}  // namespace fuzz
