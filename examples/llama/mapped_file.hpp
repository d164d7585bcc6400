// A file as read-only memory, which the system pages in where it is read.
#pragma once

#include "error.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace llama {

/// Errors: a path that cannot be opened or mapped, or is no regular file.
class mapped_file {
 public:
  explicit mapped_file(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO would wait
    if (file < 0) fail("%s: %s", path.c_str(), std::strerror(errno));
    struct stat status {};
    const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
    size_ = regular ? static_cast<std::size_t>(status.st_size) : 0;
    if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    const int why = errno;
    ::close(file);
    if (!regular) fail("%s: not a regular file", path.c_str());
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      fail("%s: %s", path.c_str(), std::strerror(why));
    }
  }
  ~mapped_file() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  mapped_file(mapped_file&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  mapped_file& operator=(mapped_file&&) = delete;

  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace llama
