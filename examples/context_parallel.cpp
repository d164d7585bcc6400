// One long prefill over several machines (MPI). Each rank has a slice of the sequence, and receives the sinks and a halo of
// what is before it, however long the sequence is:
//
//     |####|.................|::::::::::::|==============|..........|
//      sinks                  window - 1   slice           later
//
// Keys travel unrotated, and each rank computes its rows as one process would: nothing is left to merge. Slices are longer
// than a window and the sinks, so that halos come from the rank before, and sinks from the first.
#include <lambda_attention/lambda_attention.hpp>

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
constexpr index_t q_size = 4 * 32, kv_size = 2 * 2 * 32;  // of a token: 4 queries; 2 keys, and 2 values behind them

// Stands for projections: numbers that depend on the tokens' indices alone, behind so many zeros.
std::vector<float> project(const la::index_range& tokens, index_t size, double seed, index_t num_zeros) {
  std::vector<float> numbers(static_cast<std::size_t>(num_zeros));
  for (index_t i = tokens.first * size; i < tokens.last * size; ++i)
    numbers.push_back(static_cast<float>(2 * std::sin(seed * static_cast<double>(i))));
  return numbers;
}

// The rows of a rank's slice, and how many numbers of a halo it received. The only rank of one is one process.
std::vector<float> prefill(MPI_Comm ranks, int rank, int num_ranks, index_t tokens, const la::lambda_shape& shape,
                           int& received) {
  const la::index_range slice = {tokens * rank / num_ranks, tokens * (rank + 1) / num_ranks};
  const index_t n = slice.size(), halo = rank > 0 ? shape.window - 1 : 0, num_sinks = rank > 0 ? shape.num_sinks : 0;
  std::vector<float> kv = project(slice, kv_size, 0.3, halo * kv_size),
                     sinks(kv.begin(), kv.begin() + shape.num_sinks * kv_size);
  MPI_Status status = {};
  MPI_Bcast(sinks.data(), static_cast<int>(sinks.size()), MPI_FLOAT, 0, ranks);
  const int halo_size = static_cast<int>((shape.window - 1) * kv_size), before = rank > 0 ? rank - 1 : MPI_PROC_NULL,
            after = rank + 1 < num_ranks ? rank + 1 : MPI_PROC_NULL;
  MPI_Sendrecv(kv.data() + kv.size() - halo_size, halo_size, MPI_FLOAT, after, 0, kv.data(), halo_size, MPI_FLOAT,
               before, 0, ranks, &status);
  MPI_Get_count(&status, MPI_FLOAT, &received);  // the sinks come on top
  const auto run = [](index_t first, float* rows, index_t count) {
    return la::key_run{first, la::token_major(rows, count, 2, 32, kv_size),
                       la::token_major(rows + kv_size / 2, count, 2, 32, kv_size)};
  };
  const la::key_run<float, float> runs[] = {run(0, sinks.data(), num_sinks),
                                            run(slice.first - halo, kv.data(), halo + n)};
  std::vector<float> q = project(slice, q_size, 0.9, 0), out(q.size());
  la::attend(la::query_run{slice.first, la::token_major(q.data(), n, 4, 32)}, runs, 2, shape, la::rope(32),
             la::token_major(out.data(), n, 4, 32));
  return out;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, num_ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &num_ranks);
  const int tokens = argc > 1 ? std::atoi(argv[1]) : 4000, window = argc > 2 ? std::atoi(argv[2]) : 256;
  const la::lambda_shape shape = la::lm_infinite(4, window);
  int windows[] = {-window, window}, received = 0, none = 0;
  MPI_Allreduce(MPI_IN_PLACE, windows, 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  const bool agree = -windows[0] == windows[1], fits = window > 0 && tokens / num_ranks - window >= shape.num_sinks;
  if (!agree) std::fprintf(stderr, "the ranks disagree on window: %d in one, %d in another\n", -windows[0], windows[1]);
  if (agree && !fits)
    std::fprintf(stderr, "a window of %d does not fit a slice of %d tokens\n", window, tokens / num_ranks);
  if (!agree || !fits) return MPI_Abort(MPI_COMM_WORLD, 1);
  if (argc > 3) std::abort();  // so that a test sees what becomes of the others
  const std::vector<float> out = prefill(MPI_COMM_WORLD, rank, num_ranks, tokens, shape, received),
                           all = prefill(MPI_COMM_SELF, 0, 1, tokens, shape, none);
  const bool right = std::equal(out.begin(), out.end(), all.begin() + tokens * rank / num_ranks * q_size,
                                [](float a, float b) { return std::abs(a - b) < 1e-5f; });
  std::printf("rank %d received a halo of %d tokens: %s\n", rank, received / static_cast<int>(kv_size),
              right ? "right" : "WRONG");
  MPI_Finalize();
  return right ? 0 : 1;
}
