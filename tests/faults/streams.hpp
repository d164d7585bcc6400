// Streams for faults to happen to: small ones, of every storage and every way to keep keys; and what can be seen of
// them.
#pragma once

#include <lambda_attention/attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/random_tensor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>

namespace faults {

using namespace support;
using namespace lambda_attention;

/// One of several encodings, in one type: what is made for every encoding is compiled once.
class some_encoding : public position_encoding {
 public:
  some_encoding() = default;
  explicit some_encoding(const rope& rotation) : rotation_(rotation) {}
  explicit some_encoding(const alibi& slopes) : slopes_(slopes) {}

  index_t num_heads() const { return slopes_ ? slopes_->num_heads() : 0; }
  index_t head_dim() const { return rotation_ ? rotation_->head_dim() : 0; }
  position_data data() const { return rotation_ ? rotation_->data() : slopes_ ? slopes_->data() : position_data{}; }

 private:
  std::optional<rope> rotation_;
  std::optional<alibi> slopes_;
};

/// Fails in place of the task with the number given, counted over all runs, or after the last of a run.
struct engine_error {};
class some_executor {
 public:
  explicit some_executor(index_t num_workers, index_t* tasks_until_failure = nullptr)
      : num_workers_(num_workers), tasks_until_failure_(tasks_until_failure) {}

  index_t num_workers() const { return num_workers_; }

  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    for (index_t task = num_tasks; task-- > 0;) {
      fail_if_it_is_time();
      f(task, task % num_workers_);
    }
    fail_if_it_is_time();
  }

 private:
  void fail_if_it_is_time() const {
    if (tasks_until_failure_ != nullptr && (*tasks_until_failure_)-- == 0) throw engine_error{};
  }

  index_t num_workers_;
  index_t* tasks_until_failure_;
};

/// All that a cache would go on with, and how far it could go back.
template <class Cache>
std::string saved_bytes(const Cache& cache) {
  std::ostringstream out;
  cache.save(out);
  return out.str();
}

template <class Real>
struct results {
  tensor<Real> out;
  tensor<float> lse;
  tensor<float> weights;
};
template <class Real>
bool same(const results<Real>& a, const results<Real>& b) {
  return same_bits(a.out.view(), b.out.view()) && same_bits(a.lse.view(), b.lse.view()) &&
         same_bits(a.weights.view(), b.weights.view());
}
template <class Real>
bool same(const tensor<Real>& a, const tensor<Real>& b) {
  return same_bits(a.view(), b.view());
}

inline constexpr index_t num_tokens = 100, max_append = 16, max_rewind = 2;
inline constexpr extents size = {num_tokens, 2, 2};
// Nothing yet, in the sinks, and when every ring has wrapped.
inline constexpr index_t moments[] = {0, 2, 53};
inline constexpr index_t steps[] = {1, 3, 20, 40};  // off the rows as they lie, in tiles, in two and in three rounds

/// The tokens of a stream, and the caches that it goes through.
template <class Storage>
class stream {
 public:
  using cache = kv_cache<Storage, some_encoding>;
  using real = typename Storage::compute_type;

  stream(const lambda_shape& shape, const some_encoding& position)
      : shape_(shape), position_(position), in_(random()) {}

  const inputs<>& in() const { return in_; }
  const lambda_shape& shape() const { return shape_; }
  const some_encoding& position() const { return position_; }

  results<real> room() const {
    return {output_for<real>(in_), tensor<float>(num_tokens, size.heads(), 1),
            tensor<float>(num_tokens, size.heads(), shape_.num_sinks + shape_.window)};
  }
  cache empty() const { return cache_for<Storage>(in_, shape_, position_, {max_append, max_rewind}); }
  cache after(index_t tokens) const {
    cache result = empty();
    results<real> unused = room();
    while (result.num_tokens() < tokens) step(result, std::min(max_append, tokens - result.num_tokens()), unused);
    return result;
  }

  /// The tokens that come next, and all that a call can tell of them.
  void step(cache& c, index_t count, results<real>& r, attention_options options = {},
            const some_executor& executor = some_executor(1)) const {
    const index_t first = c.num_tokens();
    ASSERT_LE(first + count, num_tokens) << "the cache has tokens that it should not have";
    options.lse = r.lse.view().slice(first, count);
    if (count <= 4) options.weights = r.weights.view().slice(first, count);
    attend(in_.q.view().slice(first, count), in_.k.view().slice(first, count), in_.v.view().slice(first, count), c,
           r.out.view().slice(first, count), options, executor);
  }

  /// Whether forks of two caches go on in the same way.
  bool go_on_the_same(const cache& a, const cache& b) const { return same(next_step(a), next_step(b)); }

 private:
  results<real> next_step(cache fork) const {
    results<real> r = room();
    step(fork, 5, r);
    return r;
  }
  static inputs<> random() {
    constexpr int seed = 40;
    generator numbers(seed);
    return random_inputs(numbers, size);
  }

  lambda_shape shape_;
  some_encoding position_;
  inputs<> in_;
};

/// Calls use(stream) with every storage, and with every set of rings.
template <class Use>
void for_each_stream(Use&& use) {
  for_each_storage([&](auto storage, const char* name) {
    SCOPED_TRACE(name);
    const auto with = [&](const char* rings, const lambda_shape& shape, const some_encoding& position) {
      SCOPED_TRACE(rings);
      use(stream<decltype(storage)>(shape, position));
    };
    const some_encoding rotation(rope(size.head_dim)), biases(alibi(size.heads())), nothing;
    with("sinks in two forms", lm_infinite(3, 11), rotation);
    with("two rings of keys", {3, 11, 5}, rotation);
    with("rotated sinks", streaming_llm(3, 11), rotation);
    with("alibi", lm_infinite(3, 11), biases);
    with("no encoding, no sinks", sliding_window(11), nothing);
  });
}

}  // namespace faults
