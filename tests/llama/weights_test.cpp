#include "weights.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "files.hpp"

namespace {

using llama::element;
using llama::weights;
using tiny::contains;
using tiny::json;

const std::vector<float> numbers = {1, -2, 0.5f, 96};

weights of(const std::string& file) {
  weights source;
  source.add(file, "x");
  return source;
}

std::string said_of(const tiny::temporary_folder& folder) {
  return tiny::refusal([&] { weights{folder.path()}; });
}

TEST(Weights, VectorsOfEachElementAtAnyByte) {
  for (const element type : {element::f32, element::f16, element::bf16})
    for (std::size_t gap = 0; gap < 4; ++gap) {
      const std::string file = tiny::safetensors({{"v", {4}, numbers}}, type, gap);
      const Eigen::RowVectorXf v = of(file).vector("v", 4);
      EXPECT_EQ(std::vector<float>(v.data(), v.data() + v.size()), numbers);
    }
}

TEST(Weights, TensorsThatAreNotAsExpected) {
  const std::string file = tiny::safetensors({{"v", {4}, numbers}, {"m", {2, 2}, numbers}});
  const weights source = of(file);
  EXPECT_EQ(source.find("m", {2, 2}).bytes, tiny::bytes_of(numbers, element::f32));
  EXPECT_EQ(tiny::refusal([&] { source.find("w", {4}); }), "tensor \"w\" is missing");
  EXPECT_EQ(tiny::refusal([&] { source.vector("w", 4); }), "tensor \"w\" is missing");
  EXPECT_EQ(tiny::refusal([&] { source.vector("v", 5); }), "tensor \"v\": expected the shape [5], got [4]");
  EXPECT_EQ(tiny::refusal([&] { source.vector("m", 4); }), "tensor \"m\": expected the shape [4], got [2, 2]");
  EXPECT_EQ(tiny::refusal([&] { source.find("m", {4, 1}); }), "tensor \"m\": expected the shape [4, 1], got [2, 2]");
  EXPECT_EQ(tiny::refusal([&] { source.find("v", {}); }), "tensor \"v\": expected the shape [], got [4]");
}

TEST(Weights, ElementsThatThisProgramDoesNotComputeWith) {
  for (const std::string type : {"F64", "I64", "U64"}) {
    const std::string header = R"({"t":{"dtype":")" + type + R"(","shape":[1],"data_offsets":[0,8]}})";
    const std::string file = tiny::with_length(header, "12345678");
    EXPECT_EQ(tiny::refusal([&] { of(file).find("t", {1}); }), "tensor \"t\": expected F32, F16 or BF16, got " + type);
    EXPECT_PRED2(contains, tiny::refusal([&] { of(file).vector("t", 1); }), "expected F32, F16 or BF16");
  }
}

TEST(Weights, OneFile) {
  const tiny::temporary_folder folder;
  EXPECT_PRED2(contains, said_of(folder), "model.safetensors: No such file");
  folder.add("model.safetensors", "");
  EXPECT_PRED2(contains, said_of(folder), "model.safetensors: expected a header, got 0 bytes");
  folder.add("model.safetensors", tiny::safetensors({{"v", {4}, numbers}}));
  EXPECT_EQ(weights(folder.path()).vector("v", 4)[3], 96);
}

TEST(Weights, Shards) {
  const tiny::temporary_folder folder;
  const json map = {{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"c", "1.safetensors"}};
  folder.add("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  folder.add("1.safetensors", tiny::safetensors({{"a", {1}, {1}}, {"c", {1}, {3}}}));
  EXPECT_PRED2(contains, said_of(folder), "2.safetensors: No such file");

  folder.add("2.safetensors", tiny::safetensors({{"b", {1}, {2}}}));
  const weights source(folder.path());
  EXPECT_EQ(source.vector("a", 1)[0] + source.vector("b", 1)[0] + source.vector("c", 1)[0], 6);

  folder.add("2.safetensors", tiny::safetensors({{"b", {1}, {2}}, {"c", {1}, {3}}}));
  EXPECT_PRED2(contains, said_of(folder), "2.safetensors: tensor \"c\" is in another file as well");
}

TEST(Weights, IndexesThatAreNotWhatTheyHaveToBe) {
  const tiny::temporary_folder folder;
  const auto said = [&](const std::string& index) {
    folder.add("model.safetensors.index.json", index);
    return said_of(folder);
  };
  folder.add("x", tiny::safetensors({{"v", {4}, numbers}}));
  EXPECT_EQ(said(R"({"weight_map": {"v": "x"}})"), "accepted");
  EXPECT_EQ(said(R"({"weight_map": {}})"), "accepted");
  EXPECT_PRED2(contains, said(""), "index.json: not JSON");
  EXPECT_PRED2(contains, said("[]"), "expected a JSON object");
  for (const char* index : {"{}", R"({"weight_map": null})", R"({"weight_map": ["x"]})", R"({"weight_map": "x"})"})
    EXPECT_PRED2(contains, said(index), "index.json: expected an object \"weight_map\"") << index;
  const std::string outside = folder.path() + "/x";
  for (const json& name : {json("../x"), json(outside), json("/etc/passwd"), json("a/../x"), json("./x"), json("."),
                           json(".."), json(".x"), json(""), json(1), json(nullptr), json::array({"x"})})
    EXPECT_PRED2(contains, said(json{{"weight_map", {{"v", name}}}}.dump()), "expected names of files in the folder")
        << name;
}

}  // namespace
