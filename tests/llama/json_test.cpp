#include "json.hpp"

#include <gtest/gtest.h>

#include <string>

#include "files.hpp"

namespace {

using llama::json_reader;
using llama::parse_object;
using tiny::contains;
using tiny::json;

std::string said_of(const std::string& text) {
  return tiny::refusal([&] { parse_object(text, "c"); });
}

std::string nested(int levels, const std::string& within = "") {
  std::string text = "{\"a\":";
  for (int i = 1; i < levels; ++i) text += '[';
  text += within;
  for (int i = 1; i < levels; ++i) text += ']';
  return text + "}";
}

TEST(Json, ObjectsAreParsed) {
  EXPECT_EQ(parse_object("{\"a\": [1, 2.5, null]}", "c"), (json{{"a", {1, 2.5, nullptr}}}));
  EXPECT_EQ(parse_object(" {} ", "c"), json::object());
}

TEST(Json, AMemberThatIsThereTwiceIsRefused) {
  EXPECT_EQ(said_of("{\"a\": 1, \"b\": {\"a\": 2}, \"a\": 1}"), "c: \"a\" is there twice");
  EXPECT_EQ(said_of("{\"a\": {\"b\": 1}, \"b\": {\"b\": 1}}"), "accepted");
}

TEST(Json, AnythingElseIsRefused) {
  for (const char* text : {"[]", "1", "null", "\"a\"", "true"}) EXPECT_EQ(said_of(text), "c: expected a JSON object");
  for (const char* text : {"", " ", "{", "{]", "{\"a\":01}", "{'a':1}", "{\"a\":1,}", "{\"a\":1} {}", "{\"a\":NaN}",
                           "{\"a\":1e999}", "{\"a\":-1e999}", "{\"a\":\"\xc3\"}", "{\"\n\":1}"})
    EXPECT_PRED2(contains, said_of(text), "c: not JSON: ") << text;
  EXPECT_PRED2(contains, said_of(std::string("{\"a\":\0 1}", 9)), "not JSON");
}

TEST(Json, DepthIsBounded) {
  EXPECT_EQ(said_of(nested(16, "1")), "accepted");
  EXPECT_PRED2(contains, said_of(nested(17, "1")), "nested deeper than 16 levels");
  EXPECT_PRED2(contains, said_of(nested(100000)), "nested deeper than 16 levels");
  EXPECT_PRED2(contains, said_of(nested(100000).substr(0, 100000)), "nested deeper than 16 levels");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_PRED2(contains, said_of(objects), "nested deeper than 16 levels");
}

TEST(Json, Integers) {
  const json object = json::parse(R"({"a": 7, "min": -9223372036854775808, "max": 9223372036854775807,
      "two_to_63": 9223372036854775808, "all": 18446744073709551615, "more": 18446744073709551616,
      "half": 7.5, "float": 7.0, "text": "7", "flag": true, "list": [7], "null": null})");
  const json_reader reader(object, "c");
  const auto said = [&](const char* key, std::int64_t least = INT64_MIN, std::int64_t most = INT64_MAX) {
    return tiny::refusal([&] { reader.integer(key, least, most); });
  };
  EXPECT_EQ(reader.integer("a", 7, 7), 7);
  EXPECT_EQ(reader.integer("a", 7, 7, 1), 7);
  EXPECT_EQ(reader.integer("min", INT64_MIN, 0), INT64_MIN);
  EXPECT_EQ(reader.integer("max", 0, INT64_MAX), INT64_MAX);
  EXPECT_EQ(said("a", 8, 9), "c: expected \"a\" to be from 8 to 9, got 7");
  EXPECT_EQ(said("a", 5, 6), "c: expected \"a\" to be from 5 to 6, got 7");
  EXPECT_PRED2(contains, said("min", 0), "got -9223372036854775808");
  for (const char* key : {"two_to_63", "all"})
    EXPECT_PRED2(contains, said(key, -2, 100), "got 9223372036854775807") << key;  // neither -2^63 nor -1
  for (const char* key : {"more", "half", "float", "text", "flag", "list"})
    EXPECT_EQ(said(key), "c: expected \"" + std::string(key) + "\" to be an integer");
}

TEST(Json, Numbers) {
  const json object = {{"a", -7}, {"b", 2.5}, {"nan", NAN}, {"inf", INFINITY}, {"text", "7"}, {"flag", true}};
  const json_reader reader(object, "c");
  EXPECT_EQ(reader.number("a"), -7);
  EXPECT_EQ(reader.number("b", 1), 2.5);
  EXPECT_EQ(reader.number("absent", 1), 1);
  EXPECT_EQ(reader.non_negative("b", 1), 2.5);
  EXPECT_EQ(reader.non_negative("absent", 0), 0);
  EXPECT_EQ(tiny::refusal([&] { reader.non_negative("a", 1); }), "c: expected \"a\" to be 0 or more, got -7");
  for (const char* key : {"nan", "inf", "text", "flag"}) {
    EXPECT_PRED2(contains, tiny::refusal([&] { reader.number(key); }), "to be a finite number") << key;
    EXPECT_PRED2(contains, tiny::refusal([&] { reader.number(key, 1); }), "to be a finite number") << key;
  }
}

TEST(Json, TextsFlagsAndObjects) {
  const json object = {{"text", "x"}, {"flag", true}, {"object", {{"number", "one"}}}};
  const json_reader reader(object, "c");
  EXPECT_EQ(reader.text("text", "y"), "x");
  EXPECT_EQ(reader.text("absent", "y"), "y");
  EXPECT_TRUE(reader.flag("flag", false));
  EXPECT_TRUE(reader.flag("absent", true));
  EXPECT_EQ(reader.object("object").text("number", ""), "one");
  EXPECT_FALSE(reader.object("absent").has("number"));
  EXPECT_EQ(tiny::refusal([&] { reader.text("flag", ""); }), "c: expected \"flag\" to be a string");
  EXPECT_EQ(tiny::refusal([&] { reader.flag("text", true); }), "c: expected \"text\" to be true or false");
  EXPECT_EQ(tiny::refusal([&] { reader.object("text"); }), "c: expected \"text\" to be an object");
  EXPECT_PRED2(contains, tiny::refusal([&] { reader.object("object").number("number"); }), "c, object: expected");
}

TEST(Json, NullIsAbsent) {
  const json object = {{"a", nullptr}};
  const json_reader reader(object, "c");
  EXPECT_FALSE(reader.has("a"));
  EXPECT_EQ(reader.integer("a", 0, 9, 5), 5);
  EXPECT_EQ(reader.number("a", 5), 5);
  EXPECT_EQ(reader.text("a", "y"), "y");
  EXPECT_TRUE(reader.flag("a", true));
  EXPECT_FALSE(reader.object("a").has("b"));
  for (const char* key : {"a", "absent"}) {
    EXPECT_PRED2(contains, tiny::refusal([&] { reader.integer(key, 0, 9); }), "is missing");
    EXPECT_PRED2(contains, tiny::refusal([&] { reader.number(key); }), "is missing");
  }
}

TEST(Json, SettingsThatAreExpected) {
  const json object = {{"a", 4}, {"b", "x"}, {"c", nullptr}, {"d", 0.5}, {"e", std::string(10000, 'x')}};
  const json_reader reader(object, "c");
  reader.expect("a", 4);
  reader.expect("b", "x");
  reader.expect("c", true);
  reader.expect("absent", true);
  EXPECT_EQ(tiny::refusal([&] { reader.expect("a", 5); }), "c: \"a\" is 4, and only 5 is supported");
  EXPECT_EQ(tiny::refusal([&] { reader.expect("b", "y"); }), "c: \"b\" is \"x\", and only \"y\" is supported");
  EXPECT_PRED2(contains, tiny::refusal([&] { reader.expect("d", nullptr); }), "is 0.5, and only null");
  EXPECT_PRED2(contains, tiny::refusal([&] { reader.expect("e", 1); }), "\"e\" is \"xxx");
}

}  // namespace
