// Rows as a storage keeps them.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/position/none.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../tensors.hpp"

/// A row after encode() and decode().
template <class Storage>
std::vector<typename Storage::compute_type> stored(const std::vector<typename Storage::compute_type>& row) {
  using lambda_attention::index_t;
  const index_t dim = static_cast<index_t>(row.size());
  std::vector<std::max_align_t> memory(static_cast<std::size_t>(Storage::row_bytes(dim)) / sizeof(std::max_align_t) +
                                       1);
  const float scale = Storage::encode(row.data(), dim, memory.data());
  std::vector<typename Storage::compute_type> result(row.size());
  Storage::decode(memory.data(), scale, dim, result.data());
  return result;
}

/// The tensor with all rows as stored, but those of the sinks, which a cache keeps as they are.
template <class Storage>
dense<typename Storage::compute_type> stored(const dense<typename Storage::compute_type>& tensor,
                                             lambda_attention::index_t num_sinks) {
  using lambda_attention::index_t;
  dense<typename Storage::compute_type> result = tensor;
  for (index_t t = num_sinks; t < tensor.tokens; ++t) {
    for (index_t h = 0; h < tensor.heads; ++h) {
      const auto* const row = tensor.view().row(t, h);
      const std::vector<typename Storage::compute_type> kept = stored<Storage>({row, row + tensor.dim});
      std::copy(kept.begin(), kept.end(), result.view().row(t, h));
    }
  }
  return result;
}

/// A stream through a cache, in steps of `step` tokens, attends to exactly the stored rows: compared with the formula
/// on these.
template <class Storage>
void expect_attention_to_stored_rows(lambda_attention::index_t step) {
  namespace la = lambda_attention;
  using real = typename Storage::compute_type;
  const la::lambda_shape shape = la::lm_infinite(3, 11);
  const la::none position;
  const la::index_t n = 61;
  // In pairs, weights and queries are rounded to bfloat16. Matrices take none of these dims.
  const bool in_pairs = Storage::format == la::row_format::bf16 && la::isa() == la::isa_level::avx512_bf16;
  const double bound = in_pairs ? 1e-5 : sizeof(real) == 8 ? 1e-24 : 1e-11;
  for (const la::index_t dim : {5, 16, 40}) {
    sequence<real> s(n, 6, 2, dim, dim + 3);
    la::kv_cache_options options;
    options.max_append = 9;
    la::kv_cache<Storage, la::none> cache(shape, position, 2, dim, dim + 3, options);
    for (la::index_t first = 0; first < n; first += step) {
      const la::index_t count = std::min(step, n - first);
      la::attend(s.q.view().slice(first, count), s.k.view().slice(first, count), s.v.view().slice(first, count), cache,
                 s.out.view().slice(first, count));
    }
    sequence<real> kept = s;
    kept.k = stored<Storage>(s.k, shape.num_sinks);
    kept.v = stored<Storage>(s.v, shape.num_sinks);
    EXPECT_LE(nmse(s.out.elements, expected(kept, shape, position)), bound)
        << "head_dim " << dim << ", steps of " << step;
  }
}

/// The same, token by token and in chunks.
template <class Storage>
void expect_attention_to_stored_rows() {
  for (const lambda_attention::index_t step : {1, 3, 9, 30}) expect_attention_to_stored_rows<Storage>(step);
}
