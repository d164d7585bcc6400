// One token after another: a cache that keeps the whole stream against one that keeps the Λ. Rows are kept as float.
#pragma once

#include "../support/check.hpp"
#include "../support/random.hpp"
#include "../support/timing.hpp"
#include "../support/visible.hpp"
#include "measurement.hpp"
#include "settings.hpp"

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace demo {

/// Keys and values of the longest stream; a shorter one is its beginning. And the queries of the token that is decoded.
struct stream_inputs {
  std::vector<float> k = bench::normal_values<float>(largest_stream * num_kv_heads * head_dim, 5);
  std::vector<float> v = bench::normal_values<float>(largest_stream * num_kv_heads * head_dim, 6);
  std::vector<float> q = bench::normal_values<float>(num_heads * head_dim, 7);
  std::vector<float> out = std::vector<float>(q.size());

  lambda_attention::tensor_view<const float> keys() const { return rows(k); }
  lambda_attention::tensor_view<const float> values() const { return rows(v); }
  lambda_attention::tensor_view<const float> queries() const {
    return lambda_attention::token_major(q.data(), 1, num_heads, head_dim);
  }
  lambda_attention::tensor_view<float> output() {
    return lambda_attention::token_major(out.data(), 1, num_heads, head_dim);
  }

 private:
  static lambda_attention::tensor_view<const float> rows(const std::vector<float>& values_) {
    return lambda_attention::token_major(values_.data(), largest_stream, num_kv_heads, head_dim);
  }
};

/// A stream that has come so far, and its decode steps.
class stream {
 public:
  stream(const char* name, index_t length, const lambda_attention::lambda_shape& shape, stream_inputs& inputs)
      : name_(std::string(name) + "/" + std::to_string(length)),
        last_(length - 1),
        cache_(shape, position(), num_kv_heads, head_dim, head_dim),
        scratch_(lambda_attention::scratch_bytes(cache_, num_heads, 1)),
        inputs_(inputs) {
    lambda_attention::append(inputs.keys().slice(0, last_), inputs.values().slice(0, last_), cache_);
    decode();
    check();
  }

  /// Times some steps, more of them where they are short, after a few that bring the cache's rows back into the processor.
  void measure() {
    const index_t rows = bench::visible_keys(cache_.shape(), last_);
    for (int i = 0; i < 3; ++i) decode();
    for (index_t i = 0; i < std::clamp<index_t>(32768 / rows, 4, 16); ++i)
      seconds_.push_back(bench::thread_seconds_of([&] { decode(); }));
  }

  void tell_results() const {
    tell(("seconds/" + name_).c_str(), bench::median(seconds_));
    tell(("bytes/" + name_).c_str(), static_cast<double>(cache_.bytes()));
  }

 private:
  void decode() {
    lambda_attention::attention_options options;
    options.workspace = &scratch_;
    lambda_attention::attend(inputs_.queries(), inputs_.keys().slice(last_, 1), inputs_.values().slice(last_, 1),
                             cache_, inputs_.output(), options);
  }

  /// The first decoded token against the formula, one head of each group.
  void check() {
    bench::deviation deviation;
    std::vector<long double> expected(head_dim);
    for (index_t head = 0; head < num_heads; head += num_heads / num_kv_heads) {
      lambda_attention::reference::attend_row(inputs_.queries().row(0, head), last_, head, num_heads, inputs_.keys(),
                                              inputs_.values(), cache_.shape(), position(), {}, expected.data());
      const float* const got = inputs_.output().row(0, head);
      for (index_t d = 0; d < head_dim; ++d) deviation.add(expected[static_cast<std::size_t>(d)], got[d]);
    }
    const index_t visible = bench::visible_keys(cache_.shape(), last_);
    if (!deviation.within(bench::float_nmse_bound_of(visible))) fail("a decoded row is not what the formula gives");
  }

  std::string name_;
  index_t last_;
  lambda_attention::kv_cache<lambda_attention::f32, lambda_attention::rope> cache_;
  lambda_attention::workspace scratch_;
  stream_inputs& inputs_;
  std::vector<double> seconds_;
};

/// Every length in turn, `rounds` times, so that noise meets all lengths alike.
inline void measure_streams(std::vector<stream>& streams, int rounds) {
  for (int round = 0; round < rounds; ++round)
    for (stream& one : streams) one.measure();
  for (const stream& one : streams) one.tell_results();
}

inline void measure_decode() {
  stream_inputs inputs;
  std::vector<stream> unbounded, bounded;
  for (index_t length = smallest_tokens; length <= largest_stream; length *= 2) {
    unbounded.emplace_back("unbounded", length, lambda_attention::sliding_window(length), inputs);
    bounded.emplace_back("kv_cache", length, lambda(), inputs);
  }
  measure_streams(unbounded, 12);
  measure_streams(bounded, 80);
}

}  // namespace demo
