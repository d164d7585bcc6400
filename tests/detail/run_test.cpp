#include <lambda_attention/detail/run.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::attention_job;
using la::detail::job_list;
using la::detail::queries_per_chunk;
using la::detail::task;

namespace {

attention_job<float> job(index_t tokens, index_t kv_heads, index_t first_query = 0) {
  attention_job<float> j = {};
  j.plan = {la::lm_infinite(16, 1024), true};
  j.q.tokens = tokens;
  j.q.heads = 2 * kv_heads;
  j.q.dim = j.out.dim = 64;
  j.num_kv_heads = kv_heads;
  j.first_query = first_query;
  for (auto& keys : j.rows.keys) keys.head_bytes = 1 << 20;  // heads far apart: one a task
  return j;
}

}  // namespace

TEST(JobList, TasksHoldEveryQueryOfEveryHeadOnce) {
  for (const index_t workers : {1, 2, 3, 64}) {
    const std::vector<attention_job<float>> jobs = {job(1, 3), job(5000, 2, 70), job(0, 4), job(513, 1), job(512, 5)};
    const job_list<float> list(jobs.data(), static_cast<index_t>(jobs.size()), workers);
    std::vector<std::vector<int>> times;
    for (const auto& j : jobs) times.emplace_back(static_cast<std::size_t>(j.q.tokens * j.num_kv_heads));
    for (index_t number = 0; number < list.num_tasks(); ++number) {
      const task<float> t = list.at(number);
      ASSERT_LT(t.first_query, t.last_query);
      ASSERT_EQ((t.first_query - t.job->first_query) % queries_per_chunk, 0) << "a cut in a chunk";
      for (index_t head = t.first_kv_head; head < t.first_kv_head + t.num_kv_heads; ++head)
        for (index_t query = t.first_query; query < t.last_query; ++query)
          ++times[static_cast<std::size_t>(t.job - jobs.data())].at(
              static_cast<std::size_t>(head * t.job->q.tokens + query - t.job->first_query));
    }
    for (const auto& of_job : times)
      for (const int count : of_job) ASSERT_EQ(count, 1) << workers << " workers";
  }
}

TEST(JobList, CutsAsManyTasksAsTheWorkersNeed) {
  const auto num_tasks = [](index_t tokens, index_t kv_heads, index_t workers) {
    const attention_job<float> j = job(tokens, kv_heads);
    return job_list<float>(&j, 1, workers).num_tasks();
  };
  EXPECT_EQ(num_tasks(100000, 8, 1), 8);  // nothing is copied twice
  EXPECT_EQ(num_tasks(100000, 8, 2), 8);  // four a worker
  EXPECT_EQ(num_tasks(100000, 1, 2), 8);
  EXPECT_EQ(num_tasks(8192, 1, 16), 16);  // at least 512 queries
  EXPECT_EQ(num_tasks(100, 1, 16), 1);
}
