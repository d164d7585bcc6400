// A call on many streams: the checks across them, and its rounds of at most max_append tokens a stream.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/heap.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/numbered_name.hpp>
#include <lambda_attention/detail/run.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/workspace.hpp>

#include <new>
#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

template <class Real>
void check_newest(index_t queries, const cache_core<Real>& cache, const char* where) {
  if (queries > cache.num_tokens())
    refuse("%s: expected q.tokens <= cache.num_tokens(), got %lld and %lld", where, printable(queries),
           printable(cache.num_tokens()));
  const index_t most = min(cache.newest_held(), cache.shape().max_append);
  if (queries > most)
    refuse("%s: expected q.tokens <= %lld, got %lld (cache.max_append() = %lld, cache.num_rewindable() = %lld)", where,
           printable(most), printable(queries), printable(cache.shape().max_append), printable(cache.newest_held()));
}

// A stream's part of a call, no user type left in it.
template <class Real>
struct erased_stream {
  tensor q;
  tensor k;
  tensor v;
  tensor out;
  cache_core<Real>* cache;  // null: the caller gave none
};

// The streams of a call, whose types are erased one by one as they are asked for: they may be any number, and no call
// allocates. What is made of this is compiled once, not for every combination of elements, storage and encoding.
template <class Real>
class stream_list {
 public:
  template <class Step>
  stream_list(const Step* steps, index_t size)
      : steps_(steps), size_(size), erase_(erase_step<Step>), encoding_(encoding_of<Step>) {}

  bool is_null() const { return steps_ == nullptr; }
  index_t size() const { return size_; }
  erased_stream<Real> operator[](index_t s) const { return erase_(steps_, s); }
  // Of a stream that has a cache, whose memory it refers to.
  encoding_limits encoding(index_t s) const { return encoding_(steps_, s); }

 private:
  template <class Step>
  static erased_stream<Real> erase_step(const void* steps, index_t s) {
    const Step& step = static_cast<const Step*>(steps)[s];
    return {detail::erase(step.q), detail::erase(step.k), detail::erase(step.v), detail::erase(step.out),
            step.cache == nullptr ? nullptr : &step.cache->core()};
  }
  template <class Step>
  static encoding_limits encoding_of(const void* steps, index_t s) {
    return detail::limits_of(static_cast<const Step*>(steps)[s].cache->position());
  }

  const void* steps_;
  index_t size_;
  erased_stream<Real> (*erase_)(const void* steps, index_t s);
  encoding_limits (*encoding_)(const void* steps, index_t s);
};

template <class Real>
void check_stream(const stream_list<Real>& streams, index_t number, const attention_options& options) {
  const numbered_name one_of_many("attend: stream ", number);
  const char* const where = streams.size() > 1 ? static_cast<const char*>(one_of_many) : "attend";
  const erased_stream<Real> s = streams[number];
  if (s.cache == nullptr) refuse("%s: expected a cache, got a null pointer", where);
  check_stream_keys(s.k, s.v, *s.cache, where);
  check_stream_queries(s.q, s.out, *s.cache, saturating_add(s.cache->num_tokens(), max(0, s.q.tokens)),
                       streams.encoding(number), options, where);
  check_equal(s.k.tokens, s.q.tokens, where, "k.tokens", "q.tokens");
  check_alias(s.out, s.k, where, "k");
  check_alias(s.out, s.v, where, "v");
  check_not_k_or_v(erase(options.lse), "options.lse", s.k, s.v, where);
  check_not_k_or_v(erase(options.weights), "options.weights", s.k, s.v, where);
}

// Memory of a stream's: its cache, or its output.
struct span_of_stream {
  std::uintptr_t first;
  std::uintptr_t last;
  index_t stream;
};
inline span_of_stream span_of(const tensor& t, index_t stream) {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(t.data);
  return {first, first + static_cast<std::uintptr_t>(t.extent_bytes()), stream};
}

// In order, so that many streams are not compared each with each.
inline void sort(span_of_stream* spans, index_t size) {
  heap_sort(spans, size, [](const span_of_stream& a, const span_of_stream& b) {
    return a.first != b.first ? a.first < b.first : a.stream < b.stream;
  });
}

template <class Real>
void check_caches_once(const stream_list<Real>& streams, span_of_stream* spans) {
  for (index_t s = 0; s < streams.size(); ++s) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(streams[s].cache);
    ::new (static_cast<void*>(spans + s)) span_of_stream{address, address, s};
  }
  sort(spans, streams.size());
  for (index_t s = 1; s < streams.size(); ++s)
    if (spans[s].first == spans[s - 1].first)
      refuse("attend: expected every cache once, got the same for streams %lld and %lld",
             printable(spans[s - 1].stream), printable(spans[s].stream));
}

// How many of the spans, in order, begin before an address.
inline index_t count_before(const span_of_stream* spans, index_t size, std::uintptr_t address) {
  index_t before = 0;
  for (index_t end = size; before < end;) {
    const index_t middle = before + (end - before) / 2;
    if (spans[middle].first < address)
      before = middle + 1;
    else
      end = middle;
  }
  return before;
}

template <class Real>
void check_outputs_apart(const stream_list<Real>& streams, span_of_stream* outputs) {
  for (index_t s = 0; s < streams.size(); ++s)
    ::new (static_cast<void*>(outputs + s)) span_of_stream(span_of(streams[s].out, s));
  sort(outputs, streams.size());
  // From here on `last` is that of all outputs up to this one: those before one that ends before a tensor begins do too.
  for (index_t i = 1; i < streams.size(); ++i)
    if (outputs[i].last < outputs[i - 1].last) outputs[i].last = outputs[i - 1].last;
  for (index_t s = 0; s < streams.size(); ++s) {
    const erased_stream<Real> stream = streams[s];
    for (const tensor* t : {&stream.q, &stream.k, &stream.v, &stream.out}) {
      const span_of_stream span = span_of(*t, s);
      index_t i = count_before(outputs, streams.size(), span.last);
      for (; i > 0 && outputs[i - 1].last > span.first; --i) {
        const index_t other = outputs[i - 1].stream;
        if (other != s && overlap(streams[other].out, *t))
          refuse("attend: expected out of stream %lld not to overlap a tensor of stream %lld, got overlapping memory",
                 printable(other), printable(s));
      }
    }
  }
}

template <class Real>
constexpr index_t job_bytes(index_t num_jobs) {
  return round_up(num_jobs * static_cast<index_t>(sizeof(attention_job<Real>)), buffer_alignment);
}

// All that can be wrong with a call, before anything is written. Takes the memory where its jobs will lie.
template <class Real>
void check_streams(const stream_list<Real>& streams, const attention_options& options, workspace& memory) {
  const index_t num_streams = streams.size();
  if (num_streams < 0) refuse("attend: expected num_streams >= 0, got %lld", printable(num_streams));
  if (num_streams > 0 && streams.is_null()) refuse("attend: expected streams, got a null pointer");
  if (num_streams > 1 && options.lse.data != nullptr)
    refuse("attend: expected no options.lse with more than one stream, got %lld streams", printable(num_streams));
  if (num_streams > 1 && options.weights.data != nullptr)
    refuse("attend: expected no options.weights with more than one stream, got %lld streams", printable(num_streams));
  for (index_t s = 0; s < num_streams; ++s) check_stream(streams, s, options);
  if (num_streams <= 1) return;
  static_assert(sizeof(span_of_stream) <= sizeof(attention_job<Real>), "what follows fits where the jobs will lie");
  memory.reserve(job_bytes<Real>(num_streams));
  span_of_stream* const spans = reinterpret_cast<span_of_stream*>(memory.data());
  check_caches_once(streams, spans);
  check_outputs_apart(streams, spans);
}

// The scratch of a call on one stream, of a given number of tokens or fewer, whatever came before: that of a stream whose
// window is full, where a query sees most.
template <class Real>
index_t stream_scratch_bytes(isa_level isa, const cache_core<Real>& cache, const position_data& encoding,
                             index_t num_heads, index_t num_tokens, index_t num_workers) {
  if (num_heads < 1 || num_heads > most_query_heads || num_heads % cache.shape().num_kv_heads != 0)
    refuse("scratch_bytes: expected 1 <= num_heads <= %lld and num_heads %% cache.num_kv_heads == 0, got %lld and %lld",
           printable(most_query_heads), printable(num_heads), printable(cache.shape().num_kv_heads));
  if (num_workers > most_workers)
    refuse("scratch_bytes: expected num_workers <= %lld, got %lld", printable(most_workers), printable(num_workers));
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
template <class Real>
class stream_runner {
  using job = attention_job<Real>;
  static_assert(std::is_trivially_copyable_v<job> && std::is_trivially_destructible_v<job>, "jobs live in scratch");

 public:
  stream_runner(const stream_list<Real>& streams, const attention_options& options, workspace& memory)
      : kernels_(kernels_for<Real>(options.isa)),
        streams_(streams),
        options_(options),
        memory_(memory),
        jobs_bytes_(job_bytes<Real>(streams.size())) {}

  // All rounds. Whatever can fail but the executor fails before a row is written.
  template <class Executor>
  void run(Executor& executor) {
    const index_t num_workers = checked_workers(executor, "attend"), rounds = num_rounds();
    if (rounds > 0) reserve(rounds, num_workers);
    for (; rounds_done_ < rounds; ++rounds_done_) {
      const index_t num_jobs = build_jobs();
      for (index_t s = 0; s < streams_.size(); ++s) write(s);
      detail::run_jobs(kernels_, job_list<Real>(jobs(), num_jobs, num_workers), memory_, jobs_bytes_, executor);
      for (index_t s = 0; s < streams_.size(); ++s)
        streams_[s].cache->commit(tokens_of(streams_[s], rounds_done_).count);
    }
  }

 private:
  using stream = erased_stream<Real>;
  struct token_range {
    index_t first;
    index_t count;
  };

  static token_range tokens_of(const stream& s, index_t round) {
    const index_t most = s.cache->shape().max_append;
    if (round >= divide_up(s.q.tokens, most)) return {0, 0};
    return {round * most, min(most, s.q.tokens - round * most)};
  }

  index_t num_rounds() const {
    index_t most = 0;
    for (index_t s = 0; s < streams_.size(); ++s)
      most = max(most, divide_up(streams_[s].q.tokens, streams_[s].cache->shape().max_append));
    return most;
  }

  job* jobs() { return std::launder(reinterpret_cast<job*>(memory_.data())); }

  // Of a round that is next, or still to come.
  job job_of(const stream& s, const position_data& encoding, token_range tokens) const {
    const index_t taken_in = tokens_of(s, rounds_done_).first;
    attention_options options = options_;
    if (options.lse.data != nullptr) options.lse = options.lse.slice(tokens.first, tokens.count);
    if (options.weights.data != nullptr) options.weights = options.weights.slice(tokens.first, tokens.count);
    return stream_job(s.q.slice(tokens.first, tokens.count), s.out.slice(tokens.first, tokens.count), *s.cache,
                      s.cache->num_tokens() - taken_in + tokens.first + tokens.count, encoding, options);
  }

  // Calls use(job) for every stream that has tokens left.
  template <class Use>
  void for_each_job(index_t round, Use&& use) const {
    for (index_t s = 0; s < streams_.size(); ++s) {
      const stream of = streams_[s];
      const token_range tokens = tokens_of(of, round);
      if (tokens.count > 0) use(job_of(of, streams_.encoding(s).data, tokens));
    }
  }

  // Room for any of the rounds.
  void reserve(index_t rounds, index_t num_workers) {
    index_t most = 0;
    for (index_t round = 0; round < rounds; ++round) {
      call_scratch<Real> scratch(num_workers);
      for_each_job(round, [&](const job& j) { scratch.add(kernels_, j); });
      most = max(most, scratch.bytes());
    }
    memory_.reserve(jobs_bytes_ + most);
  }

  // Those of the next round; returns how many.
  index_t build_jobs() {
    index_t count = 0;
    unsigned char* const place = reinterpret_cast<unsigned char*>(memory_.data());
    for_each_job(rounds_done_, [&](const job& j) {
      ::new (static_cast<void*>(place + count++ * static_cast<index_t>(sizeof(job)))) job(j);
    });
    return count;
  }

  void write(index_t number) {
    const stream s = streams_[number];
    const token_range tokens = tokens_of(s, rounds_done_);
    if (tokens.count > 0)
      s.cache->write(kernels_, streams_.encoding(number).data, s.k.slice(tokens.first, tokens.count),
                     s.v.slice(tokens.first, tokens.count));
  }

  const kernel_table<Real>& kernels_;
  const stream_list<Real>& streams_;
  const attention_options& options_;
  workspace& memory_;
  index_t jobs_bytes_;
  index_t rounds_done_ = 0;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
