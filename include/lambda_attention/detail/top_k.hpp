// The best keys of a middle_store for a query, found without reading them all, and attention over these.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/checks.hpp>
#include <lambda_attention/detail/heap.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/merging.hpp>
#include <lambda_attention/detail/middle_core.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>

#include <atomic>
#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// A key, or a page, and its score, or what the score of no key in it exceeds. Of equal ones the older is better.
template <class Real>
struct scored {
  Real score;
  index_t index;
};
template <class Real>
constexpr bool better(const scored<Real>& a, const scored<Real>& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// One call: queries of the newest tokens, and where results go.
template <class Real>
struct top_k_job {
  tensor q;
  tensor out;
  tensor lse;
  const middle_core<Real>* middle;
  position_data encoding;
  index_t k;
  index_t distance;
  Real scale;     // log2(e) included
  Real soft_cap;  // log2(e) included
  const position_kernels<Real>* one_position;

  index_t group() const { return q.heads / middle->shape().num_kv_heads; }
  // Heads of a group that read pages together: as many as the kernels take at once.
  index_t heads_together() const { return min(group(), max_tile_vectors); }
  index_t query_of(index_t token) const { return middle->num_tokens() - q.tokens + token; }
  // The keys that a query has left behind: neither sinks nor in its window.
  index_range keys_of(index_t query) const {
    const lambda_shape& shape = middle->shape().shape;
    return {shape.num_sinks, max(shape.num_sinks, query >= shape.window ? query - shape.window + 1 : 0)};
  }
};

template <class Real>
top_k_job<Real> checked_top_k_job(const tensor& q, const middle_core<Real>& middle, const encoding_limits& limits,
                                  index_t k, index_t distance, const tensor& out, const tensor& lse,
                                  const attention_options& options) {
  constexpr const char* where = "attend_top_k";
  const auto& shape = middle.shape();
  check_part({0, 0}, options, where);
  check_queries(q, out,
                {shape.num_kv_heads, shape.head_dim, shape.v_head_dim, "store.num_kv_heads", "store.head_dim",
                 "store.v_head_dim"},
                limits, options, where);
  check_lse_of_part(lse, out, {q, out}, where);
  if (options.first_position != 0)
    refuse("%s: expected options.first_position = 0, got %lld", where, printable(options.first_position));
  if (k < 0 || distance < 0)
    refuse("%s: expected k >= 0 and distance >= 0, got %lld and %lld", where, printable(k), printable(distance));
  if (q.tokens > middle.num_tokens())
    refuse("%s: expected q.tokens <= %lld, those of the store, got %lld", where, printable(middle.num_tokens()),
           printable(q.tokens));
  const attention_job<Real> common = job_of<Real>(q, out, options);
  // The kernels that compute in numbers, whatever the rows: bounds hold for those.
  const isa_level isa = options.isa == isa_level::automatic ? isa_of_vectors() : options.isa;
  return {q,
          out,
          lse,
          &middle,
          limits.data,
          min(k, middle.num_tokens()),
          distance,
          common.scale,
          common.soft_cap,
          &position_kernels_for<Real>(isa > isa_level::avx512 ? isa_level::avx512 : isa, false)};
}

// What one worker needs, for each head of those that read together.
template <class Real>
struct top_k_scratch {
  static constexpr index_t score_stride = middle_core<Real>::page_tokens + row_multiple;

  Real* angles;
  Real* row;
  Real* queries[3];  // [head][padded dim], turned and scaled: themselves, their positive and their negative parts
  Real* scores;      // [head][score_stride], of a page, or those of one head's best keys
  Real* page;        // rows that the kernels do not know, as numbers
  Real* output;
  scored<Real>* pages[max_tile_vectors];
  scored<Real>* best[max_tile_vectors];

  template <class Arena>
  top_k_scratch(Arena& arena, const top_k_job<Real>& job) {
    const index_t padded_dim = job.middle->padded_dim(), heads = job.heads_together();
    const index_t padded_v_dim = round_up(job.middle->shape().v_head_dim, row_multiple);
    angles = arena.template take<Real>(row_turner<Real>::angle_count(job.encoding));
    row = arena.template take<Real>(max_head_dim);
    for (Real*& part : queries) part = arena.template take<Real>(max_tile_vectors * padded_dim);
    scores = arena.template take<Real>(max(max_tile_vectors * score_stride, job.k + row_multiple));
    const bool decodes = job.middle->format() == row_format::custom;
    page = arena.template take<Real>(decodes ? middle_core<Real>::page_tokens * max(padded_dim, padded_v_dim) : 0);
    output = arena.template take<Real>(padded_v_dim);
    for (index_t h = 0; h < max_tile_vectors; ++h) {
      pages[h] = arena.template take<scored<Real>>(h < heads ? job.middle->num_pages() : 0);
      best[h] = arena.template take<scored<Real>>(h < heads ? job.k : 0);
    }
  }
};

// One token, and some heads of a group. Pages are read until none is left whose bound reaches the k-th best score of a head:
//
//     score of a key  =  sum_d q_d key_d  <=  sum_{q_d > 0} q_d largest_d  +  sum_{q_d < 0} q_d smallest_d   of its page
template <class Real>
class top_k_search {
 public:
  top_k_search(const kernel_table<Real>& kernels, const top_k_job<Real>& job, const top_k_scratch<Real>& scratch)
      : kernels_(kernels),
        job_(job),
        middle_(*job.middle),
        scratch_(scratch),
        turner_(kernels, job.encoding, job.q.dim, scratch.angles),
        padded_dim_(middle_.padded_dim()),
        padded_v_dim_(round_up(middle_.shape().v_head_dim, row_multiple)) {
    turner_.move_to(static_cast<std::uint64_t>(job.distance));
  }

  // Returns how many pages were read.
  index_t attend(index_t token, index_t first_head, index_t num_heads) {
    const index_range keys = job_.keys_of(job_.query_of(token));
    kv_head_ = first_head / job_.group();
    num_heads_ = num_heads;
    index_t pages_read = 0;
    for (index_t& count : num_best_) count = 0;
    if (keys.size() > 0 && job_.k > 0) {
      pack(token, first_head);
      pages_read = search(keys);
    }
    for (index_t h = 0; h < num_heads; ++h) write(token, first_head + h, h);
    return pages_read;
  }

 private:
  static constexpr index_t page_tokens = middle_core<Real>::page_tokens;
  static constexpr Real read_already = -largest_finite<Real>;  // no score that is kept is as low

  // Queries of all heads, with zeros for those that make their number one that the kernels take.
  void pack(index_t token, index_t first_head) {
    num_rows_ = num_heads_ == 3 ? 4 : static_cast<int>(num_heads_);
    for (index_t h = 0; h < num_rows_; ++h) {
      Real* const own = scratch_.queries[0] + h * padded_dim_;
      Real *const positive = scratch_.queries[1] + h * padded_dim_, *const negative =
                                                                        scratch_.queries[2] + h * padded_dim_;
      if (h < num_heads_) turner_.turn(read_query(kernels_, job_.q, token, first_head + h, scratch_.row), own);
      for (index_t d = h < num_heads_ ? job_.q.dim : 0; d < padded_dim_; ++d) own[d] = 0;
      Real sum = 0;
      for (index_t d = 0; d < padded_dim_; ++d) {
        own[d] *= job_.scale;
        positive[d] = max_of(own[d], 0);
        negative[d] = own[d] - positive[d];
        sum += positive[d] - negative[d];
      }
      size_of_query_[h] = sum;
    }
  }

  // Rows of a page as the kernels for a few queries read them.
  stored_rows rows_of(const row_store<Real>& store, index_t first, index_t last, bool keys) {
    const row_run run = store.run_from(kv_head_, first);
    stored_rows rows = {};
    rows.format = store.format;
    rows.num_keys = last - first;
    rows.keys = rows.values = run.first_row;
    rows.key_row_bytes = rows.value_row_bytes = run.row_bytes;
    rows.key_scales = rows.value_scales = run.scales;
    if (store.format != row_format::custom) return rows;
    const index_t padded = keys ? padded_dim_ : padded_v_dim_;
    for (index_t i = 0; i < rows.num_keys; ++i) {
      Real* const numbers = scratch_.page + i * padded;
      store.read(kernels_, run.first_row + i * run.row_bytes, run.scales == nullptr ? 1.0f : run.scales[i], numbers);
      for (index_t d = store.dim; d < padded; ++d) numbers[d] = 0;
    }
    rows.format = native_format<Real>;
    rows.keys = rows.values = reinterpret_cast<const unsigned char*>(scratch_.page);
    rows.key_row_bytes = rows.value_row_bytes = padded * static_cast<index_t>(sizeof(Real));
    return rows;
  }

  // The pages that promise each head most, so that its k-th best score is soon a high one; then the others in the order in
  // which they lie in memory, for memory is read faster in order, each once for all heads that need it.
  index_t search(index_range keys) {
    first_page_ = keys.first / page_tokens;
    num_pages_ = divide_up(keys.last, page_tokens) - first_page_;
    bound_pages();
    index_t pages_read = 0;
    for (index_t h = 0; h < num_heads_; ++h) pages_read += read_promising(h, keys);
    for (index_t p = 0; p < num_pages_; ++p)
      if (const index_range heads = heads_in_need(p); heads.size() > 0) score_page(p, keys, heads), ++pages_read;
    return pages_read;
  }
  index_t read_promising(index_t h, index_range keys) {
    constexpr index_t most_first = 16;
    scored<Real> promising[most_first];
    index_t count = 0, pages_read = 0;
    for (index_t p = 0; p < num_pages_; ++p) keep_best(scratch_.pages[h][p], promising, count, most_first);
    const auto before = [](const scored<Real>& a, const scored<Real>& b) { return better(a, b); };
    make_heap(promising, count, before);
    for (; count > 0 && promising[0].score >= worst_kept(h); ++pages_read) {
      score_page(promising[0].index, keys, {h, h + 1});
      promising[0] = promising[--count];
      sift_down(promising, 0, count, before);
    }
    return pages_read;
  }
  // What a head's keys have to reach to be among its best.
  Real worst_kept(index_t h) const { return num_best_[h] < job_.k ? read_already : scratch_.best[h][0].score; }
  // Heads that a page may hold better keys for: one of them, or more, and then all.
  index_range heads_in_need(index_t page) const {
    index_range heads = {0, 0};
    for (index_t h = 0; h < num_heads_; ++h) {
      const Real bound = scratch_.pages[h][page].score;
      if (!(bound > read_already && bound >= worst_kept(h))) continue;
      if (heads.size() > 0) return {0, num_heads_};
      heads = {h, h + 1};
    }
    return heads;
  }

  // The bounds of all pages. Both they and scores are sums of rounded products: what those may be off by, at most
  // head_dim * 2^-24 of the sum of their sizes, counts in, and what vanishes below the smallest normal number.
  void bound_pages() {
    constexpr index_t together = page_tokens, stride = together + row_multiple;
    alignas(buffer_alignment) Real of_smallest[max_tile_vectors * stride];
    stored_rows largest = {};
    largest.format = native_format<Real>;
    largest.read_once = num_rows_ == 1;
    largest.key_row_bytes = middle_.bounds_row() * static_cast<index_t>(sizeof(Real));
    for (index_t done = 0; done < num_pages_; done += together) {
      largest.num_keys = min(together, num_pages_ - done);
      const Real* const bounds = middle_.bounds_of(kv_head_, first_page_ + done);
      largest.keys = reinterpret_cast<const unsigned char*>(bounds);
      stored_rows smallest = largest;
      smallest.keys = reinterpret_cast<const unsigned char*>(bounds + padded_dim_);
      const auto score_rows = job_.one_position->score_rows;
      score_rows(scratch_.queries[1], num_rows_, padded_dim_, largest, scratch_.scores, scratch_.score_stride);
      score_rows(scratch_.queries[2], num_rows_, padded_dim_, smallest, of_smallest, stride);
      for (index_t h = 0; h < num_heads_; ++h)
        for (index_t i = 0; i < largest.num_keys; ++i) {
          const Real bound = scratch_.scores[h * scratch_.score_stride + i] + of_smallest[h * stride + i] + margin(h);
          scratch_.pages[h][done + i] = {is_finite(static_cast<double>(bound)) ? bound : largest_finite<Real>,
                                         done + i};
        }
    }
  }
  Real margin(index_t h) const {
    const Real terms = static_cast<Real>(2 * padded_dim_);
    return rounding_unit<Real> * terms * size_of_query_[h] * middle_.largest_number() + terms * smallest_normal<Real>;
  }
  static constexpr Real max_of(Real a, Real b) { return a > b ? a : b; }

  // For one head, or for all of them.
  void score_page(index_t page, index_range keys, index_range heads) {
    const index_t number = first_page_ + page;
    const index_t first = max(keys.first, number * page_tokens), last = min(keys.last, (number + 1) * page_tokens);
    stored_rows rows = rows_of(middle_.keys(number), first, last, true);
    rows.read_once = heads.size() == 1;
    job_.one_position->score_rows(scratch_.queries[0] + heads.first * padded_dim_, heads.size() == 1 ? 1 : num_rows_,
                                  padded_dim_, rows, scratch_.scores, scratch_.score_stride);
    for (index_t h = heads.first; h < heads.last; ++h) {
      if (scratch_.pages[h][page].score == read_already) continue;
      const Real* const scores = scratch_.scores + (h - heads.first) * scratch_.score_stride;
      Real reached = worst_kept(h);
      for (index_t i = 0; i < last - first; ++i) {
        if (!(scores[i] >= reached)) continue;  // nor NaN
        offer(h, {scores[i], first + i});
        reached = worst_kept(h);
      }
      scratch_.pages[h][page].score = read_already;
    }
  }

  void offer(index_t h, const scored<Real>& key) {
    if (key.score > read_already) keep_best(key, scratch_.best[h], num_best_[h], job_.k);
  }
  // Of all that are offered the best `most`: once there are as many, a heap whose first is the worst.
  static void keep_best(const scored<Real>& offered, scored<Real>* best, index_t& count, index_t most) {
    const auto before = [](const scored<Real>& a, const scored<Real>& b) { return better(b, a); };
    if (count < most) {
      best[count++] = offered;
      if (count == most) make_heap(best, count, before);
    } else if (better(offered, best[0])) {
      best[0] = offered;
      sift_down(best, 0, count, before);
    }
  }

  // The result of head number h, from its best keys in their order.
  void write(index_t token, index_t head, index_t h) {
    scored<Real>* const best = scratch_.best[h];
    const index_t count = num_best_[h];
    heap_sort(best, count, [](const scored<Real>& a, const scored<Real>& b) { return a.index < b.index; });
    Real* const weights = scratch_.scores;
    for (index_t i = 0; i < count; ++i) weights[i] = best[i].score;
    const auto& kernels = *job_.one_position;
    kernels.adjust_scores(weights, count, job_.soft_cap, Real(0), nullptr, 0, 0, 0);
    Real sum = 0;
    const Real most = kernels.softmax(weights, count, &sum);
    for (index_t d = 0; d < padded_v_dim_; ++d) scratch_.output[d] = 0;
    for (index_t i = 0, in_a_row; i < count; i += in_a_row) {
      in_a_row = keys_in_a_row(best + i, count - i);
      const index_t key = best[i].index;
      const stored_rows rows = rows_of(middle_.values(key / page_tokens), key, key + in_a_row, false);
      kernels.add_values(weights + i, 0, 1, padded_v_dim_, rows, scratch_.output);
    }
    const Real scale = normaliser<Real>(sum, most, nullptr);
    for (index_t d = 0; d < job_.out.dim; ++d) scratch_.output[d] *= scale;
    write_tensor_row(kernels_, job_.out, token, head, scratch_.output);
    write_number(job_.lse, token, head, log_sum_exp(sum, most) + bias_of(head));
  }

  // Of `count` keys, those from the first on that follow one another in a page.
  static index_t keys_in_a_row(const scored<Real>* keys, index_t count) {
    index_t in_a_row = 1;
    while (in_a_row < count && keys[in_a_row].index == keys->index + in_a_row &&
           keys[in_a_row].index % page_tokens != 0)
      ++in_a_row;
    return in_a_row;
  }

  // All keys are at one distance: their bias is no part of the weights, which it would only round.
  double bias_of(index_t head) const {
    const position_data& encoding = job_.encoding;
    if (encoding.slopes != nullptr) return -encoding.slopes[head] * static_cast<double>(job_.distance);
    if (encoding.biases == nullptr) return 0;
    return encoding.biases->row(head, double{})[min(job_.distance, encoding.biases->num_distances())] / log2_e;
  }

  const kernel_table<Real>& kernels_;
  const top_k_job<Real>& job_;
  const middle_core<Real>& middle_;
  const top_k_scratch<Real>& scratch_;
  row_turner<Real> turner_;
  index_t padded_dim_;
  index_t padded_v_dim_;
  index_t kv_head_ = 0;
  index_t num_heads_ = 0;
  int num_rows_ = 0;  // of queries: the heads, and zeros
  index_t first_page_ = 0;
  index_t num_pages_ = 0;
  index_t num_best_[max_tile_vectors] = {};
  Real size_of_query_[max_tile_vectors] = {};
};

// What the executor calls: a task is one token and the heads of a group that read together.
template <class Real>
struct top_k_task {
  const kernel_table<Real>& kernels;
  const top_k_job<Real>& job;
  unsigned char* memory;
  index_t bytes_per_worker;
  std::atomic<index_t>& pages_read;

  index_t sets_of_group() const { return divide_up(job.group(), job.heads_together()); }
  index_t num_tasks() const { return job.q.tokens * job.middle->shape().num_kv_heads * sets_of_group(); }

  void operator()(index_t number, index_t worker) const noexcept {
    scratch_arena arena(memory + worker * bytes_per_worker);
    const top_k_scratch<Real> scratch(arena, job);
    const index_t set = number % sets_of_group(), of_kv_head = number / sets_of_group();
    const index_t kv_head = of_kv_head % job.middle->shape().num_kv_heads,
                  token = of_kv_head / job.middle->shape().num_kv_heads;
    const index_t done = set * job.heads_together();
    const index_t read =
        top_k_search<Real>(kernels, job, scratch)
            .attend(token, kv_head * job.group() + done, min(job.heads_together(), job.group() - done));
    pages_read.fetch_add(read, std::memory_order_relaxed);
  }
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
