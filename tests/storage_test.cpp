#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/retrieval.hpp>
#include <lambda_attention/storage.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>

#include "refusal.hpp"
#include "storage/stored.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

// Storages of our own: fixed-point numbers of 16 bits under one scale for kernels in float, float rows for kernels in
// double.
struct fixed16 {
  using compute_type = float;
  static constexpr la::row_format format = la::row_format::custom;
  static constexpr index_t row_bytes(index_t dim) { return 2 * dim; }

  static float encode(const float* row, index_t dim, void* stored) {
    float largest = 0;
    for (index_t d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(row[d]));
    const float scale = largest / 32767;
    for (index_t d = 0; d < dim; ++d)
      static_cast<std::int16_t*>(stored)[d] = static_cast<std::int16_t>(std::lrint(row[d] / scale));
    return scale;
  }
  static void decode(const void* stored, float scale, index_t dim, float* row) {
    for (index_t d = 0; d < dim; ++d) row[d] = scale * static_cast<float>(static_cast<const std::int16_t*>(stored)[d]);
  }
};

// Rows of an odd number of bytes.
struct odd_rows : fixed16 {
  static constexpr index_t row_bytes(index_t dim) { return 2 * dim + 1; }

  static float encode(const float* row, index_t dim, void* stored) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(stored) % 16, 0u);
    return fixed16::encode(row, dim, stored);
  }
};

// Rows of twice the bytes; the same of long rows alone.
struct wide16 : fixed16 {
  static constexpr index_t row_bytes(index_t dim) { return 4 * dim; }
};
struct wide16_beyond_16 : fixed16 {
  static constexpr index_t row_bytes(index_t dim) { return (dim > 16 ? 4 : 2) * dim; }
};

// Rows of no bytes, or of fewer.
template <index_t Bytes>
struct rows_of : fixed16 {
  static constexpr index_t row_bytes(index_t) { return Bytes; }
};

// Longer numbers in rows of which no block of 16 is whole.
struct whole_blocks_are_narrow {
  using compute_type = float;
  static constexpr la::row_format format = la::row_format::custom;
  static constexpr index_t row_bytes(index_t dim) { return dim % 16 == 0 ? 2 * dim : 4 * dim; }

  static float encode(const float* row, index_t dim, void* stored) {
    if (dim % 16 == 0) return fixed16::encode(row, dim, stored);
    return la::f32::encode(row, dim, stored);
  }
  static void decode(const void* stored, float scale, index_t dim, float* row) {
    if (dim % 16 == 0) return fixed16::decode(stored, scale, dim, row);
    la::f32::decode(stored, scale, dim, row);
  }
};

// Rows that are not as long as those of their format.
template <class Storage, index_t Bytes>
struct with_rows_of : Storage {
  static constexpr index_t row_bytes(index_t) { return Bytes; }
};

struct narrowed {
  using compute_type = double;
  static constexpr la::row_format format = la::row_format::custom;
  static constexpr index_t row_bytes(index_t dim) { return 4 * dim; }

  static float encode(const double* row, index_t dim, void* stored) {
    for (index_t d = 0; d < dim; ++d) static_cast<float*>(stored)[d] = static_cast<float>(row[d]);
    return 1;
  }
  static void decode(const void* stored, float /*scale*/, index_t dim, double* row) {
    for (index_t d = 0; d < dim; ++d) row[d] = static_cast<double>(static_cast<const float*>(stored)[d]);
  }
};

}  // namespace

TEST(CustomStorage, ScaledRowsDecodeAndChunks) { expect_attention_to_stored_rows<fixed16>(); }

TEST(CustomStorage, RowsAreAlignedWhateverTheirBytes) { expect_attention_to_stored_rows<odd_rows>(); }

TEST(CustomStorage, RowsForDouble) { expect_attention_to_stored_rows<narrowed>(); }

TEST(CustomStorage, LongerRowsMayHaveFewerBytes) { expect_attention_to_stored_rows<whole_blocks_are_narrow>(); }

// Keys are stored rotated; 16 bits leave an error of about 1e-9.
TEST(CustomStorage, UnderARotationInEveryLayoutOfTheCache) {
  const la::rope position(24);
  for (const la::lambda_shape& shape :
       {la::lm_infinite(3, 11), la::lambda_shape{3, 11, 5}, la::streaming_llm(3, 11), la::sliding_window(11)}) {
    for (const index_t step : {1, 7}) {
      sequence<float> s(70, 4, 2, 24, 10);
      la::kv_cache_options options;
      options.max_append = 7;
      la::kv_cache<fixed16, la::rope> cache(shape, position, 2, 24, 10, options);
      for (index_t first = 0; first < 70; first += step)
        la::attend(s.q.view().slice(first, step), s.k.view().slice(first, step), s.v.view().slice(first, step), cache,
                   s.out.view().slice(first, step));
      EXPECT_LE(nmse(s.out.elements, expected(s, shape, position)), 1e-8) << "steps of " << step;
    }
  }
}

TEST(CustomStorage, WhatDoesNotFitIsRefused) {
  const auto refused = [](auto storage, index_t window, index_t num_kv_heads) {
    return refusal(
        [&] { la::kv_cache<decltype(storage), la::none>(la::sliding_window(window), {}, num_kv_heads, 8, 8); });
  };
  EXPECT_EQ(refused(rows_of<0>{}, index_t{1} << 22, index_t{1} << 40),
            "kv_cache: expected a cache that fits in memory, got 1099511627776 heads of 33558528 bytes");
  EXPECT_EQ(refused(rows_of<-1>{}, 10, 1), "kv_cache: expected 0 <= row_bytes(dim) < 2^55 of its storage, got -1");
  EXPECT_EQ(refused(rows_of<INT64_MAX>{}, 10, 1),
            "kv_cache: expected 0 <= row_bytes(dim) < 2^55 of its storage, got 9223372036854775807");
}

TEST(CustomStorage, RowsOfAFormatThatTheKernelsKnowAreAsLongAsTheyAre) {
  const auto refused = [](auto storage) {
    using cache = la::kv_cache<decltype(storage), la::none>;
    using store = la::middle_store<decltype(storage), la::none>;
    const std::string of_cache = refusal([&] { cache(la::sliding_window(9), {}, 1, 20, 20); });
    const std::string of_store = refusal([&] { store(la::sliding_window(9), {}, 1, 20, 20); });
    const std::size_t end_of_name = of_cache.find(':');
    EXPECT_EQ(of_store, of_cache == "accepted" ? of_cache : "middle_store" + of_cache.substr(end_of_name));
    return of_cache;
  };
  const auto expected = [](int right, int wrong) {
    return "kv_cache: expected row_bytes(20) = " + std::to_string(right) + " of its storage, that of its format, got " +
           std::to_string(wrong);
  };
  EXPECT_EQ(refused(with_rows_of<la::f32, 80>{}), "accepted");
  EXPECT_EQ(refused(with_rows_of<la::f32, 20>{}), expected(80, 20));
  EXPECT_EQ(refused(with_rows_of<la::f32, 84>{}), expected(80, 84));
  EXPECT_EQ(refused(with_rows_of<la::f64, 80>{}), expected(160, 80));
  EXPECT_EQ(refused(with_rows_of<la::f16, 80>{}), expected(40, 80));
  EXPECT_EQ(refused(with_rows_of<la::bf16, 80>{}), expected(40, 80));
  EXPECT_EQ(refused(with_rows_of<la::int8, 40>{}), expected(20, 40));
}

// Of two custom storages it is their rows that differ.
TEST(CustomStorage, FilesAreOfRowsOfTheSameBytes) {
  const auto loaded = [](auto from, auto to) {
    std::stringstream file;
    la::kv_cache<decltype(from), la::none>(la::sliding_window(9), {}, 1, 16, 32).save(file);
    la::kv_cache<decltype(to), la::none> cache(la::sliding_window(9), {}, 1, 16, 32);
    return refusal([&] { cache.load(file); });
  };
  EXPECT_EQ(loaded(fixed16{}, fixed16{}), "accepted");
  EXPECT_EQ(loaded(narrowed{}, wide16{}),
            "load: expected bytes of a sink's number = 4, that of the cache, got 8 in the file");
  EXPECT_EQ(loaded(fixed16{}, wide16{}),
            "load: expected bytes of a row of keys = 64, that of the cache, got 32 in the file");
  EXPECT_EQ(loaded(fixed16{}, wide16_beyond_16{}),
            "load: expected bytes of a row of values = 128, that of the cache, got 64 in the file");
}

TEST(CustomStorage, MemoryIsWhatRowBytesSays) {
  const auto bytes = [](auto storage) {
    return la::kv_cache<decltype(storage), la::none>(la::sliding_window(1009), {}, 4, 64, 64).bytes();
  };
  const index_t rows = 4 * 2 * (1009 - 1 + 512);  // keys and values of 4 heads; max_append 512; whole cache lines
  EXPECT_EQ(bytes(la::f32{}) - bytes(la::f16{}), rows * 64 * 2);
  EXPECT_EQ(bytes(la::f16{}), bytes(la::bf16{}));
  EXPECT_EQ(bytes(la::f64{}) - bytes(la::f32{}), rows * 64 * 4);
  EXPECT_EQ(bytes(la::f16{}) - bytes(la::int8{}), rows * (64 - 4));  // int8 and its scale
  EXPECT_EQ(bytes(fixed16{}) - bytes(la::f16{}), rows * 4);          // its scale
}
