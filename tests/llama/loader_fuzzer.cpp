// The loader under libFuzzer. An input is the length of a config's text in two bytes, little-endian, the text, and a
// file.
//
// It needs no corpus: where it has none yet, an input becomes one of the tiny models.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "fuzz_target.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

struct parts {
  std::string_view config, file;
};

std::optional<parts> parts_of(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return {};
  const std::size_t length = data[0] + std::size_t{256} * data[1];
  if (length > size - 2) return {};
  const std::string_view all(reinterpret_cast<const char*>(data) + 2, size - 2);
  return parts{all.substr(0, length), all.substr(length)};
}

std::string joined(const tiny::sample& s) {
  const std::size_t length = s.config.size();
  return std::string{static_cast<char>(length & 0xff), static_cast<char>(length >> 8)} + s.config + s.file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A copy, so that the file is where memory of its own would be, and ends where that ends.
  if (const auto input = parts_of(data, size)) tiny::try_to_load(input->config, std::string(input->file));
  return 0;
}

// Half of the changes know what is a number and what is a length, the others do not.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  tiny::mutator mutator(seed);
  const auto input = parts_of(data, size);
  if (input && mutator.below(2) == 0) return LLVMFuzzerMutate(data, size, most);
  tiny::sample changed = tiny::samples()[mutator.below(tiny::samples().size())];
  if (input) {
    changed = {std::string(input->config), std::string(input->file)};
    mutator.mutate(changed);
  }
  const std::string bytes = joined(changed);
  if (changed.config.size() > 0xffff || bytes.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
