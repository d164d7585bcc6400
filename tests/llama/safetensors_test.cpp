#include "safetensors.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "files.hpp"

namespace {

using llama::parse_safetensors;
using tiny::contains;
using tiny::json;

std::string said_of(const std::string& file) {
  return tiny::refusal([&] { parse_safetensors(file, "x.safetensors"); });
}

// A file of one tensor "t" with eight bytes of data, its entry changed.
std::string said_of_entry(const json& changes) {
  json entry = {{"dtype", "F32"}, {"shape", {2}}, {"data_offsets", {0, 8}}};
  for (const auto& [key, value] : changes.items()) entry[key] = value;
  return said_of(tiny::with_length(json{{"t", entry}}.dump(), "12345678"));
}

std::string entry(const std::string& type, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":\"" + type + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + offsets + "]}";
}

TEST(Safetensors, TensorsAreWhereTheHeaderSays) {
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" + entry("F32", "2", "4,12") +
                             ",\"b\":" + entry("BF16", "1,2", "0,4") + ",\"c\":" + entry("F16", "", "13,15") + "}  ";
  const std::string file = tiny::with_length(header, "0123456789abcdef");
  const auto tensors = parse_safetensors(file, "x");
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors.at("a").bytes, "456789ab");
  EXPECT_EQ(tensors.at("a").type, "F32");
  EXPECT_EQ(tensors.at("b").bytes, "0123");
  EXPECT_EQ(tensors.at("b").shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(tensors.at("c").bytes, "de");
  EXPECT_TRUE(tensors.at("c").shape.empty());
  EXPECT_EQ(tensors.at("c").bytes.data(), file.data() + 8 + header.size() + 13);
}

TEST(Safetensors, AllElementTypesAreReadAndTheirSizesAreKnown) {
  const std::vector<std::pair<std::string, int>> types = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  for (const auto& [type, bytes] : types) {
    EXPECT_EQ(said_of_entry({{"dtype", type}, {"shape", {8 / bytes}}}), "accepted") << type;
    EXPECT_PRED2(contains, said_of_entry({{"dtype", type}, {"shape", {8 / bytes + 1}}}), "data_offsets 8") << type;
  }
}

TEST(Safetensors, FilesThatEndTooSoon) {
  EXPECT_EQ(said_of(""), "x.safetensors: expected a header, got 0 bytes");
  EXPECT_PRED2(contains, said_of("1234567"), "got 7 bytes");
  EXPECT_PRED2(contains, said_of(tiny::length_field(0)), "not JSON");
  const std::string whole = tiny::safetensors({{"t", {3}, {1, 2, 3}}, {"u", {1}, {4}}});
  EXPECT_EQ(said_of(whole), "accepted");
  for (std::size_t size = 0; size < whole.size(); ++size) EXPECT_NE(said_of(whole.substr(0, size)), "accepted") << size;
  EXPECT_PRED2(contains, said_of(whole.substr(0, whole.size() - 1)), "not within the file's 15 bytes of data");
}

TEST(Safetensors, HeaderLengthBeyondTheFile) {
  for (const std::uint64_t length : {3ull, 1ull << 32, 1ull << 63, ~0ull, ~0ull - 7})
    EXPECT_PRED2(contains, said_of(tiny::length_field(length) + "{}"),
                 "said to have " + std::to_string(length) + " bytes, and 2 follow");
  EXPECT_EQ(said_of(tiny::length_field(2) + "{}"), "accepted");
}

TEST(Safetensors, HeaderLongerThanTheFormatHasIt) {
  const std::string file = tiny::with_length("{" + std::string(100'000'000 - 1, ' ') + "}");
  EXPECT_PRED2(contains, said_of(file), "said to have 100000001 bytes");
}

TEST(Safetensors, HeadersThatAreNotWhatTheyHaveToBe) {
  EXPECT_PRED2(contains, said_of(tiny::with_length("{\"t\":")), "not JSON");
  EXPECT_PRED2(contains, said_of(tiny::with_length("[]")), "expected a JSON object");
  EXPECT_PRED2(contains, said_of(tiny::with_length("{\"t\":\"\xff\"}")), "not JSON");
  EXPECT_PRED2(contains, said_of(tiny::with_length(std::string(100000, '['))), "nested deeper");
  EXPECT_PRED2(contains, said_of(tiny::with_length("{\"t\":1}")), "tensor \"t\": expected a dtype");
}

TEST(Safetensors, EntriesThatAreNotComplete) {
  for (const char* key : {"dtype", "shape", "data_offsets"})
    for (const json& value : {json(nullptr), json(1), json{{"0", 0}}})
      EXPECT_PRED2(contains, said_of_entry({{key, value}}), "expected a dtype, a shape and two data_offsets") << key;
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {0}}}), "two data_offsets");
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {0, 4, 8}}}), "two data_offsets");
  EXPECT_PRED2(contains, said_of_entry({{"dtype", "F33"}}), "unknown dtype \"F33\"");
  EXPECT_PRED2(contains, said_of_entry({{"dtype", ""}}), "unknown dtype");
}

TEST(Safetensors, SizesAndOffsetsAreIntegersOf63Bits) {
  const std::string expected = "integers from 0 to 2^63 - 1";
  const std::uint64_t two_to_63 = 1ull << 63;
  for (const json& number : {json(-1), json(2.0), json(1e300), json("2"), json(nullptr), json(true), json(two_to_63),
                             json(~0ull), json::array({2})}) {
    EXPECT_PRED2(contains, said_of_entry({{"shape", json::array({number})}}), expected) << number;
    EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {number, 8}}}), expected) << number;
    EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {0, number}}}), expected) << number;
  }
}

TEST(Safetensors, ShapesThatOverflow) {
  const std::int64_t large = std::int64_t{1} << 62;
  for (const json& shape : {json{large, 2}, json{large}, json{INT64_MAX, INT64_MAX}, json{1 << 30, 1 << 30, 1 << 30}})
    EXPECT_PRED2(contains, said_of_entry({{"shape", shape}}), "more than 2^63 bytes") << shape;
  // 2^64 + 8 bytes would be 8 if they wrapped around.
  EXPECT_PRED2(contains, said_of_entry({{"dtype", "U8"}, {"shape", {8, (std::int64_t{1} << 61) + 1}}}), "2^63");
}

TEST(Safetensors, OffsetsOutsideTheData) {
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {8, 0}}}), "bytes 8 to 0 are not within");
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {1, 9}}}), "bytes 1 to 9 are not within the file's 8 bytes");
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {INT64_MAX - 8, INT64_MAX}}}), "not within");
  EXPECT_PRED2(contains, said_of_entry({{"data_offsets", {0, 4}}}), "the shape has 8 bytes, data_offsets 4");
  EXPECT_PRED2(contains, said_of_entry({{"shape", {1}}}), "the shape has 4 bytes, data_offsets 8");
}

std::string said_of_pair(const std::string& a, const std::string& b) {
  return said_of(tiny::with_length("{\"a\":" + a + ",\"b\":" + b + "}", "12345678"));
}

TEST(Safetensors, TensorsThatOverlap) {
  const std::string overlap = "x.safetensors: two tensors overlap";
  EXPECT_EQ(said_of_pair(entry("U8", "4", "0,4"), entry("U8", "4", "4,8")), "accepted");
  EXPECT_EQ(said_of_pair(entry("U8", "4", "4,8"), entry("U8", "4", "0,4")), "accepted");
  EXPECT_EQ(said_of_pair(entry("U8", "4", "0,4"), entry("U8", "4", "3,7")), overlap);
  EXPECT_EQ(said_of_pair(entry("U8", "4", "3,7"), entry("U8", "4", "0,4")), overlap);
  EXPECT_EQ(said_of_pair(entry("U8", "8", "0,8"), entry("U8", "1", "2,3")), overlap);
  EXPECT_EQ(said_of_pair(entry("F32", "2", "0,8"), entry("F32", "2", "0,8")), overlap);
}

// An empty tensor has its neighbour's offset, whichever of them has the name that comes first.
TEST(Safetensors, EmptyTensorsOverlapNothing) {
  EXPECT_EQ(said_of_pair(entry("F32", "0", "4,4"), entry("F32", "1", "4,8")), "accepted");
  EXPECT_EQ(said_of_pair(entry("F32", "1", "4,8"), entry("F32", "0", "4,4")), "accepted");
  EXPECT_EQ(said_of_pair(entry("F32", "1", "4,8"), entry("F32", "3,0", "8,8")), "accepted");
}

TEST(Safetensors, WhatAFileSaysIsOneLine) {
  const std::string message = said_of(tiny::with_length(json{{"a\nb\x1b[2J" + std::string(10000, 'x'), 1}}.dump()));
  EXPECT_PRED2(contains, message, "a?b?[2J");
  EXPECT_LT(message.size(), 512u);
}

}  // namespace
