// The weights of a model's folder, of one safetensors file or of several, as memory-mapped tensors of checked shapes.
#pragma once

#include "error.hpp"
#include "json.hpp"
#include "mapped_file.hpp"
#include "safetensors.hpp"

#include <Eigen/Core>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

enum class element { f32, f16, bf16 };

class weights {
 public:
  weights() = default;

  /// Those of a folder. Errors: no weights in it; an index or a file that is not what it has to be.
  explicit weights(const std::string& folder) {
    const std::string index = folder + "/model.safetensors.index.json";
    if (!std::filesystem::exists(index)) {
      add_file(folder + "/model.safetensors");
      return;
    }
    const mapped_file file(index);
    for (const std::string& shard : shards_in(parse_object(file.bytes(), index), index)) add_file(folder + "/" + shard);
  }

  /// Adds the tensors of a file's bytes, which are to outlive this; `name` stands for the file in errors.
  void add(std::string_view file, const std::string& name) {
    for (auto& [tensor, stored] : parse_safetensors(file, name))
      if (!tensors_.emplace(tensor, std::move(stored)).second)
        fail("%s: tensor \"%s\" is in another file as well", name.c_str(), tensor.c_str());
  }

  /// Errors: no tensor of that name, another shape, an element type that is not F32, F16 or BF16.
  const stored_tensor& find(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("tensor \"%s\" is missing", name.c_str());
    if (found->second.shape != shape)
      fail("tensor \"%s\": expected the shape %s, got %s", name.c_str(), printed(shape).c_str(),
           printed(found->second.shape).c_str());
    element_of(found->second, name);
    return found->second;
  }

  static element element_of(const stored_tensor& tensor, const std::string& name) {
    if (tensor.type == "F32") return element::f32;
    if (tensor.type == "F16") return element::f16;
    if (tensor.type == "BF16") return element::bf16;
    fail("tensor \"%s\": expected F32, F16 or BF16, got %s", name.c_str(), tensor.type.c_str());
  }

  /// A small tensor, copied and converted.
  Eigen::RowVectorXf vector(const std::string& name, std::int64_t size) const {
    const stored_tensor& tensor = find(name, {size});
    switch (element_of(tensor, name)) {
      case element::f32:
        return copied<float>(tensor);
      case element::f16:
        return copied<Eigen::half>(tensor);
      default:
        return copied<Eigen::bfloat16>(tensor);
    }
  }

 private:
  void add_file(const std::string& path) {
    files_.emplace_back(path);
    add(files_.back().bytes(), path);
  }

  static std::set<std::string> shards_in(const json& index, const std::string& name) {
    if (!index.contains("weight_map") || !index["weight_map"].is_object())
      fail("%s: expected an object \"weight_map\"", name.c_str());
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : index["weight_map"].items()) {
      if (!shard.is_string() || !is_plain_name(shard)) fail("%s: expected names of files in the folder", name.c_str());
      shards.insert(shard.get<std::string>());
    }
    return shards;
  }

  static bool is_plain_name(const std::string& name) {
    return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos;
  }

  static std::string printed(const std::vector<std::int64_t>& shape) {
    std::string text;
    for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "[" + text + "]";
  }

  template <class Element>
  static Eigen::RowVectorXf copied(const stored_tensor& tensor) {
    Eigen::Matrix<Element, 1, Eigen::Dynamic> elements(tensor.shape[0]);
    std::memcpy(static_cast<void*>(elements.data()), tensor.bytes.data(), tensor.bytes.size());
    return elements.template cast<float>();
  }

  std::vector<mapped_file> files_;
  std::map<std::string, stored_tensor> tensors_;
};

}  // namespace llama
