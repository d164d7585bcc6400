// What a refusal calls one of many: a run, a stream.
#pragma once

#include <lambda_attention/config.hpp>

#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Made for every one of a call, and so by hand. What is before and after the number is at most 24 characters together.
class numbered_name {
 public:
  numbered_name(const char* before, index_t number, const char* after = "") {
    char digits[20];
    int count = 0;
    for (; count == 0 || number > 0; number /= 10) digits[count++] = static_cast<char>('0' + number % 10);
    char* end = text_ + std::strlen(before);
    std::memcpy(text_, before, std::strlen(before));
    while (count > 0) *end++ = digits[--count];
    std::memcpy(end, after, std::strlen(after) + 1);
  }
  operator const char*() const { return text_; }

 private:
  char text_[48];
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
