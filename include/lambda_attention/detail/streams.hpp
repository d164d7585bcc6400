// A call on many streams: the checks across them, and its rounds of at most max_append tokens a stream.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/run.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/workspace.hpp>

#include <new>
#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

template <class Real>
void check_newest(index_t queries, const cache_core<Real>& cache) {
  if (queries > cache.num_tokens())
    refuse("attend: expected q.tokens <= cache.num_tokens(), got %lld and %lld", printable(queries),
           printable(cache.num_tokens()));
  const index_t most = min(cache.newest_held(), cache.shape().max_append);
  if (queries > most)
    refuse(
        "attend: expected q.tokens <= %lld, got %lld: the ring does not hold what older queries saw (it holds that of "
        "max_append = %lld tokens, less those taken back or of a step that failed)",
        printable(most), printable(queries), printable(cache.shape().max_append));
}

template <class Step>
void check_stream(const Step& s, const attention_options& options) {
  if (s.cache == nullptr) refuse("attend: expected a cache, got a null pointer");
  const tensor q = erase(s.q), k = erase(s.k), v = erase(s.v), out = erase(s.out);
  check_stream_keys(k, v, s.cache->core(), "attend");
  check_stream_queries(q, out, s.cache->core(), saturating_add(s.cache->num_tokens(), max(0, q.tokens)),
                       limits_of(s.cache->position()), options);
  check_equal(k.tokens, q.tokens, "attend", "k.tokens", "q.tokens");
  check_alias(out, k, "attend", "k");
  check_alias(out, v, "attend", "v");
  check_not_k_or_v(erase(options.lse), "options.lse", k, v);
  check_not_k_or_v(erase(options.weights), "options.weights", k, v);
}

// All that can be wrong with a call, before anything is written.
template <class Step>
void check_streams(const Step* streams, index_t num_streams, const attention_options& options) {
  if (num_streams < 0) refuse("attend: expected num_streams >= 0, got %lld", printable(num_streams));
  if (num_streams > 0 && streams == nullptr) refuse("attend: expected streams, got a null pointer");
  if (num_streams > 1 && options.lse.data != nullptr)
    refuse("attend: expected no options.lse with more than one stream, got %lld streams", printable(num_streams));
  if (num_streams > 1 && options.weights.data != nullptr)
    refuse("attend: expected no options.weights with more than one stream, got %lld streams", printable(num_streams));
  for (index_t s = 0; s < num_streams; ++s) check_stream(streams[s], options);
  for (index_t a = 0; a < num_streams; ++a) {
    const tensor out = erase(streams[a].out);
    for (index_t b = 0; b < num_streams; ++b) {
      if (a == b) continue;
      if (streams[a].cache == streams[b].cache)
        refuse("attend: expected every cache once, got the same for streams %lld and %lld", printable(a), printable(b));
      if (overlap(out, erase(streams[b].q)) || overlap(out, erase(streams[b].k)) || overlap(out, erase(streams[b].v)) ||
          overlap(out, erase(streams[b].out)))
        refuse("attend: expected out of stream %lld not to overlap a tensor of stream %lld, got overlapping memory",
               printable(a), printable(b));
    }
  }
}

template <class Real>
constexpr index_t job_bytes(index_t num_jobs) {
  return round_up(num_jobs * static_cast<index_t>(sizeof(attention_job<Real>)), buffer_alignment);
}

// The scratch of a call on one stream, of a given number of tokens or fewer, whatever came before: that of a stream whose
// window is full, where a query sees most.
template <class Real>
index_t stream_scratch_bytes(isa_level isa, const cache_core<Real>& cache, const position_data& encoding,
                             index_t num_heads, index_t num_tokens, index_t num_workers) {
  if (num_heads < 1 || num_heads % cache.shape().num_kv_heads != 0)
    refuse("scratch_bytes: expected num_heads %% cache.num_kv_heads == 0, both at least 1, got %lld and %lld",
           printable(num_heads), printable(cache.shape().num_kv_heads));
  const index_t tokens = min(max(num_tokens, 0), cache.shape().max_append);
  tensor q, out;
  q.heads = out.heads = num_heads;
  q.dim = cache.shape().head_dim;
  out.dim = cache.shape().v_head_dim;
  const index_t seen = saturating_add(cache.shape().plan.shape.num_sinks, cache.shape().plan.shape.window);
  attention_options options;
  options.isa = isa;
  const auto bytes_for = [&](index_t count) {
    q.tokens = out.tokens = count;
    const attention_job<Real> job = stream_job(q, out, cache, saturating_add(seen, count), encoding, options);
    call_scratch<Real> scratch(num_workers);
    scratch.add(kernels_for<Real>(isa), job);
    return scratch.bytes();
  };
  // Few tokens are read off the rows as they lie, which takes another scratch than tiles.
  q.tokens = out.tokens = 1;
  const index_t few = stream_job(q, out, cache, seen, encoding, options).most_tokens();
  return job_bytes<Real>(1) + max(bytes_for(tokens), bytes_for(min(tokens, few)));
}

// The rounds of a call. In each, every stream that has tokens left takes in at most max_append of them: rows are written,
// the round's jobs run, and only then do the caches count the tokens in.
template <class Step>
class stream_runner {
  using cache_type = std::remove_pointer_t<decltype(Step::cache)>;
  using real = typename cache_type::compute_type;
  using job = attention_job<real>;
  static_assert(std::is_trivially_copyable_v<job> && std::is_trivially_destructible_v<job>, "jobs live in scratch");

 public:
  stream_runner(const Step* streams, index_t num_streams, const attention_options& options, workspace& memory)
      : kernels_(kernels_for<real>(options.isa)),
        streams_(streams),
        num_streams_(num_streams),
        options_(options),
        memory_(memory),
        jobs_bytes_(job_bytes<real>(num_streams)) {}

  // All rounds. Whatever can fail but the executor fails before a row is written.
  template <class Executor>
  void run(Executor& executor) {
    const index_t num_workers = executor.num_workers();
    for (index_t round = 0; begin_round(round, num_workers); ++round) {
      for (index_t s = 0; s < num_streams_; ++s) write(streams_[s], round);
      run_jobs(kernels_, job_list<real>(jobs(), num_jobs_, num_workers), memory_, jobs_bytes_, executor);
      for (index_t s = 0; s < num_streams_; ++s) count_in(streams_[s], round);
    }
  }

 private:
  struct token_range {
    index_t first;
    index_t count;
  };

  static token_range tokens_of(const Step& s, index_t round) {
    const index_t most = s.cache->max_append();
    if (round >= divide_up(s.q.tokens, most)) return {0, 0};
    return {round * most, min(most, s.q.tokens - round * most)};
  }

  job* jobs() { return std::launder(reinterpret_cast<job*>(memory_.data())); }

  job job_of(const Step& s, index_t round) const {
    const token_range tokens = tokens_of(s, round);
    attention_options options = options_;
    if (options.lse.data != nullptr) options.lse = options.lse.slice(tokens.first, tokens.count);
    if (options.weights.data != nullptr) options.weights = options.weights.slice(tokens.first, tokens.count);
    return stream_job(erase(s.q).slice(tokens.first, tokens.count), erase(s.out).slice(tokens.first, tokens.count),
                      s.cache->core(), s.cache->num_tokens() + tokens.count, s.cache->position().data(), options);
  }

  // Makes room for a round and builds its jobs there; false when no stream has tokens left.
  bool begin_round(index_t round, index_t num_workers) {
    call_scratch<real> scratch(num_workers);
    num_jobs_ = 0;
    for (index_t s = 0; s < num_streams_; ++s) {
      if (tokens_of(streams_[s], round).count == 0) continue;
      scratch.add(kernels_, job_of(streams_[s], round));
      ++num_jobs_;
    }
    if (num_jobs_ == 0) return false;
    memory_.reserve(jobs_bytes_ + scratch.bytes());
    unsigned char* place = reinterpret_cast<unsigned char*>(memory_.data());
    for (index_t s = 0; s < num_streams_; ++s) {
      if (tokens_of(streams_[s], round).count == 0) continue;
      ::new (static_cast<void*>(place)) job(job_of(streams_[s], round));
      place += sizeof(job);
    }
    return true;
  }

  void write(const Step& s, index_t round) {
    const token_range tokens = tokens_of(s, round);
    if (tokens.count > 0)
      s.cache->core().write(kernels_, s.cache->position().data(), erase(s.k).slice(tokens.first, tokens.count),
                            erase(s.v).slice(tokens.first, tokens.count));
  }

  static void count_in(const Step& s, index_t round) { s.cache->core().commit(tokens_of(s, round).count); }

  const kernel_table<real>& kernels_;
  const Step* streams_;
  index_t num_streams_;
  const attention_options& options_;
  workspace& memory_;
  index_t jobs_bytes_;
  index_t num_jobs_ = 0;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
