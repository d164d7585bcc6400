// Queries at a single position, 1, 2 or 4 heads of one KV head, against rows as a cache stores them: a vector along the
// row, each row read once for all heads. Rows are padded with zeros to row_multiple. Included by kernel_text.inl.

// The products of `Keys` rows with the query of each head, a vector of sums that are still to be added up; that of head h
// and key k goes to products[h * lanes + k].
template <row_format Format, int Heads, int Keys, class Real>
LAMBDA_ATTENTION_INLINE void multiply_rows(const Real* queries, index_t padded_dim, const unsigned char* key,
                                           index_t row_bytes, vector_of<Real>* products) {
  constexpr index_t lanes = vectors<Real>::lanes;
  vector_of<Real> acc[Keys][Heads] = {};
  for (index_t d = 0; d < padded_dim; d += lanes) {
    vector_of<Real> element[Keys];
    LAMBDA_ATTENTION_UNROLL
    for (int k = 0; k < Keys; ++k)
      element[k] = load_stored<Format, Real>(key + k * row_bytes + d * element_bytes<Format>);
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) {
      const vector_of<Real> query = load(queries + h * padded_dim + d);
      LAMBDA_ATTENTION_UNROLL
      for (int k = 0; k < Keys; ++k) acc[k][h] = fused(element[k], query, acc[k][h]);
    }
  }
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) products[h * lanes + k] = acc[k][h];
  }
}

// One head reads the rows strictly in order, as the hardware prefetches them; more heads share a query between a few rows.
template <int Heads>
inline constexpr int rows_at_once = Heads == 4 && vector_bytes == 64 ? 4
                                    : Heads == 1                     ? 1
                                                                     : 2;

template <row_format Format, int Heads, class Real>
void score_rows_of(const Real* queries, index_t padded_dim, const stored_rows& rows, Real* scores,
                   index_t score_stride) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int at_once = rows_at_once<Heads>;
  const unsigned char* key = rows.keys;
  for (index_t first = 0; first < rows.num_keys; first += lanes) {
    const index_t rest = rows.num_keys - first;
    const index_t count = rest < lanes ? rest : lanes;
    vector_of<Real> products[Heads][lanes];
    if (count < lanes) std::memset(products, 0, sizeof products);
    index_t k = 0;
    for (; k + at_once <= count; k += at_once, key += at_once * rows.key_row_bytes)
      multiply_rows<Format, Heads, at_once>(queries, padded_dim, key, rows.key_row_bytes, products[0] + k);
    for (; k < count; ++k, key += rows.key_row_bytes)
      multiply_rows<Format, Heads, 1>(queries, padded_dim, key, rows.key_row_bytes, products[0] + k);
    for (int h = 0; h < Heads; ++h) {
      Real* const score = scores + h * score_stride + first;
      const vector_of<Real> sums = sums_of_rows<Real>(products[h]);
      if (count == lanes) {
        store_loose(score, sums);
      } else {
        std::memcpy(score, &sums, static_cast<std::size_t>(count) * sizeof(Real));
      }
    }
  }
  if constexpr (Format == row_format::int8) {
    for (int h = 0; h < Heads; ++h)
      for (index_t k = 0; k < rows.num_keys; ++k) scores[h * score_stride + k] *= rows.key_scales[k];
  }
}

template <row_format Format, class Real>
void score_rows_in(const Real* queries, int heads, index_t padded_dim, const stored_rows& rows, Real* scores,
                   index_t score_stride) {
  if (heads == 1) score_rows_of<Format, 1>(queries, padded_dim, rows, scores, score_stride);
  if (heads == 2) score_rows_of<Format, 2>(queries, padded_dim, rows, scores, score_stride);
  if (heads == 4) score_rows_of<Format, 4>(queries, padded_dim, rows, scores, score_stride);
}

template <class Real>
void score_rows(const Real* queries, int heads, index_t padded_dim, const stored_rows& rows, Real* scores,
                index_t score_stride) {
  if constexpr (sizeof(Real) == 8) {
    score_rows_in<row_format::f64>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::f32) {
    score_rows_in<row_format::f32>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::f16) {
    score_rows_in<row_format::f16>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::bf16) {
    score_rows_in<row_format::bf16>(queries, heads, padded_dim, rows, scores, score_stride);
  } else {
    score_rows_in<row_format::int8>(queries, heads, padded_dim, rows, scores, score_stride);
  }
}

// Soft cap and bias of one head's scores; key k is at distance - key_step * k.
template <class Real>
void adjust_scores(Real* scores, index_t num_keys, Real soft_cap, Real slope, const Real* bias_row,
                   index_t num_distances, index_t distance, int key_step) {
  constexpr index_t lanes = vectors<Real>::lanes;
  if (soft_cap > 0) {
    for (index_t k = 0; k < num_keys; k += lanes) {
      alignas(vector_bytes) Real chunk[lanes] = {};
      const std::size_t bytes = static_cast<std::size_t>(num_keys - k < lanes ? num_keys - k : lanes) * sizeof(Real);
      std::memcpy(chunk, scores + k, bytes);
      store(chunk, tanh<Real>(load(chunk) / soft_cap) * soft_cap);
      std::memcpy(scores + k, chunk, bytes);
    }
  }
  if (bias_row != nullptr) {
    for (index_t k = 0; k < num_keys; ++k) {
      const index_t d = distance - key_step * k;
      scores[k] += bias_row[d < num_distances ? d : num_distances];
    }
  } else if (slope != 0) {
    for (index_t k = 0; k < num_keys; ++k) scores[k] -= slope * static_cast<Real>(distance - key_step * k);
  }
}

// scores -> 2^(score - max), in place; returns the max, *sum the sum. `scores` has room for row_multiple more than
// num_keys; what is there becomes zeros.
template <class Real>
Real softmax(Real* scores, index_t num_keys, Real* sum) {
  constexpr index_t lanes = vectors<Real>::lanes;
  const index_t padded = (num_keys + lanes - 1) / lanes * lanes;
  for (index_t k = num_keys; k < padded; ++k) scores[k] = Real(hidden_score);
  vector_of<Real> most = broadcast(Real(hidden_score));
  for (index_t k = 0; k < padded; k += lanes) most = maximum(load(scores + k), most);
  const Real max = max_of_lanes<Real>(most);
  // Sums of 64 vectors at a time, so that rounding does not grow with the number of keys.
  vector_of<Real> total = {};
  for (index_t first = 0; first < padded; first += 64 * lanes) {
    const index_t end = first + 64 * lanes < padded ? first + 64 * lanes : padded;
    vector_of<Real> part = {};
    for (index_t k = first; k < end; k += lanes) {
      const vector_of<Real> score = load(scores + k);
      const vector_of<Real> weight = score <= Real(hidden_score) ? broadcast(Real(0)) : exp2<Real>(score - max);
      store(scores + k, weight);
      part += weight;
    }
    total += part;
  }
  *sum = sum_of_lanes<Real>(total);
  return max;
}

// output[h] += weights[h] * values, `Columns` vectors of each row from dim d.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void add_value_columns(const Real* weights, index_t weight_stride, index_t padded_dim,
                                               const stored_rows& rows, index_t first, index_t last, index_t d,
                                               Real* output) {
  constexpr index_t lanes = vectors<Real>::lanes;
  vector_of<Real> acc[Heads][Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) acc[h][c] = vector_of<Real>{};
  }
  const unsigned char* value = rows.values + first * rows.value_row_bytes + d * element_bytes<Format>;
  for (index_t k = first; k < last; ++k, value += rows.value_row_bytes) {
    const Real scale = Format == row_format::int8 ? static_cast<Real>(rows.value_scales[k]) : Real(1);
    vector_of<Real> weight[Heads];
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) weight[h] = broadcast(weights[h * weight_stride + k] * scale);
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) {
      const vector_of<Real> element = load_stored<Format, Real>(value + c * lanes * element_bytes<Format>);
      LAMBDA_ATTENTION_UNROLL
      for (int h = 0; h < Heads; ++h) acc[h][c] = fused(element, weight[h], acc[h][c]);
    }
  }
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) {
      Real* const sum = output + h * padded_dim + d + c * lanes;
      store(sum, load(sum) + acc[h][c]);
    }
  }
}

// Values in runs of 64 tokens, so that what a pass over a few columns has fetched is there for the next pass, and so that
// rounding hardly grows with the number of keys.
template <row_format Format, int Heads, class Real>
void add_values_of(const Real* weights, index_t weight_stride, index_t padded_dim, const stored_rows& rows,
                   Real* output) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int columns = (vector_bytes == 64 ? 16 : 8) / Heads > 8 ? 8 : (vector_bytes == 64 ? 16 : 8) / Heads;
  constexpr index_t keys_per_run = 64;
  for (index_t first = 0; first < rows.num_keys; first += keys_per_run) {
    const index_t last = first + keys_per_run < rows.num_keys ? first + keys_per_run : rows.num_keys;
    index_t d = 0;
    for (; d + columns * lanes <= padded_dim; d += columns * lanes)
      add_value_columns<Format, Heads, columns>(weights, weight_stride, padded_dim, rows, first, last, d, output);
    for (; d < padded_dim; d += lanes)
      add_value_columns<Format, Heads, 1>(weights, weight_stride, padded_dim, rows, first, last, d, output);
  }
}

template <row_format Format, class Real>
void add_values_in(const Real* weights, index_t weight_stride, int heads, index_t padded_dim, const stored_rows& rows,
                   Real* output) {
  if (heads == 1) add_values_of<Format, 1>(weights, weight_stride, padded_dim, rows, output);
  if (heads == 2) add_values_of<Format, 2>(weights, weight_stride, padded_dim, rows, output);
  if (heads == 4) add_values_of<Format, 4>(weights, weight_stride, padded_dim, rows, output);
}

template <class Real>
void add_values(const Real* weights, index_t weight_stride, int heads, index_t padded_dim, const stored_rows& rows,
                Real* output) {
  if constexpr (sizeof(Real) == 8) {
    add_values_in<row_format::f64>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::f32) {
    add_values_in<row_format::f32>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::f16) {
    add_values_in<row_format::f16>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::bf16) {
    add_values_in<row_format::bf16>(weights, weight_stride, heads, padded_dim, rows, output);
  } else {
    add_values_in<row_format::int8>(weights, weight_stride, heads, padded_dim, rows, output);
  }
}
