// What a call is refused with.
#pragma once

#include <stdexcept>
#include <string>

/// The message of the std::invalid_argument that `call` throws; "accepted" when it throws none.
template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}
