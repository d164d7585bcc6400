// Every sentence that a call can be refused with, and that nothing has been written by then.
#include <lambda_attention/attention.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/retrieval.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../refusal.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::tensor_view;
using la::unlimited;

namespace {

constexpr index_t n = 7, heads = 4, kv_heads = 2, dim = 8, v_dim = 6;

// A call that is accepted; the tests spoil one thing of it.
struct call {
  std::vector<float> memory = std::vector<float>(1000);
  tensor_view<float> q, k, v, out;
  la::lambda_shape shape = la::lm_infinite(2, 3);
  la::attention_options options;

  call() {
    std::iota(memory.begin(), memory.end(), 0.0f);
    for (float& x : memory) x = 1 / (1 + x);
    q = la::token_major(memory.data(), n, heads, dim);
    k = la::token_major(memory.data() + 250, n, kv_heads, dim);
    v = la::token_major(memory.data() + 400, n, kv_heads, v_dim);
    out = la::token_major(memory.data() + 500, n, heads, v_dim);
  }
  float* free_memory() { return memory.data() + 700; }
};

using cache_type = la::kv_cache<la::f32, la::none>;

cache_type new_cache(index_t first_position = 0) {
  la::kv_cache_options options;
  options.max_append = 10;
  options.first_position = first_position;
  return {la::lm_infinite(2, 3), {}, kv_heads, dim, v_dim, options};
}

// All memory that a cache keeps rows in.
std::vector<unsigned char> bytes_of(const cache_type& cache) {
  const auto rows = cache.core().rows();
  std::vector<unsigned char> bytes;
  for (const auto* store :
       {&rows.keys[0], &rows.keys[1], &rows.keys[2], &rows.keys[3], &rows.sink_values, &rows.window_values})
    for (index_t head = 0; head < cache.num_kv_heads(); ++head)
      bytes.insert(bytes.end(), store->row(head, 0), store->row(head, 0) + store->capacity * store->row_bytes);
  return bytes;
}

// Makes a call, spoilt by `change`, and returns its refusal. Memory must stay as it was.
template <class Change, class Attend>
std::string refused(Change&& change, Attend&& attend) {
  call c;
  change(c);
  const std::vector<float> before = c.memory;
  const std::string message = refusal([&] { attend(c); });
  EXPECT_EQ(c.memory == before, message != "accepted") << message;
  return message;
}

template <class Change, class Position = la::none>
std::string sequence(Change&& change, const Position& position = {}) {
  return refused(change, [&](const call& c) { la::attend(c.q, c.k, c.v, c.shape, position, c.out, c.options); });
}

// The same for a stream that has seen some tokens; nor may the cache change.
template <class Change, class Attend>
std::string refused_by_cache(Change&& change, Attend&& attend, index_t first_position = 0) {
  cache_type cache = new_cache(first_position);
  const call past;
  la::append(past.k.slice(0, 5), past.v.slice(0, 5), cache);
  const std::vector<unsigned char> before = bytes_of(cache);
  const std::string message = refused(change, [&](const call& c) { attend(c, cache); });
  if (message == "accepted") return message;
  EXPECT_EQ(cache.num_tokens(), 5);
  EXPECT_EQ(bytes_of(cache), before) << message;
  return message;
}

template <class Change>
std::string stream(Change&& change, index_t first_position = 0) {
  return refused_by_cache(
      change, [](const call& c, cache_type& cache) { la::attend(c.q, c.k, c.v, cache, c.out, c.options); },
      first_position);
}

// Where only keys are spoilt, whose refusal changes memory by no means: append() has no output.
template <class Change>
std::string append(Change&& change, index_t first_position = 0) {
  cache_type cache = new_cache(first_position);
  const call past;
  la::append(past.k.slice(0, 5), past.v.slice(0, 5), cache);
  const std::vector<unsigned char> before = bytes_of(cache);
  call c;
  change(c);
  const std::string message = refusal([&] { la::append(c.k, c.v, cache, c.options.isa); });
  EXPECT_EQ(bytes_of(cache) == before && cache.num_tokens() == 5, message != "accepted") << message;
  return message;
}

template <class Change>
std::string newest(Change&& change) {
  return refused_by_cache(
      [&](call& c) {
        c.q.tokens = c.out.tokens = 5;
        change(c);
      },
      [](const call& c, const cache_type& cache) { la::attend(c.q, cache, c.out, c.options); });
}

// A whole sequence and a stream refuse alike.
template <class Change>
std::string both(Change&& change) {
  const std::string message = sequence(change);
  EXPECT_EQ(stream(change), message);
  return message;
}

}  // namespace

TEST(Checks, TheCallAsItIsIsAccepted) {
  const auto nothing = [](call&) {};
  EXPECT_EQ(sequence(nothing), "accepted");
  EXPECT_EQ(stream(nothing), "accepted");
  EXPECT_EQ(append(nothing), "accepted");
  EXPECT_EQ(newest(nothing), "accepted");
}

TEST(Checks, Shape) {
  EXPECT_EQ(sequence([](call& c) { c.shape.num_sinks = -1; }), "attend: expected num_sinks >= 0, got -1");
  EXPECT_EQ(sequence([](call& c) { c.shape.window = -1; }), "attend: expected window >= 0, got -1");
  EXPECT_EQ(sequence([](call& c) { c.shape.distance_limit = -1; }), "attend: expected distance_limit >= 0, got -1");
  EXPECT_EQ(sequence([](call& c) { c.shape.sinks_at = la::sink_distance::cache_slot; }),
            "attend: expected distance_limit >= num_sinks + window - 1 = 4 for sinks at cache slots, got 3");
}

TEST(Checks, NegativeExtents) {
  EXPECT_EQ(both([](call& c) { c.q.tokens = -1; }),
            "attend: expected q with tokens, heads and dim >= 0, got [-1, 4, 8]");
  EXPECT_EQ(both([](call& c) { c.out.heads = -4; }),
            "attend: expected out with tokens, heads and dim >= 0, got [7, -4, 6]");
  EXPECT_EQ(both([](call& c) { c.k.dim = -8; }), "attend: expected k with tokens, heads and dim >= 0, got [7, 2, -8]");
  EXPECT_EQ(both([](call& c) { c.v.tokens = -7; }),
            "attend: expected v with tokens, heads and dim >= 0, got [-7, 2, 6]");
  EXPECT_EQ(append([](call& c) { c.k.dim = -8; }),
            "append: expected k with tokens, heads and dim >= 0, got [7, 2, -8]");
  EXPECT_EQ(newest([](call& c) { c.q.heads = -4; }),
            "attend: expected q with tokens, heads and dim >= 0, got [5, -4, 8]");
}

TEST(Checks, NegativeStrides) {
  EXPECT_EQ(both([](call& c) { c.q.token_stride = -32; }),
            "attend: expected q with strides >= 0, got token_stride = -32, head_stride = 8");
  EXPECT_EQ(both([](call& c) { c.k.head_stride = -8; }),
            "attend: expected k with strides >= 0, got token_stride = 16, head_stride = -8");
  EXPECT_EQ(both([](call& c) { c.v.token_stride = -1; }),
            "attend: expected v with strides >= 0, got token_stride = -1, head_stride = 6");
  EXPECT_EQ(both([](call& c) { c.out.head_stride = -1; }),
            "attend: expected out with strides >= 0, got token_stride = 24, head_stride = -1");
  EXPECT_EQ(append([](call& c) { c.v.head_stride = -6; }),
            "append: expected v with strides >= 0, got token_stride = 12, head_stride = -6");
}

TEST(Checks, ExtentsPastMemory) {
  const std::string huge = std::to_string(unlimited);
  // (7 - 1) * stride overflows; a product and a sum that only overflow together; a sum that only overflows in bytes.
  EXPECT_EQ(both([](call& c) { c.q.token_stride = unlimited; }),
            "attend: expected q to end within 2^63 bytes, got [7, 4, 8] with strides " + huge + ", 8");
  EXPECT_EQ(both([](call& c) { c.k.head_stride = unlimited; }),
            "attend: expected k to end within 2^63 bytes, got [7, 2, 8] with strides 16, " + huge);
  EXPECT_EQ(both([](call& c) {
              c.v.token_stride = unlimited / 6;
              c.v.head_stride = unlimited / 2;
            }),
            "attend: expected v to end within 2^63 bytes, got [7, 2, 6] with strides " + std::to_string(unlimited / 6) +
                ", " + std::to_string(unlimited / 2));
  EXPECT_EQ(both([](call& c) { c.out.token_stride = unlimited / 24; }),
            "attend: expected out to end within 2^63 bytes, got [7, 4, 6] with strides " +
                std::to_string(unlimited / 24) + ", 6");
  EXPECT_EQ(append([](call& c) { c.k.tokens = unlimited; }),
            "append: expected k to end within 2^63 bytes, got [" + huge + ", 2, 8] with strides 16, 8");
}

// The stride between one token and no other is never used.
TEST(Checks, StridesOfASingleRowMayBeAnything) {
  const auto one_token = [](call& c) {
    for (tensor_view<float>* view : {&c.q, &c.k, &c.v, &c.out}) {
      view->tokens = 1;
      view->token_stride = unlimited;
    }
  };
  EXPECT_EQ(both(one_token), "accepted");
  const auto one_head = [](call& c) {
    for (tensor_view<float>* view : {&c.q, &c.k, &c.v, &c.out}) {
      view->heads = 1;
      view->head_stride = unlimited;
    }
  };
  EXPECT_EQ(sequence(one_head), "accepted");
}

TEST(Checks, NullPointers) {
  EXPECT_EQ(both([](call& c) { c.q.data = nullptr; }), "attend: expected q with data, got a null pointer");
  EXPECT_EQ(both([](call& c) { c.k.data = nullptr; }), "attend: expected k with data, got a null pointer");
  EXPECT_EQ(both([](call& c) { c.v.data = nullptr; }), "attend: expected v with data, got a null pointer");
  EXPECT_EQ(both([](call& c) { c.out.data = nullptr; }), "attend: expected out with data, got a null pointer");
  EXPECT_EQ(append([](call& c) { c.k.data = nullptr; }), "append: expected k with data, got a null pointer");
}

TEST(Checks, Dims) {
  EXPECT_EQ(both([](call& c) { c.q.dim = 0; }), "attend: expected 1 <= q.dim <= 512, got 0");
  EXPECT_EQ(both([](call& c) { c.q.dim = 513; }), "attend: expected 1 <= q.dim <= 512, got 513");
  EXPECT_EQ(both([](call& c) { c.k.dim = 0; }), "attend: expected 1 <= k.dim <= 512, got 0");
  EXPECT_EQ(both([](call& c) { c.k.dim = 513; }), "attend: expected 1 <= k.dim <= 512, got 513");
  EXPECT_EQ(both([](call& c) { c.v.dim = 0; }), "attend: expected 1 <= v.dim <= 512, got 0");
  EXPECT_EQ(both([](call& c) { c.v.dim = 513; }), "attend: expected 1 <= v.dim <= 512, got 513");
  EXPECT_EQ(append([](call& c) { c.v.dim = 0; }), "append: expected 1 <= v.dim <= 512, got 0");
  EXPECT_EQ(sequence([](call& c) {
              c.q = c.k = la::token_major(c.memory.data(), 1, 1, 512);
              c.v.tokens = c.v.heads = c.out.tokens = c.out.heads = 1;
              c.out.data = c.free_memory();
            }),
            "accepted");
}

TEST(Checks, TensorsThatDoNotFitEachOther) {
  EXPECT_EQ(both([](call& c) { c.v.tokens = 6; }), "attend: expected v.tokens == k.tokens, got 6 and 7");
  EXPECT_EQ(both([](call& c) { c.v.heads = 1; }), "attend: expected v.heads == k.heads, got 1 and 2");
  EXPECT_EQ(both([](call& c) { c.k.tokens = c.v.tokens = 6; }), "attend: expected k.tokens == q.tokens, got 6 and 7");
  EXPECT_EQ(both([](call& c) { c.out.tokens = 6; }), "attend: expected out.tokens == q.tokens, got 6 and 7");
  EXPECT_EQ(both([](call& c) { c.out.tokens = 8; }), "attend: expected out.tokens == q.tokens, got 8 and 7");
  EXPECT_EQ(both([](call& c) { c.out.heads = 3; }), "attend: expected out.heads == q.heads, got 3 and 4");
  EXPECT_EQ(sequence([](call& c) { c.out.dim = 5; }), "attend: expected out.dim == v.dim, got 5 and 6");
  EXPECT_EQ(sequence([](call& c) { c.q.dim = 7; }), "attend: expected q.dim == k.dim, got 7 and 8");
  EXPECT_EQ(append([](call& c) { c.v.tokens = 6; }), "append: expected v.tokens == k.tokens, got 6 and 7");
  EXPECT_EQ(append([](call& c) { c.v.heads = 1; }), "append: expected v.heads == k.heads, got 1 and 2");
  EXPECT_EQ(newest([](call& c) { c.out.tokens = 4; }), "attend: expected out.tokens == q.tokens, got 4 and 5");
}

TEST(Checks, Heads) {
  const auto q_heads = [](index_t count) { return [=](call& c) { c.q.heads = c.out.heads = count; }; };
  EXPECT_EQ(sequence(q_heads(3)),
            "attend: expected q.heads % k.heads == 0, both at least 1, got q.heads = 3, k.heads = 2");
  EXPECT_EQ(sequence(q_heads(0)),
            "attend: expected q.heads % k.heads == 0, both at least 1, got q.heads = 0, k.heads = 2");
  EXPECT_EQ(sequence([](call& c) { c.k.heads = c.v.heads = 0; }),
            "attend: expected q.heads % k.heads == 0, both at least 1, got q.heads = 4, k.heads = 0");
  EXPECT_EQ(sequence(q_heads((index_t{1} << 20) + 1)), "attend: expected at most 2^20 = 1048576 q.heads, got 1048577");
  const std::string by_cache = "attend: expected q.heads % cache.num_kv_heads == 0, both at least 1, got q.heads = ";
  EXPECT_EQ(stream(q_heads(3)), by_cache + "3, cache.num_kv_heads = 2");
  EXPECT_EQ(stream(q_heads(0)), by_cache + "0, cache.num_kv_heads = 2");
  EXPECT_EQ(newest(q_heads(1)), by_cache + "1, cache.num_kv_heads = 2");
}

TEST(Checks, Encoding) {
  const auto nothing = [](call&) {};
  EXPECT_EQ(sequence(nothing, la::alibi(4)), "accepted");
  EXPECT_EQ(sequence(nothing, la::rope(8)), "accepted");
  EXPECT_EQ(sequence(nothing, la::alibi(8)), "attend: expected q.heads = 8, that of the position encoding, got 4");
  EXPECT_EQ(sequence(nothing, la::rope(16)), "attend: expected head_dim = 16, that of the position encoding, got 8");

  la::kv_cache<la::f32, la::alibi> cache(la::lm_infinite(2, 3), la::alibi(8), kv_heads, dim, v_dim);
  EXPECT_EQ(refused(nothing, [&](const call& c) { la::attend(c.q, c.k, c.v, cache, c.out); }),
            "attend: expected q.heads = 8, that of the position encoding, got 4");
  EXPECT_EQ(cache.num_tokens(), 0);
}

namespace {

// Encodings that do not say for how many heads and for which head_dim they are.
struct table_without_heads : la::position_encoding {
  la::bias_table table;
  explicit table_without_heads(index_t num_heads) : table(num_heads, 5) {}
  la::position_data data() const {
    la::position_data data;
    data.biases = &table;
    return data;
  }
};
struct pairs_without_head_dim : la::position_encoding {
  std::vector<std::uint64_t> turns = std::vector<std::uint64_t>(5);
  index_t num_pairs;
  explicit pairs_without_head_dim(index_t pairs) : num_pairs(pairs) {}
  la::position_data data() const {
    la::position_data data;
    data.rotation = {turns.data(), num_pairs, la::pair_layout::half_split, 1};
    return data;
  }
};

// Whatever it is given.
struct any_data : la::position_encoding {
  la::position_data held;
  index_t heads;
  explicit any_data(const la::position_data& data, index_t num_heads = 0) : held(data), heads(num_heads) {}
  index_t num_heads() const { return heads; }
  la::position_data data() const { return held; }
};

}  // namespace

TEST(Checks, DataOfAnEncodingThatContradictsItself) {
  const auto refused_by_all = [](const any_data& encoding) {
    const std::string message = sequence([](call&) {}, encoding);
    const std::string what = message.substr(message.find(':') + 1);
    using cache = la::kv_cache<la::f32, any_data>;
    using store = la::middle_store<la::f32, any_data>;
    EXPECT_EQ(refusal([&] { cache(la::lm_infinite(2, 3), encoding, kv_heads, dim, v_dim); }),
              message == "accepted" ? message : "kv_cache:" + what);
    EXPECT_EQ(refusal([&] { store(la::lm_infinite(2, 3), encoding, kv_heads, dim, v_dim); }),
              message == "accepted" ? message : "middle_store:" + what);
    return message;
  };
  const std::vector<std::uint64_t> turns(2);
  const la::rotation_data rotation = {turns.data(), 2, la::pair_layout::half_split, 1};
  const la::row_function function = {nullptr, [](const void*, std::uint64_t, float*, index_t) {},
                                     [](const void*, std::uint64_t, double*, index_t) {}};
  const std::vector<double> slopes(4, 0.5);
  const la::bias_table biases(4, 5);
  la::position_data data;
  EXPECT_EQ(refused_by_all(any_data(data)), "accepted");
  data.function = function;
  EXPECT_EQ(refused_by_all(any_data(data)), "accepted");
  data.rotation = rotation;
  EXPECT_EQ(refused_by_all(any_data(data)), "attend: expected an encoding with a rotation or a row function, got both");
  data.function = {};
  EXPECT_EQ(refused_by_all(any_data(data)), "accepted");
  data.rotation.turns = nullptr;
  EXPECT_EQ(refused_by_all(any_data(data)), "attend: expected an encoding's rotation with turns, got a null pointer");
  data = {};
  data.function.turn_f32 = function.turn_f32;
  const std::string one = "attend: expected an encoding's row function for float and for double, got one of them";
  EXPECT_EQ(refused_by_all(any_data(data)), one);
  data = {};
  data.function.turn_f64 = function.turn_f64;
  EXPECT_EQ(refused_by_all(any_data(data)), one);
  data = {};
  data.slopes = slopes.data();
  EXPECT_EQ(refused_by_all(any_data(data, 4)), "accepted");
  EXPECT_EQ(refused_by_all(any_data(data)), "attend: expected an encoding with slopes to say its num_heads, got 0");
  std::vector<double> steep = {0.5, -1e30, 1e30, 0};
  data.slopes = steep.data();
  EXPECT_EQ(refused_by_all(any_data(data, 4)), "accepted");
  const std::pair<double, std::string> too_large[] = {
      {1.1e30, "1.1e+30"}, {-1.1e30, "-1.1e+30"}, {HUGE_VAL, "inf"}, {std::nan(""), "nan"}};
  for (const auto& [slope, text] : too_large) {
    steep[3] = slope;
    EXPECT_EQ(refused_by_all(any_data(data, 4)),
              "attend: expected an encoding with slopes within +-1e30, got " + text + " for head 3");
  }
  data.biases = &biases;
  EXPECT_EQ(refused_by_all(any_data(data, 4)), "attend: expected an encoding with slopes or biases, got both");
  data = {};
  data.rotation = rotation;
  for (const double factor : {1e30, -1e30, 0.0}) {
    data.rotation.factor = factor;
    EXPECT_EQ(refused_by_all(any_data(data)), "accepted");
  }
  for (const auto& [factor, text] : too_large) {
    data.rotation.factor = factor;
    EXPECT_EQ(refused_by_all(any_data(data)), "attend: expected an encoding with a factor within +-1e30, got " + text);
  }
}

TEST(Checks, DataOfAnEncoding) {
  const auto nothing = [](call&) {};
  for (const index_t table_heads : {3, 5})
    EXPECT_EQ(
        sequence(nothing, table_without_heads(table_heads)),
        "attend: expected q.heads = " + std::to_string(table_heads) + ", that of the encoding's bias_table, got 4");
  EXPECT_EQ(sequence(nothing, table_without_heads(4)), "accepted");
  for (const index_t pairs : {-1, 5})
    EXPECT_EQ(
        sequence(nothing, pairs_without_head_dim(pairs)),
        "attend: expected at most head_dim / 2 = 4 pairs in the encoding's rotation, got " + std::to_string(pairs));
  EXPECT_EQ(sequence(nothing, pairs_without_head_dim(4)), "accepted");
}

TEST(Checks, OutputRowsThatOverlap) {
  const std::string overlap = "attend: expected out with rows that do not overlap, got dim = 6, ";
  EXPECT_EQ(both([](call& c) { c.out.head_stride = 5; }), overlap + "token_stride = 24, head_stride = 5");
  EXPECT_EQ(both([](call& c) { c.out.token_stride = 23; }), overlap + "token_stride = 23, head_stride = 6");
  EXPECT_EQ(both([](call& c) { c.out.token_stride = 0; }), overlap + "token_stride = 0, head_stride = 6");
  EXPECT_EQ(both([](call& c) { c.out.head_stride = 0; }), overlap + "token_stride = 24, head_stride = 0");
}

// Rows that are only read may.
TEST(Checks, InputRowsMayOverlap) {
  EXPECT_EQ(both([](call& c) { c.q.token_stride = c.q.head_stride = c.k.token_stride = c.k.head_stride = 0; }),
            "accepted");
  EXPECT_EQ(both([](call& c) { c.v.data = c.k.data; }), "accepted");
  EXPECT_EQ(sequence([](call& c) { c.k.data = c.q.data; }), "accepted");
}

TEST(Checks, Aliases) {
  const auto text = [](const char* name) {
    return "attend: expected out not to overlap " + std::string(name) +
           " (out may be exactly q), got overlapping memory";
  };
  // The first and the last element that are shared, and the first that are not.
  EXPECT_EQ(both([](call& c) { c.out.data = c.q.data + n * heads * dim - 1; }), text("q"));
  EXPECT_EQ(both([](call& c) {
              c.out.data = c.q.data + n * heads * dim;
              c.k.data = c.v.data = c.free_memory();
            }),
            "accepted");
  EXPECT_EQ(both([](call& c) {
              c.out.data = c.k.data - n * heads * v_dim + 1;
              c.q.data = c.free_memory();
            }),
            text("k"));
  EXPECT_EQ(both([](call& c) {
              c.out.data = c.k.data - n * heads * v_dim;
              c.q.data = c.free_memory();
            }),
            "accepted");
  EXPECT_EQ(both([](call& c) { c.out.data = c.v.data + n * kv_heads * v_dim - 1; }), text("v"));
  EXPECT_EQ(both([](call& c) { c.out.data = c.v.data + n * kv_heads * v_dim; }), "accepted");

  // The same memory, but not exactly q: another dim, which only happens where v_head_dim is not head_dim.
  EXPECT_EQ(both([](call& c) { c.out.data = c.q.data; }), text("q"));
  EXPECT_EQ(newest([](call& c) { c.out.data = c.q.data; }), text("q"));
}

TEST(Checks, ScaleAndSoftCap) {
  const auto scale = [](double value) { return [=](call& c) { c.options.scale = value; }; };
  const auto soft_cap = [](double value) { return [=](call& c) { c.options.soft_cap = value; }; };
  const std::string expected_scale = "attend: expected a finite options.scale within +-1e30, got ";
  EXPECT_EQ(both(scale(std::nan(""))), expected_scale + "nan");
  EXPECT_EQ(both(scale(HUGE_VAL)), expected_scale + "inf");
  EXPECT_EQ(both(scale(-HUGE_VAL)), expected_scale + "-inf");
  EXPECT_EQ(both(scale(1e31)), expected_scale + "1e+31");
  EXPECT_EQ(both(scale(-1e31)), expected_scale + "-1e+31");
  EXPECT_EQ(both(scale(-2)), "accepted");
  const std::string expected_cap = "attend: expected options.soft_cap = 0 or 1e-30 <= options.soft_cap <= 1e30, got ";
  EXPECT_EQ(both(soft_cap(std::nan(""))), expected_cap + "nan");
  EXPECT_EQ(both(soft_cap(HUGE_VAL)), expected_cap + "inf");
  EXPECT_EQ(both(soft_cap(1e31)), expected_cap + "1e+31");
  EXPECT_EQ(both(soft_cap(-1)), expected_cap + "-1");
  EXPECT_EQ(both(soft_cap(1e-31)), expected_cap + "1e-31");
  EXPECT_EQ(both(soft_cap(1e-30)), "accepted");
  EXPECT_EQ(newest(soft_cap(-1)), expected_cap + "-1");
}

TEST(Checks, SinkLogits) {
  const auto sinks = [](index_t size) { return [=](call& c) { c.options.sink_logits = {c.free_memory(), size}; }; };
  const std::string text = "attend: expected options.sink_logits with q.heads = 4 numbers, got ";
  EXPECT_EQ(both(sinks(4)), "accepted");
  EXPECT_EQ(both(sinks(3)), text + "3");
  EXPECT_EQ(both(sinks(5)), text + "5");
  EXPECT_EQ(both(sinks(0)), text + "0");
  EXPECT_EQ(both(sinks(-4)), text + "-4");
  EXPECT_EQ(both([](call& c) { c.options.sink_logits.size = 4; }), text + "4 at a null pointer");
  EXPECT_EQ(both([](call& c) {
              c.options.sink_logits = {c.out.data + 20, 4};
            }),
            "attend: expected options.sink_logits not to overlap out, got overlapping memory");
}

TEST(Checks, Lse) {
  const auto lse = [](index_t tokens, index_t lse_heads, index_t lse_dim) {
    return [=](call& c) { c.options.lse = la::token_major(c.free_memory(), tokens, lse_heads, lse_dim); };
  };
  EXPECT_EQ(both(lse(7, 4, 1)), "accepted");
  EXPECT_EQ(both(lse(6, 4, 1)), "attend: expected options.lse to be [7, 4, 1], got [6, 4, 1]");
  EXPECT_EQ(both(lse(7, 2, 1)), "attend: expected options.lse to be [7, 4, 1], got [7, 2, 1]");
  EXPECT_EQ(both(lse(8, 4, 1)), "attend: expected options.lse to be [7, 4, 1], got [8, 4, 1]");
  EXPECT_EQ(both(lse(7, 5, 1)), "attend: expected options.lse to be [7, 4, 1], got [7, 5, 1]");
  EXPECT_EQ(both(lse(7, 4, 2)), "attend: expected options.lse to be [7, 4, 1], got [7, 4, 2]");
  EXPECT_EQ(both(lse(-7, 4, 1)), "attend: expected options.lse with tokens, heads and dim >= 0, got [-7, 4, 1]");
  const auto spoilt = [&](auto change) {
    return [=](call& c) {
      lse(7, 4, 1)(c);
      change(c);
    };
  };
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.token_stride = -4; })),
            "attend: expected options.lse with strides >= 0, got token_stride = -4, head_stride = 1");
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.token_stride = 3; })),
            "attend: expected options.lse with rows that do not overlap, got dim = 1, token_stride = 3, "
            "head_stride = 1");
  const std::string queries =
      "attend: expected options.lse not to overlap q, out or options.sink_logits, got overlapping memory";
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.data = c.q.data + 100; })), queries);
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.data = c.out.data + 100; })), queries);
  EXPECT_EQ(both(spoilt([](call& c) { c.options.sink_logits = {c.options.lse.data + 27, 4}; })), queries);
  EXPECT_EQ(both(spoilt([](call& c) { c.options.sink_logits = {c.options.lse.data + 28, 4}; })), "accepted");
  const std::string keys = "attend: expected options.lse not to overlap k or v, got overlapping memory";
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.data = c.k.data; })), keys);
  EXPECT_EQ(both(spoilt([](call& c) { c.options.lse.data = c.v.data; })), keys);
}

TEST(Checks, Isa) {
  const auto level = [](int value) { return [=](call& c) { c.options.isa = static_cast<la::isa_level>(value); }; };
  const std::string most =
      "expected an isa that this machine has, at most " + std::string(name_of(la::highest_isa())) + ", got ";
  EXPECT_EQ(both(level(7)), "attend: " + most + "?");
  EXPECT_EQ(both(level(-1)), "attend: " + most + "?");
  EXPECT_EQ(append(level(7)), "append: " + most + "?");
  EXPECT_EQ(newest(level(7)), "attend: " + most + "?");
  const cache_type cache = new_cache();
  EXPECT_EQ(refusal([&] { la::scratch_bytes(cache, 4, 1, 1, static_cast<la::isa_level>(7)); }),
            "scratch_bytes: " + most + "?");
  for (int i = static_cast<int>(la::highest_isa()) + 1; i <= static_cast<int>(la::isa_level::amx_bf16); ++i)
    EXPECT_EQ(both(level(i)), "attend: " + most + name_of(static_cast<la::isa_level>(i)));
}

TEST(Checks, Positions) {
  const auto first = [](index_t position) { return [=](call& c) { c.options.first_position = position; }; };
  EXPECT_EQ(sequence(first(-1)), "attend: expected first_position >= 0, got -1");
  EXPECT_EQ(sequence(first(unlimited - 7)), "accepted");
  EXPECT_EQ(sequence(first(unlimited - 6)),
            "attend: expected positions below 2^63, got first_position = 9223372036854775801 and 7 tokens");
  // A cache knows its own; it has seen 5 tokens.
  EXPECT_EQ(stream(first(1)), "attend: expected options.first_position = 0 with a cache, which has its own, got 1");
  EXPECT_EQ(newest(first(-1)), "attend: expected options.first_position = 0 with a cache, which has its own, got -1");
  const auto nothing = [](call&) {};
  EXPECT_EQ(stream(nothing, unlimited - 12), "accepted");
  EXPECT_EQ(stream(nothing, unlimited - 11),
            "attend: expected positions below 2^63, got first_position = 9223372036854775796 and 12 tokens");
  // As many tokens as no number counts: every one is the same row.
  const auto endless = [](call& c) {
    c.k.tokens = c.v.tokens = unlimited;
    c.k.token_stride = c.v.token_stride = 0;
  };
  EXPECT_EQ(append(endless), "append: expected a stream of at most 2^62 tokens, got 5 and 9223372036854775807 more");
  const auto most = [&](index_t tokens) {
    return [=](call& c) {
      endless(c);
      c.k.tokens = c.v.tokens = tokens;
    };
  };
  EXPECT_EQ(append(most((index_t{1} << 62) - 5)), "accepted");
  EXPECT_EQ(append(most((index_t{1} << 62) - 4)),
            "append: expected a stream of at most 2^62 tokens, got 5 and 4611686018427387900 more");
  EXPECT_EQ(append(nothing, unlimited - 11),
            "append: expected positions below 2^63, got first_position = 9223372036854775796 and 12 tokens");
}

TEST(Checks, TensorsThatDoNotFitTheCache) {
  const auto one_kv_head = [](call& c) { c.k.heads = c.v.heads = 1; };
  EXPECT_EQ(stream(one_kv_head), "attend: expected k.heads == cache.num_kv_heads, got 1 and 2");
  EXPECT_EQ(append(one_kv_head), "append: expected k.heads == cache.num_kv_heads, got 1 and 2");
  const auto shorter_keys = [](call& c) { c.q.dim = c.k.dim = 7; };
  EXPECT_EQ(stream(shorter_keys), "attend: expected k.dim == cache.head_dim, got 7 and 8");
  EXPECT_EQ(append(shorter_keys), "append: expected k.dim == cache.head_dim, got 7 and 8");
  const auto shorter_values = [](call& c) { c.v.dim = c.out.dim = 5; };
  EXPECT_EQ(stream(shorter_values), "attend: expected v.dim == cache.v_head_dim, got 5 and 6");
  EXPECT_EQ(append(shorter_values), "append: expected v.dim == cache.v_head_dim, got 5 and 6");

  const auto shorter_queries = [](call& c) { c.q.dim = 7; };
  EXPECT_EQ(stream(shorter_queries), "attend: expected q.dim == cache.head_dim, got 7 and 8");
  EXPECT_EQ(newest(shorter_queries), "attend: expected q.dim == cache.head_dim, got 7 and 8");
  const auto shorter_outputs = [](call& c) { c.out.dim = 5; };
  EXPECT_EQ(stream(shorter_outputs), "attend: expected out.dim == cache.v_head_dim, got 5 and 6");
  EXPECT_EQ(newest(shorter_outputs), "attend: expected out.dim == cache.v_head_dim, got 5 and 6");
}

TEST(Checks, QueriesThatTheCacheNoLongerKnows) {
  const auto queries = [](index_t count) { return [=](call& c) { c.q.tokens = c.out.tokens = count; }; };
  EXPECT_EQ(newest(queries(6)), "attend: expected q.tokens <= cache.num_tokens(), got 6 and 5");

  cache_type cache = new_cache();  // max_append 10
  const call past;
  std::vector<float> memory(11 * heads * (dim + v_dim));
  const auto attend = [&](index_t count) {
    return refusal([&] {
      la::attend(la::token_major(memory.data(), count, heads, dim), cache,
                 la::token_major(memory.data() + 11 * heads * dim, count, heads, v_dim));
    });
  };
  // 12 tokens, of which the ring has lost none; and more.
  la::append(past.k, past.v, cache);
  la::append(past.k.slice(0, 5), past.v.slice(0, 5), cache);
  for (const char* const rewindable : {"12", "10"}) {
    EXPECT_EQ(attend(10), "accepted");
    EXPECT_EQ(attend(11), std::string("attend: expected q.tokens <= 10, got 11 (cache.max_append() = 10, "
                                      "cache.num_rewindable() = ") +
                              rewindable + ")");
    la::append(past.k, past.v, cache);
  }
}
