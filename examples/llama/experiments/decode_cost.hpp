// What one more token costs after a long prompt: time, and memory. Each measurement is a run of the program llama, a
// process of its own, as a user would start it.
#pragma once

#include "../error.hpp"
#include "../json.hpp"

#include <sys/wait.h>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace llama::experiments {

struct decode_cost {
  double seconds_per_token;
  double cache_bytes, peak_memory_bytes;
};

namespace detail {
inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

inline std::string output_of(const std::string& command) {
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) fail("cannot run: %s", command.c_str());
  std::string output;
  char some[4096];
  while (const std::size_t count = std::fread(some, 1, sizeof some, pipe)) output.append(some, count);
  const int status = ::pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("this failed: %s", command.c_str());
  return output;
}
}  // namespace detail

/// Of `tokens` tokens after a prompt of `length`, which is repeated text; one thread, keys and values in float.
inline decode_cost decode_cost_at(const std::string& program, const std::string& model, const std::string& attention,
                                  std::int64_t length, std::int64_t tokens, const std::string& text) {
  const std::filesystem::path prompt =
      std::filesystem::temp_directory_path() / ("llama_prompt_" + std::to_string(::getpid()));
  {
    std::ofstream file(prompt, std::ios::binary);
    for (std::int64_t written = 0; written < length; written += static_cast<std::int64_t>(text.size()))
      file << text.substr(0, static_cast<std::size_t>(length - written));
  }
  const std::string output = detail::output_of(
      detail::quoted(program) + " generate " + detail::quoted(model) + " --json --threads 1 --attention " + attention +
      " --tokens " + std::to_string(tokens) + " --prompt-file " + detail::quoted(prompt.string()));
  std::filesystem::remove(prompt);
  const json object = parse_object(output, program);
  const json_reader result(object, program);
  return {result.number("seconds_per_token"), result.number("cache_bytes"), result.number("peak_memory_bytes")};
}

}  // namespace llama::experiments
