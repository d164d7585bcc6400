// Files for tests of what reads them: safetensors in memory, folders that go away, and what a reader says that refuses
// them.
#pragma once

#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "../refusal.hpp"
#include "error.hpp"
#include "weights.hpp"

namespace tiny {

using nlohmann::json;

/// What a reader says that refuses; "accepted" when it does not.
template <class Call>
std::string refusal(Call&& call) {
  return ::refusal<llama::error>(call);
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> numbers;
};

template <class Element>
std::string bytes_as(const std::vector<float>& numbers) {
  std::string bytes;
  for (const float number : numbers) {
    const Element element(number);
    char raw[sizeof element];
    std::memcpy(raw, static_cast<const void*>(&element), sizeof element);
    bytes.append(raw, sizeof raw);
  }
  return bytes;
}

inline std::string bytes_of(const std::vector<float>& numbers, llama::element type) {
  return type == llama::element::f32   ? bytes_as<float>(numbers)
         : type == llama::element::f16 ? bytes_as<Eigen::half>(numbers)
                                       : bytes_as<Eigen::bfloat16>(numbers);
}

/// What a file begins with: the length of its header.
inline std::string length_field(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> 8 * i & 0xff);
  return bytes;
}

inline std::string with_length(const std::string& header, const std::string& data = {}) {
  return length_field(header.size()) + header + data;
}

/// A safetensors file, `gap` bytes of it unused before each tensor: one byte puts tensors where no element may begin.
inline std::string safetensors(const std::vector<tensor>& tensors, llama::element type = llama::element::f32,
                               std::size_t gap = 0) {
  json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const tensor& each : tensors) {
    data.append(gap, '\x7f');
    const std::size_t begin = data.size();
    data += bytes_of(each.numbers, type);
    const char* name = type == llama::element::f32 ? "F32" : type == llama::element::f16 ? "F16" : "BF16";
    header[each.name] = {{"dtype", name}, {"shape", each.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return with_length(text, data);
}

/// A folder that goes away with what is in it.
class temporary_folder {
 public:
  temporary_folder() : path_((std::filesystem::temp_directory_path() / "llama_test_XXXXXX").string()) {
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no temporary folder");
  }
  ~temporary_folder() { std::filesystem::remove_all(path_); }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;

  const std::string& path() const { return path_; }

  /// Writes a file, and returns its path.
  std::string add(const std::string& name, std::string_view bytes) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::string path_;
};

}  // namespace tiny
