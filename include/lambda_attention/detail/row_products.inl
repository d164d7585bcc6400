// The products of rows, as they are stored, with the queries of a few heads, a vector along the row, and their softmax. Over
// operands, as tile.inl is. Included by single_position.inl and single_position_pairs.inl.

// The products of the rows [first, first + count) with the query of each head, dims [d, d + Columns * lanes) of them: vectors
// of sums that are still to be added up. The queries, ordered as runs are, stay in registers, and rows are read strictly in
// order, as the hardware prefetches them.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void multiply_columns(const Real* queries, index_t padded_dim, const stored_rows& rows,
                                              index_t first, index_t count, index_t d,
                                              vector_of<Real> (*products)[vectors<Real>::lanes]) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int run = vectors_at_once<Format, Columns>;
  vector_of<Real> query[Heads][Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) query[h][c] = load(queries + h * padded_dim + d + c * lanes);
  }
  constexpr index_t element_size = element_bytes<Format>, num_bytes = Columns * lanes * element_size;
  row_fetcher fetcher = fetcher_of_keys(rows, first, d * element_size, num_bytes, padded_dim * element_size);
  const bool asks_for_one = Heads == 1 && asks_for_one_query(rows);
  const unsigned char* key = rows.keys + first * rows.key_row_bytes + d * element_size;
  for (index_t k = 0; k < count; ++k, key += rows.key_row_bytes) {
    if constexpr (Heads > 1) fetch<num_bytes>(fetcher);
    if (asks_for_one) fetch_for_one_query<num_bytes>(key);
    vector_of<Real> acc[Heads];
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) acc[h] = d == 0 ? vector_of<Real>{} : products[h][k];
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; c += run) {
      vector_of<Real> element[run];
      load_run<Format, run, Real>(key + c * lanes * element_size, element);
      LAMBDA_ATTENTION_UNROLL
      for (int v = 0; v < run; ++v) {
        LAMBDA_ATTENTION_UNROLL
        for (int h = 0; h < Heads; ++h) acc[h] = multiply_add(query[h][c + v], element[v], acc[h]);
      }
    }
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) products[h][k] = acc[h];
  }
}

// All dims from d on, `Columns` vectors at a time, and fewer for the rest.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void multiply_rows(const Real* queries, index_t padded_dim, const stored_rows& rows,
                                           index_t first, index_t count, index_t d,
                                           vector_of<Real> (*products)[vectors<Real>::lanes]) {
  constexpr index_t width = Columns * vectors<Real>::lanes;
  for (; d + width <= padded_dim; d += width)
    multiply_columns<Format, Heads, Columns>(queries, padded_dim, rows, first, count, d, products);
  if constexpr (Columns > 1)
    multiply_rows<Format, Heads, columns_of_smaller_run<Columns>>(queries, padded_dim, rows, first, count, d, products);
}

// Rows of numbers, ordered as runs are where blocks of several columns take them.
template <row_format Format, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void order_as_runs(const Real* rows, int num_rows, index_t padded_dim, Real* ordered) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int run = vectors_at_once<Format, Columns>;
  constexpr index_t block = lanes * (Columns == 8 ? columns_of_smaller_run<8> : Columns);
  for (int row = 0; row < num_rows; ++row, rows += padded_dim, ordered += padded_dim) {
    const index_t in_blocks = padded_dim / block * block;
    for (index_t d = 0; d < in_blocks; d += run * lanes) {
      vector_of<Real> numbers[run];
      load_in_order_of_runs<run>(rows + d, numbers);
      for (int v = 0; v < run; ++v) store(ordered + d + v * lanes, numbers[v]);
    }
    for (index_t d = in_blocks; d < padded_dim; d += lanes) store(ordered + d, load(rows + d));
  }
}

template <row_format Format, int Heads, class Real>
void score_rows_of(const Real* queries, index_t padded_dim, const stored_rows& rows, Real* scores,
                   index_t score_stride) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int columns = columns_for<Heads>;
  alignas(vector_bytes) Real ordered[Heads * max_head_dim];
  order_as_runs<Format, columns>(queries, Heads, padded_dim, ordered);
  for (index_t first = 0; first < rows.num_keys; first += lanes) {
    const index_t rest = rows.num_keys - first;
    const index_t count = rest < lanes ? rest : lanes;
    vector_of<Real> products[Heads][lanes];
    if (count < lanes) std::memset(products, 0, sizeof products);
    multiply_rows<Format, Heads, columns>(ordered, padded_dim, rows, first, count, 0, products);
    for (int h = 0; h < Heads; ++h) {
      Real* const score = scores + h * score_stride + first;
      const vector_of<Real> sums = sums_of_rows(products[h]);
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
      const vector_of<Real> power = score <= Real(hidden_score) ? broadcast(Real(0)) : weight_of<Real>(score - max);
      const vector_of<Real> weight = as_multiplied(power);
      store(scores + k, weight);
      part += weight;
    }
    total += part;
  }
  *sum = sum_of_lanes<Real>(total);
  return max;
}
