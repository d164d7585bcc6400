// attend() on runs of keys under libFuzzer.
#include "key_runs_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::try_runs(data, size);
  return 0;
}
