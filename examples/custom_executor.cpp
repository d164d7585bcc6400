// An engine's own threads do the library's work: they draw tasks from a counter. What is computed does not depend on how
// many they are, nor on which of them draws what: the bits are those of one thread.
#include <lambda_attention/lambda_attention.hpp>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace la = lambda_attention;

// Threads that an engine starts once and uses for everything. The library asks for num_workers() and run() only.
class engine_threads {
 public:
  explicit engine_threads(la::index_t count) {
    for (la::index_t worker = 1; worker < count; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  ~engine_threads() {
    start(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  la::index_t num_workers() const { return static_cast<la::index_t>(threads_.size()) + 1; }
  template <class Function>
  void run(la::index_t num_tasks, Function&& f) {
    std::atomic<la::index_t> next{0};
    const auto draw = [&](la::index_t worker) {
      for (la::index_t task = next++; task < num_tasks; task = next++) f(task, worker);
    };
    start(std::ref(draw));
    draw(0);  // the caller is a worker too
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return busy_ == 0; });  // nobody holds f any more
  }

 private:
  void start(const std::function<void(la::index_t)>& job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_ = job, busy_ = threads_.size(), ++round_;
    changed_.notify_all();
  }
  void serve(la::index_t worker) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (la::index_t round = 1;; ++round) {
      changed_.wait(lock, [&] { return round_ == round; });
      if (!job_) return;
      lock.unlock();
      job_(worker);
      lock.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void(la::index_t)> job_;
  std::size_t busy_ = 0;
  la::index_t round_ = 0;
  std::vector<std::thread> threads_;
};

int main() {
  constexpr la::index_t n = 3000, heads = 8, dim = 64;
  std::vector<float> rows(n * heads * dim), alone(rows.size()), together(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i % 10007));
  const auto view = [](auto& numbers) { return la::token_major(numbers.data(), n, heads, dim); };
  const la::lambda_shape shape = la::lm_infinite(16, 256);
  la::attend(view(rows), view(rows), view(rows), shape, la::rope(dim), view(alone));
  engine_threads threads(4);
  la::attend(view(rows), view(rows), view(rows), shape, la::rope(dim), view(together), {}, threads);
  const bool same = std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0;
  std::printf("four threads: %s\n", same ? "the bits of one" : "not the bits of one");
  return same ? 0 : 1;
}
