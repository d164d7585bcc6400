// Tensors between two pages that may not be touched.
#pragma once

#include <support/random_tensor.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <new>

namespace support {

/// Which end of the tensor lies at the edge of a page: an access past that end is a segmentation fault.
enum class edge { first, last };

/// A copy of a dense tensor, uninitialised memory included.
///
///     | not accessible | tensor ......... | not accessible |      edge::first
///     | not accessible | ......... tensor | not accessible |      edge::last
template <class T>
class guarded {
 public:
  guarded(const tensor<T>& source, edge at) : view_(source.view()) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const index_t size = std::max((view_.tokens - 1) * view_.token_stride, index_t{0}) +
                         std::max((view_.heads - 1) * view_.head_stride, index_t{0}) + view_.dim;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    const std::size_t open_bytes = (bytes + page - 1) / page * page;
    mapped_bytes_ = open_bytes + 2 * page;
    mapped_ = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    std::byte* const open = static_cast<std::byte*>(mapped_) + page;
    if (mprotect(open, open_bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(at == edge::first ? open : open + open_bytes - bytes);
    std::copy_n(view_.data, size, data_);
  }
  guarded(const guarded&) = delete;
  guarded& operator=(const guarded&) = delete;
  ~guarded() { munmap(mapped_, mapped_bytes_); }

  tensor_view<T> view() const {
    return {data_, view_.tokens, view_.heads, view_.dim, view_.token_stride, view_.head_stride};
  }

 private:
  tensor_view<const T> view_;
  std::size_t mapped_bytes_;
  void* mapped_;
  T* data_;
};

}  // namespace support
