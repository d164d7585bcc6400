// Heaps in a caller's memory. Not those of std, which bring functions that units of other flags share.
#pragma once

#include <lambda_attention/config.hpp>

#include <utility>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The first of a heap is the one that comes before all others: before(a, b).
template <class T, class Before>
void sift_down(T* heap, index_t place, index_t size, Before&& before) {
  for (index_t child; (child = 2 * place + 1) < size; place = child) {
    if (child + 1 < size && before(heap[child + 1], heap[child])) ++child;
    if (!before(heap[child], heap[place])) return;
    std::swap(heap[place], heap[child]);
  }
}

template <class T, class Before>
void make_heap(T* heap, index_t size, Before&& before) {
  for (index_t place = size / 2; place-- > 0;) sift_down(heap, place, size, before);
}

// Sorts in place, the one that comes before all others first.
template <class T, class Before>
void heap_sort(T* items, index_t size, Before&& before) {
  const auto after = [&](const T& a, const T& b) { return before(b, a); };
  make_heap(items, size, after);
  for (index_t end = size; end-- > 1;) {
    std::swap(items[0], items[end]);
    sift_down(items, 0, end, after);
  }
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
