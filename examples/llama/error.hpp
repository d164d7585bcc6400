// What the programs of this folder say when a file or an argument is not what it has to be: one line, and exit status
// 1.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace llama {

struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws an error with a text as of printf. What a file says of itself is cut short, and shown without control
/// characters.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string line(text);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  throw error(line);
}

}  // namespace llama
