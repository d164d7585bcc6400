// load() under libFuzzer. An input is a byte that says which cache is to take the file in, and the file.
#include "cache_file_target.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {
fuzz::cache_file file_of(const std::uint8_t* data, std::size_t size) {
  return fuzz::cache_file::from({reinterpret_cast<const char*>(data), size});
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  file_of(data, size).load();
  return 0;
}

// Half of the changes know what is a field; half of the files then have the checksums that they should have. Where there is
// no file yet, one is made.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  fuzz::numbers random(seed);
  fuzz::cache_file file = file_of(data, size);
  if (size < 153 || random.below(64) == 0) {
    file = fuzz::cache_file::whole(random);
  } else if (random.below(2) == 0) {
    fuzz::mutate(file, random);
  } else {
    size = LLVMFuzzerMutate(data, size, most);
    file = file_of(data, size);
    if (random.below(2) == 0) fuzz::sum_anew(file.bytes);
  }
  const std::string bytes = file.joined();
  if (bytes.size() > most) return size;
  std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
