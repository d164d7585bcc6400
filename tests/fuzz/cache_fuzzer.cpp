// Programs of calls on caches under libFuzzer.
#include "cache_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::try_caches(data, size);
  return 0;
}
