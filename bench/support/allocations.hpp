// Counts the allocations of the program that includes this, in one of its files: it replaces operator new.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace bench {

inline std::atomic<long> num_allocations{0};

inline void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  ++num_allocations;
  if (void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment))
    return memory;
  throw std::bad_alloc();
}

}  // namespace bench

// NOLINTBEGIN(misc-definitions-in-headers): replacements must not be inline. Nor may compilers inline them: g++ would see a
// pointer from new handed to free.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
  return bench::counted_allocation(bytes, alignof(std::max_align_t));
}
__attribute__((noinline)) void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return bench::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
// NOLINTEND(misc-definitions-in-headers)
