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
  const auto& shape = middle.shape();
  check_part({0, 0}, options);
  check_queries(q, out,
                {shape.num_kv_heads, shape.head_dim, shape.v_head_dim, "store.num_kv_heads", "store.head_dim",
                 "store.v_head_dim"},
                limits, options);
  check_lse_of_part(lse, out, {q, out});
  if (options.first_position != 0)
    refuse("attend_top_k: expected options.first_position = 0, got %lld", printable(options.first_position));
  if (k < 0 || distance < 0)
    refuse("attend_top_k: expected k >= 0 and distance >= 0, got %lld and %lld", printable(k), printable(distance));
  if (q.tokens > middle.num_tokens())
    refuse("attend_top_k: expected q.tokens <= %lld, those of the store, got %lld", printable(middle.num_tokens()),
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

// What one worker needs.
template <class Real>
struct top_k_scratch {
  Real* angles;
  Real* row;
  Real* query;   // turned and scaled; then its positive and its negative part
  Real* scores;  // of a page, or of the best keys
  Real* page;    // rows that the kernels do not know, as numbers
  Real* output;
  scored<Real>* pages;
  scored<Real>* best;

  template <class Arena>
  top_k_scratch(Arena& arena, const top_k_job<Real>& job) {
    const index_t padded_dim = job.middle->padded_dim();
    const index_t padded_v_dim = round_up(job.middle->shape().v_head_dim, row_multiple);
    angles = arena.template take<Real>(row_turner<Real>::angle_count(job.encoding));
    row = arena.template take<Real>(max_head_dim);
    query = arena.template take<Real>(3 * padded_dim);
    scores = arena.template take<Real>(max(job.k, middle_core<Real>::page_tokens) + row_multiple);
    const bool decodes = job.middle->format() == row_format::custom;
    page = arena.template take<Real>(decodes ? middle_core<Real>::page_tokens * max(padded_dim, padded_v_dim) : 0);
    output = arena.template take<Real>(padded_v_dim);
    pages = arena.template take<scored<Real>>(job.middle->num_pages());
    best = arena.template take<scored<Real>>(job.k);
  }
};

// One query. Pages are read until none is left whose bound reaches the k-th best score:
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
  index_t attend(index_t token, index_t head) {
    const index_range keys = job_.keys_of(job_.query_of(token));
    num_best_ = 0;
    kv_head_ = head / job_.group();
    index_t pages_read = 0;
    if (keys.size() > 0 && job_.k > 0) {
      pack(token, head);
      pages_read = search(keys);
    }
    write(token, head);
    return pages_read;
  }

 private:
  static constexpr index_t page_tokens = middle_core<Real>::page_tokens;
  static constexpr Real read_already = -largest_finite<Real>;  // no score that is kept is as low

  void pack(index_t token, index_t head) {
    Real* const own = scratch_.query;
    Real *const positive = own + padded_dim_, *const negative = positive + padded_dim_;
    const unsigned char* const source = job_.q.row(token, head);
    const Real* numbers = reinterpret_cast<const Real*>(source);
    if (job_.q.format != native_format<Real>) {
      read_tensor_row(kernels_, job_.q, token, head, scratch_.row);
      numbers = scratch_.row;
    }
    turner_.turn(numbers, own);
    for (index_t d = job_.q.dim; d < padded_dim_; ++d) own[d] = 0;
    Real sum = 0;
    for (index_t d = 0; d < padded_dim_; ++d) {
      own[d] *= job_.scale;
      positive[d] = max_of(own[d], 0);
      negative[d] = own[d] - positive[d];
      sum += positive[d] - negative[d];
    }
    size_of_query_ = sum;
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

  // The pages that promise most, so that the k-th best score is soon a high one; then the others in the order in which they
  // lie in memory, for memory is read faster in order.
  index_t search(index_range keys) {
    constexpr index_t most_first = 16;
    scored<Real> promising[most_first];
    const index_t first_page = keys.first / page_tokens, num_pages = divide_up(keys.last, page_tokens) - first_page;
    scored<Real>* const pages = scratch_.pages;
    bound_pages(first_page, num_pages);
    index_t num_promising = 0, pages_read = 0;
    for (index_t p = 0; p < num_pages; ++p) keep_best(pages[p], promising, num_promising, most_first);
    const auto before = [](const scored<Real>& a, const scored<Real>& b) { return better(a, b); };
    make_heap(promising, num_promising, before);
    for (; num_promising > 0 && may_hold_better(promising[0]); ++pages_read) {
      score_page(promising[0].index, keys);
      pages[promising[0].index - first_page].score = read_already;
      promising[0] = promising[--num_promising];
      sift_down(promising, 0, num_promising, before);
    }
    for (index_t p = 0; p < num_pages; ++p)
      if (may_hold_better(pages[p])) score_page(pages[p].index, keys), ++pages_read;
    return pages_read;
  }
  bool may_hold_better(const scored<Real>& page) const {
    return page.score > read_already && (num_best_ < job_.k || page.score >= scratch_.best[0].score);
  }

  // The bounds of some pages. Both they and scores are sums of rounded products: what those may be off by, at most
  // head_dim * 2^-24 of the sum of their sizes, counts in, and what vanishes below the smallest normal number.
  void bound_pages(index_t first_page, index_t num_pages) {
    constexpr index_t together = page_tokens;
    const Real margin =
        rounding_unit<Real> * static_cast<Real>(2 * padded_dim_) * size_of_query_ * middle_.largest_number() +
        static_cast<Real>(2 * padded_dim_) * smallest_normal<Real>;
    stored_rows largest = {};
    largest.format = native_format<Real>;
    largest.key_row_bytes = middle_.bounds_row() * static_cast<index_t>(sizeof(Real));
    for (index_t done = 0; done < num_pages; done += together) {
      largest.num_keys = min(together, num_pages - done);
      const Real* const bounds = middle_.bounds_of(kv_head_, first_page + done);
      alignas(buffer_alignment) Real of_smallest[together + row_multiple];
      largest.keys = reinterpret_cast<const unsigned char*>(bounds);
      job_.one_position->score_rows(scratch_.query + padded_dim_, 1, padded_dim_, largest, scratch_.scores, 0);
      stored_rows smallest = largest;
      smallest.keys = reinterpret_cast<const unsigned char*>(bounds + padded_dim_);
      job_.one_position->score_rows(scratch_.query + 2 * padded_dim_, 1, padded_dim_, smallest, of_smallest, 0);
      for (index_t i = 0; i < largest.num_keys; ++i) {
        scored<Real>& page = scratch_.pages[done + i];
        page = {scratch_.scores[i] + of_smallest[i] + margin, first_page + done + i};
        if (!is_finite(static_cast<double>(page.score))) page.score = largest_finite<Real>;
      }
    }
  }
  static constexpr Real max_of(Real a, Real b) { return a > b ? a : b; }

  void score_page(index_t page, index_range keys) {
    const index_t first = max(keys.first, page * page_tokens), last = min(keys.last, (page + 1) * page_tokens);
    const stored_rows rows = rows_of(middle_.keys(page), first, last, true);
    job_.one_position->score_rows(scratch_.query, 1, padded_dim_, rows, scratch_.scores, 0);
    for (index_t i = 0; i < last - first; ++i) offer({scratch_.scores[i], first + i});
  }

  void offer(const scored<Real>& key) {
    if (key.score > read_already) keep_best(key, scratch_.best, num_best_, job_.k);  // not NaN
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

  // The result of a query and head, from its best keys in their order.
  void write(index_t token, index_t head) {
    scored<Real>* const best = scratch_.best;
    heap_sort(best, num_best_, [](const scored<Real>& a, const scored<Real>& b) { return a.index < b.index; });
    Real* const weights = scratch_.scores;
    for (index_t i = 0; i < num_best_; ++i) weights[i] = best[i].score;
    const auto& kernels = *job_.one_position;
    kernels.adjust_scores(weights, num_best_, job_.soft_cap, Real(0), nullptr, 0, 0, 0);
    Real sum = 0;
    const Real most = kernels.softmax(weights, num_best_, &sum);
    for (index_t d = 0; d < padded_v_dim_; ++d) scratch_.output[d] = 0;
    for (index_t i = 0, count; i < num_best_; i += count) {
      count = keys_in_a_row(i);
      const index_t key = best[i].index;
      const stored_rows rows = rows_of(middle_.values(key / page_tokens), key, key + count, false);
      kernels.add_values(weights + i, 0, 1, padded_v_dim_, rows, scratch_.output);
    }
    const Real scale = normaliser<Real>(sum, most, nullptr);
    for (index_t d = 0; d < job_.out.dim; ++d) scratch_.output[d] *= scale;
    write_tensor_row(kernels_, job_.out, token, head, scratch_.output);
    write_number(job_.lse, token, head, log_sum_exp(sum, most) + bias_of(head));
  }

  // Best keys from number i on that follow one another in a page.
  index_t keys_in_a_row(index_t i) const {
    const scored<Real>* const best = scratch_.best;
    index_t count = 1;
    while (i + count < num_best_ && best[i + count].index == best[i].index + count &&
           best[i + count].index % page_tokens != 0)
      ++count;
    return count;
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
  index_t num_best_ = 0;
  Real size_of_query_ = 0;
};

// What the executor calls: a task is one query of one head.
template <class Real>
struct top_k_task {
  const kernel_table<Real>& kernels;
  const top_k_job<Real>& job;
  unsigned char* memory;
  index_t bytes_per_worker;
  std::atomic<index_t>& pages_read;

  void operator()(index_t number, index_t worker) const noexcept {
    scratch_arena arena(memory + worker * bytes_per_worker);
    const top_k_scratch<Real> scratch(arena, job);
    const index_t read = top_k_search<Real>(kernels, job, scratch).attend(number / job.q.heads, number % job.q.heads);
    pages_read.fetch_add(read, std::memory_order_relaxed);
  }
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
