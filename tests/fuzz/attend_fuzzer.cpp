// attend() under libFuzzer.
#include "attend_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::try_to_attend(data, size);
  return 0;
}
