// The bytes of a file, or a line that says what is wrong with it.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

/// Of a text that are read: one call on all of them is to fit in memory.
inline constexpr std::size_t most_bytes = 262144;

using file_handle = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

/// A file's first bytes. Throws one line that says what is wrong with it.
inline std::string read_text(const std::string& path) {
  const auto refusal = [&](const char* why) { return std::runtime_error("cannot read " + path + ": " + why); };
  const file_handle file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw refusal(std::strerror(errno));
  std::string text(most_bytes, '\0');
  text.resize(std::fread(text.data(), 1, most_bytes, file.get()));
  if (std::ferror(file.get()) != 0) throw refusal(std::strerror(errno));
  if (text.empty()) throw refusal("the file is empty");
  return text;
}

/// The project's own README and headers, seen from its root.
inline std::vector<std::string> own_files() {
  std::vector<std::string> files;
  if (std::filesystem::is_directory("include"))
    for (const auto& entry : std::filesystem::recursive_directory_iterator("include"))
      if (entry.path().extension() == ".hpp") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  if (std::filesystem::exists("README.md")) files.insert(files.begin(), "README.md");
  if (files.empty())
    throw std::runtime_error("no README.md and no include/ here: run this in the project's root, or give --input FILE");
  return files;
}

inline std::string read_texts(const std::vector<std::string>& files) {
  std::string text;
  for (const std::string& file : files) text += read_text(file);
  text.resize(std::min(text.size(), most_bytes));
  return text;
}

}  // namespace demo
