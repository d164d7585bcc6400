// Programs that are run for what they print.
#pragma once

#include "../error.hpp"

#include <sys/wait.h>

#include <cstddef>
#include <cstdio>
#include <string>

namespace llama::experiments {

/// In single quotes; `apostrophe` is how one within is written: for the shell, or doubled, for gnuplot.
inline std::string quoted(const std::string& text, const char* apostrophe = "'\\''") {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string(apostrophe) : std::string(1, c);
  return result + "'";
}

/// Errors: a command that cannot be run, or does not end with status 0.
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

}  // namespace llama::experiments
