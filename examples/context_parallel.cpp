// One long prefill over several machines (MPI). Each rank has a slice of the sequence, and receives the sinks and a
// halo of what is before it, however long the sequence is:
//
//     |####|.................|::::::::::::|==============|..........|
//      sinks                  window - 1   slice           later
//
// Keys travel unrotated, and each rank computes its rows as one process would: nothing is left to merge.
#include <lambda_attention/lambda_attention.hpp>

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace la = lambda_attention;

struct model {
  static constexpr la::index_t heads = 4, kv_heads = 2, dim = 32;
  static constexpr la::index_t kv_row = 2 * kv_heads * dim;  // a token's keys, then its values: one message has both
};

// Stands for projections: numbers that depend on the tokens' indices alone.
std::vector<float> project(const la::index_range& tokens, la::index_t row, double seed) {
  std::vector<float> rows(static_cast<std::size_t>(tokens.size() * row));
  double i = static_cast<double>(tokens.first * row);
  for (float& number : rows) number = static_cast<float>(2 * std::sin(seed * ++i));
  return rows;
}

// Sinks, halo and slice of a rank. No key is in two of them.
std::array<la::index_range, 3> keys_of(int rank, int ranks, la::index_t tokens, const la::lambda_shape& shape) {
  const la::index_range slice = {tokens * rank / ranks, tokens * (rank + 1) / ranks};
  const la::index_range halo = {std::clamp<la::index_t>(slice.first - shape.window + 1, 0, slice.first), slice.first};
  return {{{0, std::min(shape.num_sinks, halo.first)}, halo, slice}};
}

// The rows of a rank's slice, and how many bytes came for them. The only rank of one is one process.
std::vector<float> prefill(int rank, int ranks, la::index_t tokens, const la::lambda_shape& shape, double& bytes) {
  const auto mine = keys_of(rank, ranks, tokens, shape);
  std::array<std::vector<float>, 3> kv = {{{}, {}, project(mine[2], model::kv_row, 0.3)}};
  std::vector<la::key_run<float, float>> runs;
  for (std::size_t part = 0; part < 3; ++part) {
    kv[part].reserve(model::kv_row);  // an address to add to, where there are no keys
    kv[part].resize(static_cast<std::size_t>(mine[part].size() * model::kv_row));
    const auto view = [&](la::index_t offset) {
      return la::token_major(kv[part].data() + offset, mine[part].size(), model::kv_heads, model::dim, model::kv_row);
    };
    runs.push_back({mine[part].first, view(0), view(model::kv_heads * model::dim)});
  }

  std::vector<MPI_Request> requests;
  const auto start = [&](auto call, int other, const la::key_run<float, float>& run, const la::index_range& there) {
    const la::index_range keys = {std::max(run.first, there.first), std::min(run.first + run.k.tokens, there.last)};
    if (keys.size() > 0)
      call(run.k.row(keys.first - run.first, 0), static_cast<int>(keys.size() * model::kv_row), MPI_FLOAT, other, 0,
           MPI_COMM_WORLD, &requests.emplace_back());
  };
  for (int other = 0; other < ranks; ++other) {
    const auto theirs = keys_of(other, ranks, tokens, shape);
    for (const std::size_t part : {0u, 1u}) {
      start(MPI_Irecv, other, runs[part], theirs[2]);
      start(MPI_Isend, other, runs[2], theirs[part]);
    }
  }
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  bytes = static_cast<double>((kv[0].size() + kv[1].size()) * sizeof(float));

  const std::vector<float> q = project(mine[2], model::heads * model::dim, 0.9);
  std::vector<float> out(q.size());
  const la::index_t n = mine[2].size();
  la::attend(la::query_run{mine[2].first, la::token_major(q.data(), n, model::heads, model::dim)}, runs.data(), 3,
             shape, la::rope(model::dim), la::token_major(out.data(), n, model::heads, model::dim));
  return out;
}

// Ranks that differ would wait for messages that nobody sends.
void check_agreement(const char* name, la::index_t number) {
  la::index_t range[] = {-number, number};
  MPI_Allreduce(MPI_IN_PLACE, range, 2, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
  if (-range[0] != range[1])
    throw std::invalid_argument(std::string("the ranks disagree on ") + name + ": " + std::to_string(-range[0]) +
                                " in one, " + std::to_string(range[1]) + " in another");
}

// Prints the most bytes that a rank received, and the largest difference from one process; returns both.
std::array<double, 2> compare(int rank, int ranks, la::index_t tokens, const la::lambda_shape& shape) {
  std::array<double, 2> most = {};
  double none = 0;
  const std::vector<float> out = prefill(rank, ranks, tokens, shape, most[0]),
                           expected = prefill(0, 1, tokens, shape, none);
  auto of_one = expected.begin() + keys_of(rank, ranks, tokens, shape)[2].first * model::heads * model::dim;
  for (const float of_rank : out) {
    const double difference = std::abs(of_rank - *of_one++);
    most[1] = std::fmax(most[1], std::isnan(difference) ? HUGE_VAL : difference);
  }
  MPI_Allreduce(MPI_IN_PLACE, most.data(), 2, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  if (rank == 0)
    std::printf("%4.0f tokens: the most bytes that one of %d ranks received %.0f, largest difference %.1e\n",
                static_cast<double>(tokens), ranks, most[0], most[1]);
  return most;
}

int main(int argc, char** argv) try {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  // Arguments are for the tests in CMakeLists.txt: another window, and a rank that dies.
  const la::lambda_shape shape = la::lm_infinite(4, argc > 1 ? std::atoll(argv[1]) : 256);
  check_agreement("num_sinks", shape.num_sinks);
  check_agreement("window", shape.window);
  if (argc > 2) std::raise(SIGKILL);
  // A quarter of 701 is less than a window: halos come from two slices.
  const auto a = compare(rank, ranks, 701, shape), b = compare(rank, ranks, 4000, shape);
  MPI_Finalize();
  return a[0] == b[0] && std::fmax(a[1], b[1]) < 1e-5 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  MPI_Abort(MPI_COMM_WORLD, 1);  // the other ranks wait
}
