// Owning storage for plain numbers, aligned for vector loads. It stands in for std::vector, whose instantiations would be
// shared by units compiled for different ISAs.
#pragma once

#include <lambda_attention/config.hpp>

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

inline constexpr std::size_t buffer_alignment = 64;
inline constexpr std::size_t huge_page = std::size_t{1} << 21;

// A core reads memory a quarter faster when it does not have to look up a page every 4 KiB. So what is as large as a huge
// page begins with one, and as many are asked for as lie wholly inside, for which no more memory is taken.
inline std::align_val_t alignment_for(std::size_t bytes) {
  return std::align_val_t{bytes < huge_page ? buffer_alignment : huge_page};
}
inline void ask_for_huge_pages(void* block, std::size_t bytes) {
#if defined(__linux__)
  if (const std::size_t inside = bytes / huge_page * huge_page)
    static_cast<void>(madvise(block, inside, MADV_HUGEPAGE));
#else
  static_cast<void>(block);
  static_cast<void>(bytes);
#endif
}

template <class T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T>, "buffer holds plain data");

 public:
  buffer() = default;

  /// `size` elements, all bits zero. Throws std::bad_alloc.
  explicit buffer(index_t size) : data_(allocate(size)), size_(size) {
    if (size > 0) std::memset(static_cast<void*>(data_), 0, bytes());
  }
  buffer(const buffer& other) : data_(allocate(other.size_)), size_(other.size_) {
    if (size_ > 0) std::memcpy(static_cast<void*>(data_), other.data_, bytes());
  }
  buffer(buffer&& other) noexcept { swap(other); }
  // Not one that takes a value: compilers then hold the assignment of whatever has a buffer to be noexcept, and memory that runs
  // out ends the program.
  buffer& operator=(const buffer& other) { return *this = buffer(other); }
  buffer& operator=(buffer&& other) noexcept {
    buffer taken = static_cast<buffer&&>(other);
    swap(taken);
    return *this;
  }
  ~buffer() { ::operator delete(data_, alignment_for(bytes())); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  index_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  T& operator[](index_t i) { return data_[i]; }
  const T& operator[](index_t i) const { return data_[i]; }

 private:
  static T* allocate(index_t size) {
    if (size == 0) return nullptr;
    index_t bytes = 0;
    if (size < 0 || !multiply(size, sizeof(T), &bytes)) refuse("buffer: %lld elements do not fit", printable(size));
    const std::size_t size_in_bytes = static_cast<std::size_t>(bytes);
    void* const block = ::operator new(size_in_bytes, alignment_for(size_in_bytes));
    ask_for_huge_pages(block, size_in_bytes);
    return static_cast<T*>(block);
  }
  void swap(buffer& other) noexcept {
    T* const data = data_;
    const index_t size = size_;
    data_ = other.data_;
    size_ = other.size_;
    other.data_ = data;
    other.size_ = size;
  }

  T* data_ = nullptr;
  index_t size_ = 0;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
