#include <lambda_attention/detail/heap.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

namespace {
// Random numbers, some of them equal. Of a type of ours, as all that is sorted.
struct item {
  int number;
};
bool before(const item& a, const item& b) { return a.number < b.number; }

std::vector<item> random_items(index_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<item> items;
  for (index_t i = 0; i < size; ++i) items.push_back({static_cast<int>(random() % 50)});
  return items;
}
}  // namespace

TEST(Heap, SortsAnyNumberOfItems) {
  for (index_t size = 0; size < 100; ++size) {
    std::vector<item> items = random_items(size, static_cast<std::uint32_t>(size)), expected = items;
    la::detail::heap_sort(items.data(), size, before);
    std::sort(expected.begin(), expected.end(), before);
    for (std::size_t i = 0; i < items.size(); ++i) ASSERT_EQ(items[i].number, expected[i].number) << size;
  }
}

TEST(Heap, HasTheFirstOfAllInFront) {
  std::vector<item> heap = random_items(60, 3);
  la::detail::make_heap(heap.data(), 60, before);
  for (index_t size = 60; size > 0; --size) {
    const auto first = std::min_element(heap.begin(), heap.begin() + size, before);
    ASSERT_EQ(heap[0].number, first->number) << size;
    heap[0] = heap[static_cast<std::size_t>(size - 1)];
    la::detail::sift_down(heap.data(), 0, size - 1, before);
  }
}
