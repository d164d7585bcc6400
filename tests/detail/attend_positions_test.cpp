#include <lambda_attention/detail/attend_positions.hpp>
#include <lambda_attention/lambda_attention.hpp>

#include <support/random_tensor.hpp>

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::position_kernels;

namespace {

/// One worker after the other, as many as one likes.
struct workers_in_turn {
  index_t number;
  index_t num_workers() const { return number; }
  template <class Function>
  void run(index_t num_tasks, Function&& f) const {
    for (index_t task = 0; task < num_tasks; ++task) f(task, task % number);
  }
};

/// How often score_rows was called for so many rows at once.
std::map<index_t, int> calls_of_size;

void count_and_score_rows(const float* queries, int heads, index_t padded_dim, const la::detail::stored_rows& rows,
                          float* scores, index_t score_stride) {
  ++calls_of_size[rows.num_keys];
  la::detail::position_kernels_for<float>(la::isa_level::automatic, false)
      .score_rows(queries, heads, padded_dim, rows, scores, score_stride);
}

}  // namespace

// What kernels do with rows may depend on how many they are given: where those of the matrix unit are few, numbers are not
// rounded. So that is the same for any number of workers.
TEST(AttendPositions, PiecesDoNotDependOnTheWorkers) {
  constexpr index_t dim = 32, num_queries = 3;
  support::generator random(21);
  const auto rows = support::random_tensor<float>(random, 100, 1, dim);
  const auto q = support::random_tensor<float>(random, num_queries, 1, dim);
  support::tensor<float> out(num_queries, 1, dim);
  la::kv_cache<la::f32, la::none> cache(la::lm_infinite(4, 4096), {}, 1, dim, dim, {64});
  position_kernels<float> counting = la::detail::position_kernels_for<float>(la::isa_level::automatic, false);
  counting.score_rows = count_and_score_rows;
  const auto calls = [&](index_t num_workers) {
    auto job = la::detail::stream_job(la::detail::erase(q.view()), la::detail::erase(out.view()), cache.core(),
                                      cache.num_tokens(), cache.position().data(), {});
    job.one_position = &counting;
    const auto& kernels = la::detail::kernels_for<float>(la::isa_level::automatic);
    const la::detail::job_list<float> list(&job, 1, num_workers);
    EXPECT_EQ(list.num_tasks(), num_workers);
    la::workspace memory(la::detail::call_scratch<float>(kernels, list).bytes());
    calls_of_size.clear();
    workers_in_turn executor{num_workers};
    la::detail::run_jobs(kernels, list, memory, 0, executor);
    return calls_of_size;
  };
  for (index_t tokens = 0; tokens < 6000; tokens += 100) {
    la::append(rows.view(), rows.view(), cache);
    if (tokens < 4500) continue;
    const auto by_one = calls(1);
    EXPECT_GT(by_one.size(), 1u) << "the ring is in one piece, and shows nothing";
    EXPECT_EQ(calls(2), by_one) << "after " << tokens << " tokens";
    EXPECT_EQ(calls(4), by_one) << "after " << tokens << " tokens";
  }
}

// Of queries taken together the oldest meets keys after itself, more of them than a bias_table has margins; their scores are
// hidden later.
TEST(AttendPositions, BiasesOfKeysAfterTheQueryAreThatOfDistanceZero) {
  la::bias_table table(2, 3);
  for (const index_t distance : {0, 1, 2}) {
    table.set(0, distance, 100);
    table.set(1, distance, static_cast<double>(distance + 1));
  }
  for (int level = 1; level <= static_cast<int>(la::highest_isa()); ++level) {
    const auto& kernels = la::detail::position_kernels_for<float>(static_cast<la::isa_level>(level), false);
    std::vector<float> scores(40);
    kernels.adjust_scores(scores.data(), 40, 0, 0, table.row(1, 0.0f), table.num_distances(), 2, 1);
    for (index_t k = 0; k < 40; ++k)
      EXPECT_EQ(scores[static_cast<std::size_t>(k)], table.row(1, 0.0f)[la::detail::max(0, 2 - k)]) << "key " << k;
  }
}
