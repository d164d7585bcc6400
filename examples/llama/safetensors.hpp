// Tensors of a safetensors file, where they lie in its bytes.
//
//     8 bytes       header length, little-endian
//     header        {"name": {"dtype": "BF16", "shape": [256, 192], "data_offsets": [begin, end]}, ...}
//     data          the tensors' elements, little-endian, row-major; offsets count from here
#pragma once

#include "error.hpp"
#include "json.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

struct stored_tensor {
  std::string type;  ///< as the file has it: "F32", "F16", "BF16", or one that this program cannot compute with
  std::vector<std::int64_t> shape;
  std::string_view bytes;
};

namespace detail {
inline std::int64_t bytes_of_element(const std::string& type) {
  static const std::map<std::string, std::int64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  const auto found = sizes.find(type);
  return found == sizes.end() ? 0 : found->second;
}

inline std::int64_t size_in(const json& list, std::size_t index, const std::string& name) {
  const json& number = list[index];
  const bool good = number.is_number_unsigned() && number.get<std::uint64_t>() <= INT64_MAX;
  if (!good) fail("%s: expected sizes and offsets to be integers from 0 to 2^63 - 1", name.c_str());
  return number.get<std::int64_t>();
}

inline stored_tensor read_tensor(const json& entry, std::string_view data, const std::string& name) {
  const bool complete = entry.is_object() && entry.contains("dtype") && entry["dtype"].is_string() &&
                        entry.contains("shape") && entry["shape"].is_array() && entry.contains("data_offsets") &&
                        entry["data_offsets"].is_array() && entry["data_offsets"].size() == 2;
  if (!complete) fail("%s: expected a dtype, a shape and two data_offsets", name.c_str());

  stored_tensor tensor{entry["dtype"].get<std::string>(), {}, {}};
  std::int64_t bytes = bytes_of_element(tensor.type);
  if (bytes == 0) fail("%s: unknown dtype \"%s\"", name.c_str(), tensor.type.c_str());
  for (std::size_t i = 0; i < entry["shape"].size(); ++i) {
    tensor.shape.push_back(size_in(entry["shape"], i, name));
    if (__builtin_mul_overflow(bytes, tensor.shape.back(), &bytes))
      fail("%s: the shape has more than 2^63 bytes", name.c_str());
  }
  const std::int64_t begin = size_in(entry["data_offsets"], 0, name), end = size_in(entry["data_offsets"], 1, name);
  if (begin > end || end > static_cast<std::int64_t>(data.size()))
    fail("%s: bytes %lld to %lld are not within the file's %lld bytes of data", name.c_str(),
         static_cast<long long>(begin), static_cast<long long>(end), static_cast<long long>(data.size()));
  if (end - begin != bytes)
    fail("%s: the shape has %lld bytes, data_offsets %lld", name.c_str(), static_cast<long long>(bytes),
         static_cast<long long>(end - begin));
  tensor.bytes = data.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(bytes));
  return tensor;
}
}  // namespace detail

/// Views into `file`, by name. `name` stands for the file in errors.
/// Errors: a header that is longer than the file, or no such JSON; a tensor outside the data, or one that overlaps
/// another.
inline std::map<std::string, stored_tensor> parse_safetensors(std::string_view file, const std::string& name) {
  constexpr std::uint64_t longest_header = 100'000'000;  // of the format
  std::uint64_t length = 0;
  if (file.size() < sizeof length) fail("%s: expected a header, got %zu bytes", name.c_str(), file.size());
  std::memcpy(&length, file.data(), sizeof length);
  file.remove_prefix(sizeof length);
  if (length > file.size() || length > longest_header)
    fail("%s: the header is said to have %llu bytes, and %zu follow", name.c_str(),
         static_cast<unsigned long long>(length), file.size());
  const json header = parse_object(file.substr(0, length), name);
  const std::string_view data = file.substr(length);

  std::map<std::string, stored_tensor> tensors;
  std::vector<const stored_tensor*> in_order;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") continue;
    stored_tensor tensor = detail::read_tensor(entry, data, name + ": tensor \"" + key + "\"");
    in_order.push_back(&tensors.emplace(key, std::move(tensor)).first->second);
  }
  const auto place = [](const stored_tensor* tensor) {
    return std::make_pair(tensor->bytes.data(), tensor->bytes.size());  // an empty one stands before its neighbour
  };
  std::sort(in_order.begin(), in_order.end(), [&](const auto* a, const auto* b) { return place(a) < place(b); });
  for (std::size_t i = 1; i < in_order.size(); ++i)
    if (in_order[i - 1]->bytes.data() + in_order[i - 1]->bytes.size() > in_order[i]->bytes.data())
      fail("%s: two tensors overlap", name.c_str());
  return tensors;
}

}  // namespace llama
