#include <lambda_attention/detail/run.hpp>

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "../refusal.hpp"

namespace la = lambda_attention;
using la::index_t;
using la::detail::attention_job;
using la::detail::job_list;
using la::detail::num_parts;
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

// Heads side by side, of which a task takes several.
attention_job<float> of_near_heads(index_t tokens, index_t kv_heads) {
  attention_job<float> j = job(tokens, kv_heads);
  for (auto& keys : j.rows.keys) keys.head_bytes = 128;
  return j;
}

}  // namespace

TEST(JobList, TasksHoldEveryQueryOfEveryHeadOnce) {
  for (const index_t workers : {1, 2, 3, 64}) {
    for (std::vector<attention_job<float>> jobs :
         {std::vector{job(1, 3), job(5000, 2, 70), job(0, 4), job(513, 1), job(512, 5)}, std::vector{job(5000, 1)},
          std::vector{of_near_heads(100, 7)}}) {
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
}

// A token of a stream: its keys may be shared.
attention_job<float> token_of_stream(index_t kv_heads, index_t tokens_seen) {
  attention_job<float> j = job(1, kv_heads, tokens_seen);
  j.plan.shape.window = 4096;
  j.one_position = &la::detail::position_kernels_for<float>(la::isa_level::automatic, false);
  j.rows.window_as_stored = true;
  j.rows.window_values.format = la::row_format::f32;
  return j;
}

TEST(JobList, TasksHoldEveryPartOfTheKeysOnce) {
  for (const index_t workers : {1, 2, 3, 64}) {
    std::vector<attention_job<float>> jobs = {token_of_stream(1, 100000), job(600, 1), token_of_stream(2, 3000),
                                              token_of_stream(3, 10), token_of_stream(1, 0)};
    const job_list<float> list(jobs.data(), static_cast<index_t>(jobs.size()), workers);
    std::vector<std::vector<int>> times;
    for (const auto& j : jobs) times.emplace_back(static_cast<std::size_t>(num_parts(j) * j.num_kv_heads));
    std::vector<index_t> head_sets;  // the first of each job
    for (const auto& j : jobs) head_sets.push_back(head_sets.empty() ? 0 : head_sets.back() + (&j - 1)->num_kv_heads);
    for (index_t number = 0; number < list.num_tasks(); ++number) {
      const task<float> t = list.at(number);
      const auto of_job = static_cast<std::size_t>(t.job - jobs.data());
      EXPECT_EQ(t.head_set, head_sets[of_job] + t.first_kv_head);
      if (!t.job->by_position()) continue;
      ASSERT_EQ(t.num_kv_heads, 1);
      ASSERT_LT(t.parts.first, t.parts.last);
      for (index_t part = t.parts.first; part < t.parts.last; ++part)
        ++times[of_job].at(static_cast<std::size_t>(t.first_kv_head * num_parts(*t.job) + part));
    }
    for (std::size_t j = 0; j < jobs.size(); ++j)
      for (const int count : times[j]) ASSERT_EQ(count, jobs[j].by_position() ? 1 : 0) << workers << " workers";
  }
}

// Rows that are not read where they lie, as those of a custom storage, are copied by each task that needs them: one takes all parts.
TEST(JobList, SharesOnlyKeysThatAreReadAsStored) {
  attention_job<float> j = token_of_stream(1, 100000);
  j.rows.window_as_stored = false;
  const job_list<float> list(&j, 1, 4);
  ASSERT_EQ(list.num_tasks(), 1);
  EXPECT_EQ(list.at(0).parts.first, 0);
  EXPECT_EQ(list.at(0).parts.last, num_parts(j));
}

// Five parts for three workers: two, two, and one.
TEST(JobList, TheLastTaskTakesTheRest) {
  attention_job<float> j = token_of_stream(1, 100000);
  j.plan.shape.window = 5500;
  ASSERT_EQ(num_parts(j), 5);
  const job_list<float> list(&j, 1, 3);
  ASSERT_EQ(list.num_tasks(), 3);
  EXPECT_EQ(list.at(2).parts.first, 4);
  EXPECT_EQ(list.at(2).parts.last, 5);
}

TEST(JobList, SharesKeysWhereWorkersOutnumberTheHeads) {
  const auto num_tasks = [](index_t kv_heads, index_t tokens_seen, index_t workers) {
    attention_job<float> j = token_of_stream(kv_heads, tokens_seen);
    return job_list<float>(&j, 1, workers).num_tasks();
  };
  EXPECT_EQ(num_tasks(1, 100000, 1), 1);
  EXPECT_EQ(num_tasks(8, 100000, 2), 8);  // as many for each
  EXPECT_EQ(num_tasks(9, 100000, 2), 9);  // and nearly so
  EXPECT_EQ(num_tasks(3, 100000, 2), 6);
  EXPECT_EQ(num_tasks(1, 100000, 2), 2);
  EXPECT_EQ(num_tasks(2, 100000, 16), 8);  // four parts a head
  EXPECT_EQ(num_tasks(1, 100, 16), 1);
}

TEST(JobList, CutsAsManyTasksAsTheWorkersNeed) {
  const auto num_tasks = [](index_t tokens, index_t kv_heads, index_t workers) {
    attention_job<float> j = job(tokens, kv_heads);
    return job_list<float>(&j, 1, workers).num_tasks();
  };
  EXPECT_EQ(num_tasks(100000, 8, 1), 8);  // nothing is copied twice
  EXPECT_EQ(num_tasks(100000, 1, 1), 1);
  EXPECT_EQ(num_tasks(100000, 8, 2), 8);  // four a worker
  EXPECT_EQ(num_tasks(100000, 1, 2), 8);
  EXPECT_EQ(num_tasks(8192, 1, 16), 16);  // at least 512 queries
  EXPECT_EQ(num_tasks(100, 1, 16), 1);
}

TEST(CheckedWorkers, AreOneAtLeastAndNotTooMany) {
  struct of {
    index_t workers;
    index_t num_workers() const { return workers; }
  };
  const auto checked = [](index_t workers) {
    of executor{workers};
    return la::detail::checked_workers(executor, "attend");
  };
  EXPECT_EQ(checked(1), 1);
  EXPECT_EQ(checked(65536), 65536);
  for (const index_t workers : {index_t{-5}, index_t{0}, index_t{65537}, la::unlimited})
    EXPECT_EQ(refusal([&] { checked(workers); }),
              "attend: expected 1 <= executor.num_workers() <= 65536, got " + std::to_string(workers));
}
