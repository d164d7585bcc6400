// Texts in files and folders.
#pragma once

#include "error.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace llama {

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("%s: cannot be read", path.c_str());
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The regular files below a folder, in the order of their names.
inline std::vector<std::filesystem::path> files_below(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  if (!std::filesystem::is_directory(folder)) fail("%s: expected a folder", folder.c_str());
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// The first `length` bytes of files that have as many: of all, or of `most`, evenly from the first name to the last.
inline std::vector<std::string> documents_below(const std::string& folder, std::size_t length, std::size_t most) {
  std::vector<std::string> all, some;
  for (const auto& path : files_below(folder)) {
    const std::string text = contents(path);
    if (text.size() >= length) all.push_back(text.substr(0, length));
  }
  if (all.empty()) fail("%s: expected files of at least %zu bytes", folder.c_str(), length);
  const std::size_t count = std::min(most, all.size());
  for (std::size_t i = 0; i < count; ++i) some.push_back(all[i * all.size() / count]);
  return some;
}

/// Source files one after another, cut into documents; what is not ASCII is left out, for no model has seen it.
inline std::vector<std::string> sources_below(const std::string& folder, std::size_t length, std::size_t most) {
  std::string all;
  for (const auto& path : files_below(folder)) all += contents(path);
  all.erase(std::remove_if(all.begin(), all.end(), [](char c) { return static_cast<unsigned char>(c) >= 127; }),
            all.end());
  std::vector<std::string> documents;
  for (std::size_t first = 0; first + length <= all.size() && documents.size() < most; first += length)
    documents.push_back(all.substr(first, length));
  if (documents.empty()) fail("%s: expected %zu bytes of sources", folder.c_str(), length);
  return documents;
}

}  // namespace llama
