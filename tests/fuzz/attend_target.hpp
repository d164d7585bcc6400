// attend() of a whole sequence whose every extent, stride, place and option an input has chosen. It is refused where it
// has to be, and nothing is written; or it is the formula, and nothing is written but its outputs.
#pragma once

#include <lambda_attention/attention.hpp>

#include <support/reversed_executor.hpp>

#include <cstring>
#include <limits>
#include <memory>

#include "expected_row.hpp"

namespace fuzz {

using lambda_attention::bfloat16;
using lambda_attention::half;

/// Memory of exactly so many bytes, which may end in a page's middle: AddressSanitizer knows where.
class block {
 public:
  explicit block(index_t bytes) : size_(bytes), memory_(new unsigned char[static_cast<std::size_t>(bytes)]()) {}
  block(const block& other) : block(other.size_) { std::memcpy(data(), other.data(), static_cast<std::size_t>(size_)); }

  unsigned char* data() { return memory_.get(); }
  const unsigned char* data() const { return memory_.get(); }
  index_t bytes() const { return size_; }

 private:
  index_t size_;
  std::unique_ptr<unsigned char[]> memory_;
};

/// Wide enough for the product of two indices.
__extension__ typedef __int128 wide;

/// A tensor as an input describes it: extents and strides that no one has looked at yet, and where it begins.
struct described {
  index_t tokens, heads, dim, token_stride, head_stride;
  index_t element_bytes;
  std::shared_ptr<block> memory;
  index_t first_byte = 0;
  bool null = false;

  template <class T>
  tensor_view<T> view() const {
    return {null ? nullptr : reinterpret_cast<T*>(memory->data() + first_byte),
            tokens,
            heads,
            dim,
            token_stride,
            head_stride};
  }
  template <class T>
  tensor_view<const T> view_in(const block& other) const {
    return {reinterpret_cast<const T*>(other.data() + first_byte), tokens, heads, dim, token_stride, head_stride};
  }

  wide token_step() const { return tokens > 1 && !holds_nothing() ? token_stride : 0; }
  wide head_step() const { return heads > 1 && !holds_nothing() ? head_stride : 0; }
  bool negative() const { return tokens < 0 || heads < 0 || dim < 0 || token_step() < 0 || head_step() < 0; }
  bool holds_nothing() const { return tokens == 0 || heads == 0 || dim == 0; }
  // In bytes, from where it begins; none of the numbers is negative.
  wide span() const {
    if (holds_nothing()) return 0;
    const wide most = wide{1} << 100;  // no product of two 64-bit numbers is lost to the next sum
    const wide by_token = (wide{tokens} - 1) * token_step(), by_head = (wide{heads} - 1) * head_step();
    return std::min(most, std::min(most, by_token) + std::min(most, by_head) + dim) * element_bytes;
  }
  bool is_refused() const { return negative() || span() > INT64_MAX || (!holds_nothing() && null); }
  // Whether there is memory for it.
  bool exists() const { return holds_nothing() || (!null && first_byte + span() <= memory->bytes()); }

  unsigned char* begin() const { return null ? nullptr : memory->data() + first_byte; }

  // Rows that all lie in the same place, of which there may be more than one can count.
  bool repeats_rows() const { return (tokens > 1 && token_step() == 0) || (heads > 1 && head_step() == 0); }

  // Calls use(first byte, bytes) for every row, once for those in the same place.
  template <class Use>
  void for_each_row(Use&& use) const {
    if (holds_nothing()) return;
    for (index_t t = 0; t < (token_step() == 0 ? 1 : tokens); ++t)
      for (index_t h = 0; h < (head_step() == 0 ? 1 : heads); ++h)
        use(static_cast<index_t>(first_byte + (t * token_step() + h * head_step()) * element_bytes),
            dim * element_bytes);
  }
};

enum class outcome { accepted, refused, either };

/// Whether the bytes of two tensors may not, or must, count as overlapping. Rows are compared where both exist. Where no row
/// overlaps and the spans do, a call may take them to overlap.
inline outcome overlapping(const described& a, const described& b) {
  if (a.holds_nothing() || b.holds_nothing()) return outcome::accepted;
  const auto first = [](const described& t) { return static_cast<wide>(reinterpret_cast<std::uintptr_t>(t.begin())); };
  if (first(a) + a.span() <= first(b) || first(b) + b.span() <= first(a)) return outcome::accepted;
  if (a.memory != b.memory || !a.exists() || !b.exists()) return outcome::either;
  std::vector<bool> taken(static_cast<std::size_t>(a.memory->bytes()));
  a.for_each_row([&](index_t byte, index_t count) {
    for (index_t i = 0; i < count; ++i) taken[static_cast<std::size_t>(byte + i)] = true;
  });
  bool shared = false;
  b.for_each_row([&](index_t byte, index_t count) {
    for (index_t i = 0; i < count; ++i) shared = shared || taken[static_cast<std::size_t>(byte + i)];
  });
  return shared ? outcome::refused : outcome::either;
}

/// The same of a tensor's own rows. Heads within a token, or tokens within a head, and nothing between: that is accepted.
inline outcome self_overlapping(const described& t) {
  if (t.holds_nothing()) return outcome::accepted;
  const wide by_token = t.token_step(), by_head = t.head_step(), dim = t.dim;
  const auto nested = [dim](wide inner, index_t inner_count, wide outer, index_t outer_count) {
    return (inner_count <= 1 || inner >= dim) && (outer_count <= 1 || outer >= (inner_count - 1) * inner + dim);
  };
  if (nested(by_head, t.heads, by_token, t.tokens) || nested(by_token, t.tokens, by_head, t.heads))
    return outcome::accepted;
  if (!t.exists()) return outcome::either;
  if (t.repeats_rows()) return outcome::refused;
  std::vector<bool> taken(static_cast<std::size_t>(t.memory->bytes()));
  bool shared = false;
  t.for_each_row([&](index_t byte, index_t count) {
    for (index_t i = byte; i < byte + count; ++i) {
      shared = shared || taken[static_cast<std::size_t>(i)];
      taken[static_cast<std::size_t>(i)] = true;
    }
  });
  return shared ? outcome::refused : outcome::either;
}

/// Of several demands.
inline outcome both(outcome a, outcome b) {
  if (a == outcome::refused || b == outcome::refused) return outcome::refused;
  return a == outcome::either || b == outcome::either ? outcome::either : outcome::accepted;
}
inline outcome demand(bool met) { return met ? outcome::accepted : outcome::refused; }

inline bool is_refused(const lambda_shape& shape) {
  if (shape.num_sinks < 0 || shape.window < 0 || shape.distance_limit < 0) return true;
  const wide last_slot = wide{shape.num_sinks} + shape.window - 1;
  return shape.sinks_at == lambda_attention::sink_distance::cache_slot &&
         shape.distance_limit < std::min<wide>(last_slot, unlimited);
}

/// Shapes near the number of tokens, at the ends of what an index can be, or anything.
inline lambda_shape shape_from(input& in, index_t num_tokens) {
  const auto number = [&]() -> index_t {
    const index_t kind = in.below(16);
    if (kind == 15) return in.hostile();
    if (kind == 14) return unlimited;
    return kind < 8 ? in.below(8)
                    : std::max<index_t>(0, num_tokens + in.between(-4, 4) - (kind < 11 ? 0 : num_tokens / 2));
  };
  lambda_shape shape;
  shape.num_sinks = number();
  shape.window = number();
  shape.distance_limit = number();
  const index_t kind = in.below(8);
  if (kind == 1) shape.distance_limit = shape.window;
  if (kind == 2) shape.distance_limit = shape.window > INT64_MIN ? shape.window - 1 : 0;
  if (kind >= 6) shape.sinks_at = lambda_attention::sink_distance::cache_slot;
  if (kind == 7) shape.distance_limit = unlimited;
  return shape;
}

class attend_call {
 public:
  explicit attend_call(input& in) : in_(in), seed_(in.word() & 0xffff) {
    types_ = in.below(8);
    tokens_ = in.one_in(4) ? in.between(0, 71) : in.between(0, 19);
    kv_heads_ = in.between(1, 3);
    group_ = in.between(1, 5);
    head_dim_ = dim();
    v_head_dim_ = in.one_in(2) ? dim() : head_dim_;
    shape_ = shape_from(in, tokens_);
    choose_options();
  }

  /// A call on elements of these types; whether it was computed. Throws where that is not right.
  template <class Q, class K, class V, class Out>
  bool run() {
    constexpr bool alike = std::is_same_v<Q, K> && std::is_same_v<K, V> && std::is_same_v<V, Out>;
    any_position position = position_from(in_, in_.one_in(16) ? group_ : heads(), head_dim_);
    place<Q, K, V, Out>(alike);
    corrupt();
    numbers random(seed_);
    std::vector<float> logits(static_cast<std::size_t>(heads()));
    for (float& logit : logits) logit = static_cast<float>(random.within(6));
    if (has_sink_logits_) options_.sink_logits = {logits.data(), heads()};
    if (in_.one_in(64)) options_.sink_logits.size += in_.between(-1, 1);
    options_.lse = lse_.view<float>();
    const outcome expected = expected_outcome(position, std::is_same_v<Q, Out>);
    if (expected != outcome::refused) {
      // Without memory a call may be right as far as anyone can know.
      if (!q_.exists() || !k_.exists() || !v_.exists() || !out_.exists() || !(lse_.null || lse_.exists())) return false;
      fill<Q, K, V>(random);
    }
    lambda_attention::workspace scratch;
    if (in_.one_in(4)) options_.workspace = &scratch;
    const memory before = copies();
    if (!is_accepted<Q, K, V, Out>(position, lambda_attention::serial_executor())) {
      if (expected == outcome::accepted) throw failure("expected a call to be accepted, got a refusal: " + refusal_);
      check_unchanged(before, false);
      return false;
    }
    if (expected == outcome::refused) throw failure("expected a call to be refused, got an output");
    check_unchanged(before, true);
    check_rows<Q, K, V, Out>(position, before, random);
    if (in_.one_in(4)) check_same_bits<Q, K, V, Out>(position, before);
    return true;
  }

  index_t types() const { return types_; }

  std::string description() const {
    const auto text = [](const char* name, const described& t) {
      return std::string(name) + " [" + std::to_string(t.tokens) + ", " + std::to_string(t.heads) + ", " +
             std::to_string(t.dim) + "] with strides " + std::to_string(t.token_stride) + ", " +
             std::to_string(t.head_stride) + " from byte " + std::to_string(t.first_byte) + (t.null ? " of null" : "") +
             ", ";
    };
    return "types " + std::to_string(types_) + ", " + text("q", q_) + text("k", k_) + text("v", v_) +
           text("out", out_) + text("lse", lse_) + "num_sinks " + std::to_string(shape_.num_sinks) + ", window " +
           std::to_string(shape_.window) + ", distance_limit " + std::to_string(shape_.distance_limit) + ", sinks_at " +
           std::to_string(static_cast<int>(shape_.sinks_at)) + ", isa " +
           std::to_string(static_cast<int>(options_.isa)) + ", scale " + std::to_string(options_.scale) +
           ", soft_cap " + std::to_string(options_.soft_cap) + ", sink_logits " +
           std::to_string(options_.sink_logits.size) + ", first_position " + std::to_string(options_.first_position);
  }

 private:
  using memory = std::vector<std::pair<std::shared_ptr<block>, block>>;

  index_t heads() const { return kv_heads_ * group_; }
  index_t dim() { return in_.one_in(3) ? 32 * in_.between(1, 3) : in_.between(1, 40); }

  void choose_options() {
    using lambda_attention::highest_isa;
    const index_t levels = static_cast<index_t>(highest_isa()) + 1;
    options_.isa = static_cast<isa_level>(in_.one_in(32) ? in_.between(-1, 8) : in_.below(levels));
    constexpr double scales[] = {0, 0.25, -0.125, 1}, caps[] = {0, 0, 1, 30};
    constexpr double wrong[] = {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL, -HUGE_VAL, 1.1e30, -1.1e30, -1};
    options_.scale = in_.one_of(scales);
    options_.soft_cap = in_.one_of(caps);
    if (in_.one_in(64)) options_.scale = in_.one_of(wrong);
    if (in_.one_in(64)) options_.soft_cap = in_.one_of(wrong);
    has_sink_logits_ = in_.one_in(4);
    if (in_.one_in(4)) options_.first_position = in_.hostile();
    exact_ = in_.one_in(2);
    has_lse_ = in_.one_in(2);
  }

  // Any layout; small strides of any kind are some of them. `element_bytes` of memory for each element it spans.
  described laid_out(index_t num_heads, index_t dim, index_t element_bytes) {
    const index_t n = tokens_;
    described t = {n, num_heads, dim, num_heads * dim, dim, element_bytes, nullptr};
    const index_t kind = in_.below(12);
    if (kind == 4) t.token_stride = dim, t.head_stride = n * dim;
    if (kind == 5) t.head_stride += in_.below(9), t.token_stride = num_heads * t.head_stride + in_.below(9);
    if (kind == 6) t.token_stride = dim + in_.below(9), t.head_stride = n * t.token_stride + in_.below(9);
    if (kind == 7) t.token_stride *= in_.between(1, 4);
    if (kind == 8) t.token_stride = 0;
    if (kind == 9) t.head_stride = 0;
    if (kind == 10) t.token_stride = in_.below(80), t.head_stride = in_.below(80);
    if (kind == 11) t.token_stride = in_.below(4), t.head_stride = in_.below(4);
    return t;
  }

  void give_memory(described& t) { t.memory = std::make_shared<block>(static_cast<index_t>(t.span())); }

  template <class Q, class K, class V, class Out>
  void place(bool alike) {
    q_ = laid_out(heads(), head_dim_, sizeof(Q));
    k_ = laid_out(kv_heads_, head_dim_, sizeof(K));
    v_ = laid_out(kv_heads_, v_head_dim_, sizeof(V));
    out_ = laid_out(heads(), v_head_dim_, sizeof(Out));
    lse_ = laid_out(heads(), 1, sizeof(float));
    for (described* t : {&q_, &k_, &v_, &out_, &lse_}) give_memory(*t);
    if (!has_lse_) lse_.null = true;
    const index_t sharing = alike ? in_.below(8) : 0;
    if (sharing == 5) out_ = q_, out_.dim = v_head_dim_;
    if (sharing == 6) place_side_by_side(sizeof(Q));
    if (sharing == 7) place_anywhere(sizeof(Q));
    if (std::is_same_v<Out, float> && in_.one_in(32)) lse_.memory = out_.memory, lse_.first_byte = 4 * in_.below(64);
  }

  // [tokens][q's heads, k's, v's, out's]: fused projections, and room for the output.
  void place_side_by_side(index_t element_bytes) {
    index_t width = 0;
    for (described* t : {&q_, &k_, &v_, &out_}) {
      t->head_stride = t->dim;
      t->first_byte = width * element_bytes;
      width += t->heads * t->dim;
      if (in_.one_in(16)) width -= in_.below(2);
    }
    const auto shared = std::make_shared<block>((tokens_ * width + 1) * element_bytes);
    for (described* t : {&q_, &k_, &v_, &out_}) t->token_stride = width, t->memory = shared;
  }

  void place_anywhere(index_t element_bytes) {
    index_t end = 1;
    for (described* t : {&q_, &k_, &v_, &out_}) {
      t->first_byte = (in_.one_in(2) ? end / element_bytes : in_.below(256)) * element_bytes;
      end = std::max(end, t->first_byte + static_cast<index_t>(t->span()));
    }
    const auto shared = std::make_shared<block>(end);
    for (described* t : {&q_, &k_, &v_, &out_}) t->memory = shared;
  }

  // What a caller may get wrong.
  void corrupt() {
    if (!in_.one_in(4)) return;
    for (index_t changes = in_.between(1, 2); changes > 0; --changes) {
      described* const tensors[] = {&q_, &k_, &v_, &out_, &lse_};
      described& t = *in_.one_of(tensors);
      index_t* const fields[] = {&t.tokens, &t.heads, &t.dim, &t.token_stride, &t.head_stride};
      index_t& field = *in_.one_of(fields);
      const index_t kind = in_.below(4);
      if (kind == 0) field = in_.one_in(2) ? std::min(field, unlimited - 1) + 1 : std::max(field, -unlimited) - 1;
      if (kind == 1) t.null = true;
      if (kind >= 2) field = in_.hostile();
      if (kind == 3) q_.*same_field(t, field) = field;  // twice the same, which is less easily seen
    }
  }
  static index_t described::*same_field(const described& t, const index_t& field) {
    if (&field == &t.tokens) return &described::tokens;
    if (&field == &t.heads) return &described::heads;
    if (&field == &t.dim) return &described::dim;
    return &field == &t.token_stride ? &described::token_stride : &described::head_stride;
  }

  // By the words of attend()'s comment.
  outcome expected_outcome(const any_position& position, bool out_is_like_q) const {
    if (fuzz::is_refused(shape_)) return outcome::refused;
    for (const described* t : {&q_, &k_, &v_, &out_})
      if (t->is_refused()) return outcome::refused;
    const auto is_dim = [](index_t dim) { return dim >= 1 && dim <= lambda_attention::max_head_dim; };
    if (!is_dim(q_.dim) || !is_dim(k_.dim) || !is_dim(v_.dim)) return outcome::refused;
    if (k_.tokens != q_.tokens || v_.tokens != q_.tokens || out_.tokens != q_.tokens) return outcome::refused;
    if (q_.heads < 1 || k_.heads < 1 || q_.heads % k_.heads != 0 || v_.heads != k_.heads || out_.heads != q_.heads)
      return outcome::refused;
    if (q_.heads > index_t{1} << 20 || q_.dim != k_.dim || out_.dim != v_.dim) return outcome::refused;
    if (position.num_heads() != 0 && position.num_heads() != q_.heads) return outcome::refused;
    if (position.head_dim() != 0 && position.head_dim() != q_.dim) return outcome::refused;
    outcome result = both(options_outcome(), self_overlapping(out_));
    result = both(result, both(overlapping(out_, k_), overlapping(out_, v_)));
    if (!(out_is_like_q && is_q(out_))) result = both(result, overlapping(out_, q_));
    return both(result, demand(options_.first_position >= 0 && q_.tokens <= unlimited - options_.first_position));
  }
  bool is_q(const described& t) const {
    return t.begin() == q_.begin() && t.dim == q_.dim && t.token_step() == q_.token_step() &&
           t.head_step() == q_.head_step();
  }

  outcome options_outcome() const {
    const int isa = static_cast<int>(options_.isa);
    if (isa < 0 || isa > static_cast<int>(lambda_attention::highest_isa())) return outcome::refused;
    if (!(std::fabs(options_.scale) <= 1e30)) return outcome::refused;
    if (options_.soft_cap != 0 && !(options_.soft_cap >= 1e-30 && options_.soft_cap <= 1e30)) return outcome::refused;
    const auto& sinks = options_.sink_logits;
    if ((sinks.data != nullptr || sinks.size != 0) && (sinks.data == nullptr || sinks.size != q_.heads))
      return outcome::refused;
    if (lse_.null || lse_.begin() == nullptr) return outcome::accepted;
    if (lse_.is_refused() || lse_.tokens != out_.tokens || lse_.heads != out_.heads || lse_.dim != 1)
      return outcome::refused;
    outcome result = self_overlapping(lse_);
    for (const described* t : {&q_, &k_, &v_, &out_}) result = both(result, overlapping(lse_, *t));
    return result;
  }

  // Tensors that share memory are of one type, and whatever overlaps holds numbers of it.
  template <class Q, class K, class V>
  void fill(numbers& random) {
    const auto fill_rows = [&](const described& t, auto element, bool of_few_bits) {
      using type = decltype(element);
      t.for_each_row([&](index_t byte, index_t count) {
        type* const row = reinterpret_cast<type*>(t.memory->data() + byte);
        const index_t dim = count / static_cast<index_t>(sizeof(type));
        of_few_bits ? random.fill_exactly(row, dim) : random.fill(row, dim);
      });
    };
    fill_rows(q_, Q{}, false);
    fill_rows(k_, K{}, exact_);
    fill_rows(v_, V{}, exact_);
  }

  memory copies() const {
    memory result;
    for (const described* t : {&q_, &k_, &v_, &out_, &lse_}) result.push_back({t->memory, *t->memory});
    return result;
  }

  template <class Q, class K, class V, class Out, class Executor>
  bool is_accepted(const any_position& position, Executor&& executor) {
    try {
      lambda_attention::attend(q_.view<const Q>(), k_.view<const K>(), v_.view<V>(), shape_, position, out_.view<Out>(),
                               options_, executor);
      return true;
    } catch (const std::invalid_argument& error) {
      refusal_ = error.what();
      if (refusal_.rfind("attend: expected ", 0) != 0) throw failure("expected words of a refusal, got " + refusal_);
      return false;
    }
  }

  void check_unchanged(const memory& before, bool but_outputs) const {
    for (const auto& pair : before) {
      const block& now = *pair.first;
      block expected = pair.second;
      for (const described* t : {&out_, &lse_}) {
        if (!but_outputs || t->null || t->memory != pair.first) continue;
        t->for_each_row([&](index_t byte, index_t count) {
          std::memcpy(expected.data() + byte, now.data() + byte, static_cast<std::size_t>(count));
        });
      }
      if (std::memcmp(expected.data(), now.data(), static_cast<std::size_t>(now.bytes())) != 0)
        throw failure(but_outputs ? "expected nothing but outputs to be written"
                                  : "expected a refused call to write nothing");
    }
  }

  template <class Q, class K, class V, class Out>
  void check_rows(const any_position& position, const memory& before, numbers& random) {
    using real = lambda_attention::detail::compute_type_of<Q, K, V, Out>;
    const roundings r = roundings::of_tensors(std::is_same_v<K, bfloat16> && std::is_same_v<V, bfloat16>, options_.isa);
    const tensor_view<const Q> q = q_.view_in<Q>(before[0].second);
    const tensor_view<const K> k = k_.view_in<K>(before[1].second);
    const tensor_view<const V> v = v_.view_in<V>(before[2].second);
    for (index_t row = 0; row < std::min<index_t>(5, q_.tokens); ++row) {
      const index_t query = row == 0 ? q_.tokens - 1 : random.below(q_.tokens), head = random.below(q_.heads);
      const expected_row expected(q.row(query, head), query, head, q_.heads, k, v, shape_, position, options_);
      expected.check<real>(out_.view<Out>().row(query, head), r);
      if (!lse_.null) expected.check_lse<real>(*lse_.view<float>().row(query, head), r);
    }
  }

  // Other threads, the same bits.
  template <class Q, class K, class V, class Out>
  void check_same_bits(const any_position& position, const memory& before) {
    const block first = *out_.memory;
    for (const auto& [now, then] : before)
      std::memcpy(now->data(), then.data(), static_cast<std::size_t>(then.bytes()));
    is_accepted<Q, K, V, Out>(position, support::reversed_executor());
    if (std::memcmp(first.data(), out_.memory->data(), static_cast<std::size_t>(first.bytes())) != 0)
      throw failure("expected the same bits of another executor");
  }

  input& in_;
  std::uint64_t seed_;
  index_t types_;
  index_t tokens_, kv_heads_, group_, head_dim_, v_head_dim_;
  lambda_shape shape_;
  attention_options options_;
  bool has_sink_logits_ = false, exact_ = false, has_lse_ = false;
  described q_, k_, v_, out_, lse_;
  std::string refusal_;
};

/// Whether the input's call was computed; it was refused else, or not made for want of memory.
inline bool try_to_attend(const std::uint8_t* data, std::size_t size) {
  input in(data, size);
  attend_call call(in);
  try {
    switch (call.types()) {
      case 0:
        return call.run<float, float, float, float>();
      case 1:
        return call.run<double, double, double, double>();
      case 2:
        return call.run<half, half, half, half>();
      case 3:
        return call.run<bfloat16, bfloat16, bfloat16, bfloat16>();
      case 4:
        return call.run<float, bfloat16, bfloat16, float>();
      case 5:
        return call.run<half, float, bfloat16, double>();
      case 6:
        return call.run<bfloat16, half, half, float>();
      default:
        return call.run<float, double, half, bfloat16>();
    }
  } catch (const failure& error) {
    throw failure(std::string(error.what()) + ": " + call.description());
  }
}

}  // namespace fuzz
