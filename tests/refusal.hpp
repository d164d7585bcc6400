// What a call is refused with.
#pragma once

#include <stdexcept>
#include <string>

/// The message of the `Error` that `call` throws; "accepted" when it throws none.
template <class Error = std::invalid_argument, class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}
