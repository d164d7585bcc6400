// A line on the terminal that tells how far long work has come: share, rate and time left. Silent where stderr is no
// terminal.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>

namespace llama {

class progress {
 public:
  progress(std::int64_t total, bool wanted) : total_(total), shown_(wanted && ::isatty(STDERR_FILENO) == 1) {}
  ~progress() {
    if (drawn_) std::fputs("\r\033[K", stderr);
  }
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  /// May be called from several threads.
  void advance(std::int64_t tokens) {
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += tokens;
    const auto now = clock::now();
    if (!shown_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    drawn_ = true;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = static_cast<double>(done_) / seconds,
                 share = static_cast<double>(done_) / static_cast<double>(total_);
    const auto left = static_cast<long long>(static_cast<double>(total_ - done_) / rate);
    const std::string bar(static_cast<std::size_t>(share * 30), '#');
    std::fprintf(stderr, "\r[%-30s] %3.0f %%  %.0f tokens/s  %lld:%02lld left \033[K", bar.c_str(), share * 100, rate,
                 left / 60, left % 60);
  }

 private:
  using clock = std::chrono::steady_clock;
  std::mutex mutex_;
  std::int64_t total_, done_ = 0;
  bool shown_, drawn_ = false;
  clock::time_point begin_ = clock::now(), last_ = begin_;
};

}  // namespace llama
