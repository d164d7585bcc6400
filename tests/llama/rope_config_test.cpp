// Rotations of configs against those that the library is asked for directly.
#include "rope_config.hpp"

#include <gtest/gtest.h>

#include <string>

#include "files.hpp"

namespace {

namespace la = lambda_attention;
using tiny::contains;
using tiny::json;

constexpr std::int64_t head_dim = 32, length = 4096;

la::rope rope_of(const json& config) { return llama::rope_of({config, "config.json"}, head_dim, length); }

std::string said_of(const json& config) {
  return tiny::refusal([&] { rope_of(config); });
}

// As files have had it: in "rope_scaling" beside rope_theta, the type once "type" and then "rope_type"; in newer ones
// all is in "rope_parameters".
std::vector<json> spellings(const std::string& type, const json& numbers, double theta) {
  json old = numbers, middle = numbers, recent = numbers;
  old["type"] = type;
  middle["rope_type"] = type;
  recent["rope_type"] = type;
  recent["rope_theta"] = theta;
  return {{{"rope_theta", theta}, {"rope_scaling", old}},
          {{"rope_theta", theta}, {"rope_scaling", middle}},
          {{"rope_parameters", recent}},
          {{"rope_theta", 7.0}, {"rope_scaling", {{"type", "other"}}}, {"rope_parameters", recent}}};
}

void expect_same(const la::rope& a, const la::rope& b) {
  ASSERT_EQ(a.head_dim(), b.head_dim());
  ASSERT_EQ(a.num_pairs(), b.num_pairs());
  EXPECT_EQ(a.factor(), b.factor());
  EXPECT_EQ(a.layout(), b.layout());
  for (la::index_t p = 0; p < a.num_pairs(); ++p) EXPECT_EQ(a.inverse_frequency(p), b.inverse_frequency(p)) << p;
}

void expect_in_each_spelling(const std::string& type, const json& numbers, const la::rope& expected) {
  for (const json& config : spellings(type, numbers, 50000)) {
    SCOPED_TRACE(config.dump());
    expect_same(rope_of(config), expected);
  }
}

TEST(RopeConfig, Default) {
  expect_same(rope_of(json::object()), la::rope(head_dim, 10000));
  expect_same(rope_of({{"rope_theta", 500000}}), la::rope(head_dim, 500000));
  expect_same(rope_of({{"rope_theta", 5e5}, {"rope_scaling", nullptr}}), la::rope(head_dim, 500000));
  expect_in_each_spelling("default", json::object(), la::rope(head_dim, 50000));
}

TEST(RopeConfig, Linear) {
  expect_in_each_spelling("linear", {{"factor", 4}}, la::scaled_rope(head_dim, 50000, la::linear_scaling{4}));
}

TEST(RopeConfig, Llama3) {
  const json numbers = {{"factor", 32.0}, {"low_freq_factor", 1.5}, {"high_freq_factor", 3.0}};
  json with_length = numbers;
  with_length["original_max_position_embeddings"] = 100;
  expect_in_each_spelling("llama3", with_length, la::scaled_rope(head_dim, 50000, la::llama3_scaling{32, 1.5, 3, 100}));
  expect_in_each_spelling("llama3", numbers, la::scaled_rope(head_dim, 50000, la::llama3_scaling{32, 1.5, 3, length}));
}

TEST(RopeConfig, Yarn) {
  la::yarn_scaling yarn;
  yarn.factor = 4;
  yarn.original_max_position_embeddings = length;
  expect_in_each_spelling("yarn", {{"factor", 4.0}}, la::scaled_rope(head_dim, 50000, yarn));

  yarn.original_max_position_embeddings = 100;
  yarn.beta_fast = 20;
  yarn.beta_slow = 2;
  yarn.truncate = false;
  json numbers = {{"factor", 4.0},     {"original_max_position_embeddings", 100},
                  {"beta_fast", 20},   {"beta_slow", 2},
                  {"truncate", false}, {"attention_factor", nullptr}};
  expect_in_each_spelling("yarn", numbers, la::scaled_rope(head_dim, 50000, yarn));

  numbers["mscale"] = yarn.mscale = 0.7;
  numbers["mscale_all_dim"] = yarn.mscale_all_dim = 0.9;
  expect_in_each_spelling("yarn", numbers, la::scaled_rope(head_dim, 50000, yarn));

  numbers["attention_factor"] = yarn.attention_factor = 1.25;
  expect_in_each_spelling("yarn", numbers, la::scaled_rope(head_dim, 50000, yarn));
  EXPECT_EQ(la::scaled_rope(head_dim, 50000, yarn).factor(), 1.25);
}

TEST(RopeConfig, PartsThatTurn) {
  la::rope_options options;
  options.rotary_dim = 8;
  expect_same(rope_of({{"partial_rotary_factor", 0.25}}), la::rope(head_dim, 10000, options));
  expect_in_each_spelling("linear", {{"factor", 2}, {"partial_rotary_factor", 0.25}},
                          la::scaled_rope(head_dim, 50000, la::linear_scaling{2}, options));
  for (const double share : {0.0, -0.5, 1.5})
    EXPECT_PRED2(contains, said_of({{"partial_rotary_factor", share}}), "expected 0 < \"partial_rotary_factor\" <= 1");
  EXPECT_PRED2(contains, said_of({{"partial_rotary_factor", 0.01}}), "leaves nothing to turn");
  EXPECT_PRED2(contains, said_of({{"partial_rotary_factor", 0.1}}), "expected an even rotary_dim");
}

TEST(RopeConfig, TypesThatAreNotSupported) {
  for (const std::string type : {"dynamic", "longrope", "su", "", "Linear"})
    for (const json& config : spellings(type, {{"factor", 2}}, 10000))
      EXPECT_PRED2(contains, said_of(config),
                   "rope_type \"" + type + "\" is not supported: expected default, linear, llama3 or yarn");
  EXPECT_PRED2(contains, said_of({{"rope_scaling", {{"type", 2}}}}), "expected \"type\" to be a string");
  EXPECT_PRED2(contains, said_of({{"rope_scaling", "linear"}}), "expected \"rope_scaling\" to be an object");
  EXPECT_PRED2(contains, said_of({{"rope_parameters", {1}}}), "expected \"rope_parameters\" to be an object");
}

TEST(RopeConfig, NumbersThatARotationCannotHave) {
  for (const json& theta : {json(0), json(-1), json("x"), json(INFINITY)})
    EXPECT_PRED2(contains, said_of({{"rope_theta", theta}}), "config.json") << theta;
  EXPECT_PRED2(contains, said_of({{"rope_theta", 0}}), "finite theta > 0, got 0");
  EXPECT_PRED2(contains, said_of({{"rope_theta", 1}, {"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}),
               "finite theta > 1");

  const json llama3 = {{"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}}, yarn = {{"factor", 4}};
  const auto said = [](const std::string& type, json numbers, const char* key, const json& number) {
    numbers[key] = number;
    return said_of(spellings(type, numbers, 10000).back());
  };
  for (const auto& [type, numbers] : {std::pair{"linear", json::object()}, {"llama3", llama3}, {"yarn", yarn}}) {
    EXPECT_PRED2(contains, said(type, numbers, "factor", nullptr), "\"factor\" is missing") << type;
    EXPECT_PRED2(contains, said(type, numbers, "factor", "2"), "\"factor\" to be a finite number") << type;
    EXPECT_PRED2(contains, said(type, numbers, "factor", 0.5), "finite factor >= 1, got 0.5") << type;
  }
  for (const char* key : {"low_freq_factor", "high_freq_factor"}) {
    EXPECT_PRED2(contains, said("llama3", llama3, key, nullptr), "is missing");
    EXPECT_PRED2(contains, said("llama3", llama3, key, 0), "0 < low_freq_factor < high_freq_factor");
  }
  for (const char* type : {"llama3", "yarn"})
    EXPECT_PRED2(contains, said(type, llama3, "original_max_position_embeddings", 0), "_embeddings >= 1, got 0");
  EXPECT_PRED2(contains, said("yarn", yarn, "beta_fast", 1), "0 < beta_slow < beta_fast");
  EXPECT_PRED2(contains, said("yarn", yarn, "beta_slow", -1), "0 < beta_slow < beta_fast");
  EXPECT_PRED2(contains, said("yarn", yarn, "attention_factor", -1), "0 < attention factor <= 1e30, got -1");
  EXPECT_PRED2(contains, said("yarn", yarn, "truncate", 1), "\"truncate\" to be true or false");
}

}  // namespace
