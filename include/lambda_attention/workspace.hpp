// Scratch memory that a caller may keep between calls.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/buffer.hpp>

#include <cstddef>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// A call that is given a workspace takes its scratch from there, growing it where it is too small; once it is large
/// enough, calls allocate nothing. scratch_bytes() of attention.hpp tells how much a call on a cache takes. One workspace serves one
/// call at a time, of any kind.
class workspace {
 public:
  workspace() = default;
  explicit workspace(index_t bytes) { reserve(bytes); }

  index_t bytes() const { return memory_.size(); }

  /// Makes room for `bytes`; what is there is large enough already, or is replaced. Throws std::bad_alloc.
  void reserve(index_t bytes) {
    if (bytes > memory_.size()) memory_ = detail::buffer<std::byte>(bytes);
  }

  std::byte* data() { return memory_.data(); }

 private:
  detail::buffer<std::byte> memory_;
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
