// The memory of a program, counted, and out on demand: replaces its operator new and delete. For programs of one unit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace support::heap {

inline std::atomic<long> num_allocations{0}, num_bytes{0};  // ever
inline std::atomic<long> num_live{0};                       // blocks
inline std::atomic<long> num_until_failure{0};              // the allocation that makes this 0 fails
inline std::atomic<bool> is_out{false};                     // all fail

inline void* allocate(std::size_t bytes, std::size_t alignment) {
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  const bool fails = num_until_failure.fetch_sub(1) == 1 || is_out;
  void* const memory = fails ? nullptr : std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  ++num_allocations;
  num_bytes += static_cast<long>(bytes);
  ++num_live;
  return memory;
}

inline void release(void* memory) {
  if (memory != nullptr) --num_live;
  std::free(memory);
}

}  // namespace support::heap

// The forms for arrays and those that do not throw call these. Inlined, the compiler would see free() given what operator
// new returned, and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  return support::heap::allocate(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return support::heap::allocate(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { support::heap::release(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { support::heap::release(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { support::heap::release(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  support::heap::release(memory);
}
