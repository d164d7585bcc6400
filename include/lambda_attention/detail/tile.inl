// A tile of queries against runs of keys: S^T = K Q^T, P = 2^(S - max), O^T += V^T P^T. Lanes are queries; elements of keys
// and values are broadcast from their rows. Over operands: included by kernel_text.inl, and by kernel_text_pairs.inl.

// Running maxima are replaced only when a score exceeds its own by this much (in log2): P stays below 2^40, and sums below
// 2^40 * n, far inside the range of a float.
inline constexpr int lazy_rescale = 40;

// Where logits ascend, as with ALiBi, maxima are replaced again and again. So a maximum that is replaced goes this much
// above the scores, the first excepted, and takes along what lanes beside it are this near to their own limit.
inline constexpr int rescale_margin = 30;

template <class Real>
void begin_tile(tile_state<Real>& tile) {
  constexpr int lanes = vectors<Real>::lanes;
  for (index_t lane = 0; lane < tile.width; lane += lanes) {
    store(tile.running_max + lane, broadcast(Real(first_running_max)));
    store(tile.sum + lane, broadcast(Real(0)));
    store(tile.sum_of_block + lane, broadcast(Real(0)));
  }
  const index_t padded_dim = (tile.v_head_dim + row_multiple - 1) / row_multiple * row_multiple;
  for (index_t i = 0; i < padded_dim * tile.width; i += lanes) store(tile.output + i, broadcast(Real(0)));
}

// acc[k][v] = <key k, queries of vector v>
template <int Keys, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void inner_products(const Real* __restrict key, index_t key_stride,
                                            const Real* __restrict queries, index_t width, index_t num_words,
                                            vector_of<Real> (&acc)[Keys][Vectors]) {
  constexpr int lanes = vectors<Real>::lanes;
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) acc[k][v] = vector_of<Real>{};
  }
  LAMBDA_ATTENTION_UNROLL_TWICE
  for (index_t d = 0; d < num_words; ++d) {
    vector_of<Real> query[Vectors];
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) query[v] = load(queries + v * lanes);
    LAMBDA_ATTENTION_UNROLL
    for (int k = 0; k < Keys; ++k) {
      const vector_of<Real> element = broadcast_word(key + k * key_stride);
      LAMBDA_ATTENTION_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[k][v] = multiply_add(element, query[v], acc[k][v]);
    }
    queries += width;
    ++key;
  }
}

// Soft cap and biases of the scores of `num_keys` keys, in memory. Not on the fast path.
template <class Real>
__attribute__((noinline)) void adjust_block(const tile_state<Real>& tile, const tile_keys<Real>& keys,
                                            index_t first_key, int num_keys, Real* scores) {
  constexpr int lanes = vectors<Real>::lanes;
  for (int v = keys.first_vector; v < keys.first_vector + keys.num_vectors; ++v) {
    const vector_of<Real> position = load(tile.position + v * lanes);
    const Real* const biases = tile.bias_row[v];
    for (int k = 0; k < num_keys; ++k) {
      Real* const score = scores + k * tile.width + v * lanes;
      vector_of<Real> s = load(score);
      if (tile.soft_cap > 0) s = tanh<Real>(s / tile.soft_cap) * tile.soft_cap;
      const index_t nearest = keys.distance - keys.key_step * (first_key + k);  // of position 0
      if (biases != nullptr) {
        index_t distance = nearest + keys.lane_step * static_cast<index_t>(tile.position[v * lanes]);
        if (distance < -bias_table::margin) distance = -bias_table::margin;
        if (distance > tile.num_distances) distance = tile.num_distances;
        s += keys.lane_step != 0 ? load_loose(biases + distance) : broadcast(biases[distance]);
      }
      if (tile.has_slope)
        s -= (position * static_cast<Real>(keys.lane_step) + static_cast<Real>(nearest)) * tile.slope[v];
      store(score, s);
    }
  }
}

// Scores of `Keys` keys exceed their lanes' running maxima: raises those maxima, and rescales what was summed under the
// old ones. A maximum is a whole number, so the scale is a power of two and rescaling rounds nothing; what would not be a
// normal number any more vanishes.
//
// `scores` holds the weights 2^(score - max) of `done` keys of this block, and then `num_keys` rows of scores.
template <class Real>
__attribute__((noinline, cold)) void raise_maxima(tile_state<Real>& tile, const tile_keys<Real>& keys, Real* scores,
                                                  index_t done, int num_keys) {
  constexpr int lanes = vectors<Real>::lanes;
  for (int v = keys.first_vector; v < keys.first_vector + keys.num_vectors; ++v) {
    const vector_of<Real> old_max = load(tile.running_max + v * lanes);
    vector_of<Real> most = old_max;
    for (index_t k = done; k < done + num_keys; ++k) most = maximum(load(scores + k * tile.width + v * lanes), most);
    const mask_of<Real> exceeds = most > old_max + Real(lazy_rescale);
    if (!any(exceeds)) continue;
    const mask_of<Real> raised = most > old_max + Real(lazy_rescale - rescale_margin);
    const vector_of<Real> margin =
        old_max > Real(first_running_max) ? broadcast(Real(rescale_margin)) : broadcast(Real(0));
    // Numbers too large for the conversion are whole already.
    const mask_of<Real> huge = (most > Real(0x1p30)) | (most < Real(-0x1p30));
    const mask_of<Real> truncated = __builtin_convertvector(huge ? broadcast(Real(0)) : most, mask_of<Real>);
    const vector_of<Real> whole = huge ? most : __builtin_convertvector(truncated, vector_of<Real>);
    const vector_of<Real> new_max = raised ? whole + margin : old_max;
    const vector_of<Real> scale = raised ? exp2_of_whole<Real>(old_max - new_max) : broadcast(Real(1));
    store(tile.running_max + v * lanes, new_max);
    Real* const sum = tile.sum + v * lanes;
    Real* const sum_of_block = tile.sum_of_block + v * lanes;
    store(sum, scaled_down(load(sum), scale, lowest_normal<Real>));
    store(sum_of_block, scaled_down(load(sum_of_block), scale, lowest_normal<Real>));
    for (index_t row = 0; row < done / numbers_per_word; ++row)
      scale_word(scores + row * tile.width + v * lanes, scale);
    for (index_t d = 0; d < tile.v_head_dim; ++d) {
      Real* const output = tile.output + d * tile.width + v * lanes;
      store(output, scaled_down(load(output), scale, lowest_normal<Real>));
    }
  }
}

template <int Keys, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void store_block(Real* scores, index_t width, const vector_of<Real> (&acc)[Keys][Vectors]) {
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) store(scores + k * width + v * vectors<Real>::lanes, acc[k][v]);
  }
}
template <int Keys, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void load_block(const Real* scores, index_t width, vector_of<Real> (&acc)[Keys][Vectors]) {
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) acc[k][v] = load(scores + k * width + v * vectors<Real>::lanes);
  }
}

// Adds bias or soft cap to the scores, and hides the pairs that the mask hides.
template <int Keys, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void adjust_and_mask(const tile_state<Real>& tile, const tile_keys<Real>& keys,
                                             index_t first_key, Real* row, vector_of<Real> (&acc)[Keys][Vectors]) {
  constexpr int lanes = vectors<Real>::lanes;
  const int first = keys.first_vector;
  if (tile.soft_cap > 0 || tile.bias_row[0] != nullptr) {
    store_block(row + first * lanes, tile.width, acc);
    adjust_block(tile, keys, first_key, Keys, row);
    load_block(row + first * lanes, tile.width, acc);
  } else if (tile.has_slope) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const vector_of<Real> position = load(tile.position + (first + v) * lanes) * static_cast<Real>(keys.lane_step);
      const vector_of<Real> descent = broadcast(-tile.slope[first + v]);
      LAMBDA_ATTENTION_UNROLL
      for (int k = 0; k < Keys; ++k) {
        const Real nearest = static_cast<Real>(keys.distance - keys.key_step * (first_key + k));
        acc[k][v] = fused(position + nearest, descent, acc[k][v]);
      }
    }
  }
  if (!keys.masked) return;
  LAMBDA_ATTENTION_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const vector_of<Real> position = load(tile.position + (first + v) * lanes);
    const vector_of<Real> above_lowest = position - static_cast<Real>(keys.lowest + first_key);
    const vector_of<Real> below_highest = static_cast<Real>(keys.highest + first_key) - position;
    LAMBDA_ATTENTION_UNROLL
    for (int k = 0; k < Keys; ++k) {
      const mask_of<Real> visible = (above_lowest >= Real(k)) & (below_highest >= Real(-k));
      acc[k][v] = visible ? acc[k][v] : broadcast(Real(hidden_score));
    }
  }
}

// Scores of `Keys` keys, numbers `done` ... of their block -> their weights, to tile.scores. Key k of them weighs nothing where
// is_there(k) is false.
template <int Keys, int Vectors, class Real, class IsThere>
LAMBDA_ATTENTION_INLINE void weigh_block(tile_state<Real>& tile, const tile_keys<Real>& keys, index_t first_key,
                                         index_t done, vector_of<Real> (&acc)[Keys][Vectors], IsThere&& is_there) {
  constexpr int lanes = vectors<Real>::lanes;
  const index_t first_lane = keys.first_vector * lanes;
  Real* const row = tile.scores + done * tile.width;
  adjust_and_mask<Keys, Vectors>(tile, keys, first_key, row, acc);
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    if (is_there(k)) continue;
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) acc[k][v] = broadcast(Real(hidden_score));
  }

  Real* const running_max = tile.running_max + first_lane;
  mask_of<Real> exceeds = {};
  LAMBDA_ATTENTION_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    vector_of<Real> most = acc[0][v];
    LAMBDA_ATTENTION_UNROLL
    for (int k = 1; k < Keys; ++k) most = maximum(most, acc[k][v]);
    exceeds |= most > load(running_max + v * lanes) + Real(lazy_rescale);
  }
  if (__builtin_expect(any(exceeds), 0)) {
    store_block(row + first_lane, tile.width, acc);
    raise_maxima(tile, keys, tile.scores, done, Keys);
    load_block(row + first_lane, tile.width, acc);
  }
  LAMBDA_ATTENTION_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const vector_of<Real> max = load(running_max + v * lanes);
    vector_of<Real> weight[Keys];
    LAMBDA_ATTENTION_UNROLL
    for (int k = 0; k < Keys; ++k) weight[k] = weight_of<Real>(acc[k][v] - max);
    Real* const total = tile.sum_of_block + first_lane + v * lanes;
    store(total, load(total) + store_weights(tile.scores + first_lane + v * lanes, tile.width, done, weight));
  }
}

template <int Keys, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void score_block(tile_state<Real>& tile, const tile_keys<Real>& keys, index_t first_key,
                                         index_t done) {
  const index_t first_lane = keys.first_vector * vectors<Real>::lanes;
  vector_of<Real> acc[Keys][Vectors];
  inner_products<Keys, Vectors>(keys.keys + first_key * keys.key_stride, keys.key_stride, keys.queries + first_lane,
                                tile.width, words_for(tile.head_dim), acc);
  weigh_block<Keys, Vectors>(tile, keys, first_key, done, acc, [](int) { return true; });
}

// The weights of a block are added up before they come to the sum, as its values are: a float that takes in one key after the
// other is off by up to their number times 2^-24 where they weigh alike. Measured so: an NMSE of 1.6e-10 at 4096 keys.
template <int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void add_sum_of_block(tile_state<Real>& tile, index_t first_lane) {
  constexpr int lanes = vectors<Real>::lanes;
  LAMBDA_ATTENTION_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    Real* const sum = tile.sum + first_lane + v * lanes;
    Real* const of_block = tile.sum_of_block + first_lane + v * lanes;
    store(sum, load(sum) + load(of_block));
    store(of_block, broadcast(Real(0)));
  }
}

// output panel, dims [0, Dims) of it, += weights of num_keys keys times their values.
template <int Dims, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void value_block(Real* __restrict output, const Real* __restrict weights, index_t width,
                                         const Real* __restrict value, index_t value_stride, index_t num_keys) {
  constexpr int lanes = vectors<Real>::lanes;
  vector_of<Real> acc[Dims][Vectors];
  LAMBDA_ATTENTION_UNROLL
  for (int d = 0; d < Dims; ++d) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) acc[d][v] = vector_of<Real>{};
  }
  LAMBDA_ATTENTION_UNROLL_TWICE
  for (index_t k = 0; k < num_keys; ++k) {
    vector_of<Real> weight[Vectors];
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) weight[v] = load(weights + v * lanes);
    LAMBDA_ATTENTION_UNROLL
    for (int d = 0; d < Dims; ++d) {
      const vector_of<Real> element = broadcast_word(value + d);
      LAMBDA_ATTENTION_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[d][v] = multiply_add(element, weight[v], acc[d][v]);
    }
    weights += width;
    value += value_stride;
  }
  LAMBDA_ATTENTION_UNROLL
  for (int d = 0; d < Dims; ++d) {
    LAMBDA_ATTENTION_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      Real* const sum = output + d * width + v * lanes;
      store(sum, load(sum) + acc[d][v]);
    }
  }
}

// The register blocks: so many keys (dims) that their accumulators, a row of queries (weights) and a broadcast stay in
// registers, and that the accumulators are enough to hide the latency of a multiplication: 16 of 32 registers, 12 of 16.
template <int Vectors>
inline constexpr int rows_per_block = num_registers == 32 ? (Vectors == 3 ? 4 : 16 / Vectors)
                                      : Vectors == 2      ? 6
                                                          : 8;
// Few sizes, for each of them is compiled for every ISA. Where words hold two numbers, a pair needs a block of its own.
template <int Rows>
inline constexpr int rows_of_smaller_block = Rows >= 6                 ? (Rows == 16 ? 4 : 2)
                                             : Rows > numbers_per_word ? numbers_per_word
                                                                       : 1;

// Blocks of `Rows` rows, and of fewer for the rest.
template <int Rows, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void score_keys(tile_state<Real>& tile, const tile_keys<Real>& keys, index_t first, index_t k,
                                        index_t size) {
  for (; k + Rows <= size; k += Rows) score_block<Rows, Vectors>(tile, keys, first + k, k);
  if constexpr (Rows > 1) score_keys<rows_of_smaller_block<Rows>, Vectors>(tile, keys, first, k, size);
}
template <int Rows, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void add_weighted_values(Real* output, const Real* weights, index_t width, const Real* values,
                                                 index_t value_stride, index_t num_keys, index_t d, index_t dim) {
  for (; d + Rows <= dim; d += Rows)
    value_block<Rows, Vectors>(output + d * width, weights, width, values + d, value_stride, num_keys);
  if constexpr (Rows > 1)
    add_weighted_values<rows_of_smaller_block<Rows>, Vectors>(output, weights, width, values, value_stride, num_keys, d,
                                                              dim);
}

// One row of values, of which only the key at one place of each word counts.
template <int Vectors, class Real>
__attribute__((noinline)) void add_lone_key(Real* output, const Real* weights, index_t width, const Real* values,
                                            int place, index_t dim) {
  alignas(vector_bytes) Real lone[max_head_dim];
  keep_in_words(values, place, dim, lone);
  add_weighted_values<rows_per_block<Vectors>, Vectors>(output, weights, width, lone, 0, 1, 0, dim);
}

// The keys of a block, `size` of them, of which the first `missing` are not there.
template <int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void add_block(tile_state<Real>& tile, const tile_keys<Real>& keys, index_t first,
                                       index_t missing, index_t size, const Real* values) {
  constexpr int rows = rows_per_block<Vectors>;
  const index_t first_lane = keys.first_vector * vectors<Real>::lanes;
  Real* const output = tile.output + first_lane;
  const Real* const weights = tile.scores + first_lane;
  const index_t num_rows = size / numbers_per_word;
  if constexpr (numbers_per_word > 1) {
    if (missing > 0) score_block<1, Vectors>(tile, keys, first + 1, 1);
  }
  score_keys<rows, Vectors>(tile, keys, first, 2 * missing, size);
  add_sum_of_block<Vectors>(tile, first_lane);
  add_weighted_values<rows, Vectors>(output, weights + missing * tile.width, tile.width,
                                     values + missing * keys.value_stride, keys.value_stride, num_rows - missing, 0,
                                     tile.v_head_dim);
  if constexpr (numbers_per_word > 1) {
    if (missing > 0) add_lone_key<Vectors>(output, weights, tile.width, values, 1, tile.v_head_dim);
    if (size % 2 != 0)
      add_lone_key<Vectors>(output, weights + num_rows * tile.width, tile.width, values + num_rows * keys.value_stride,
                            0, tile.v_head_dim);
  }
}

template <int Vectors, class Real>
__attribute__((noinline)) void add_keys_to(tile_state<Real>& tile, const tile_keys<Real>& keys) {
  const Real* values = keys.values;
  index_t missing = keys_missing_before(keys);
  for (index_t first = -missing; first < keys.num_keys; first += keys_per_block, missing = 0) {
    const index_t rest = keys.num_keys - first;
    add_block<Vectors>(tile, keys, first, missing, rest < keys_per_block ? rest : keys_per_block, values);
    values += keys_per_block / numbers_per_word * keys.value_stride;
  }
}

template <class Real>
void add_keys(tile_state<Real>& tile, const tile_keys<Real>& keys) {
  if constexpr (tile_vectors >= 4) {
    if (keys.num_vectors == 4) add_keys_to<4>(tile, keys);
    if (keys.num_vectors == 3) add_keys_to<3>(tile, keys);
  }
  if (keys.num_vectors == 2) add_keys_to<2>(tile, keys);
  if (keys.num_vectors == 1) add_keys_to<1>(tile, keys);
}

// `lanes` rows times `scale` to one vector of words of a panel, and one vector of a panel of numbers to `lanes` rows, lane l
// times scale[l]. Rows and panels have room for dim rounded up to row_multiple; where words hold two numbers, 16 numbers
// behind the last row may be read, and a zero follows an odd dim.
template <class Real>
void pack(const Real* rows, index_t row_stride, index_t dim, Real scale, Real* panel, index_t width) {
  constexpr int lanes = vectors<Real>::lanes;
  for (index_t d = 0; d * numbers_per_word < dim; d += lanes) {
    vector_of<Real> block[lanes];
    LAMBDA_ATTENTION_UNROLL
    for (int i = 0; i < lanes; ++i) block[i] = words_of(rows + i * row_stride + d * numbers_per_word, scale);
    transpose<Real>(block);
    LAMBDA_ATTENTION_UNROLL
    for (int i = 0; i < lanes; ++i) store(panel + (d + i) * width, block[i]);
  }
}

template <class Real>
void unpack(const Real* panel, index_t width, const Real* scale, index_t dim, Real* rows, index_t row_stride) {
  constexpr int lanes = vectors<Real>::lanes;
  const vector_of<Real> factor = load(scale);
  for (index_t d = 0; d < dim; d += lanes) {
    vector_of<Real> block[lanes];
    LAMBDA_ATTENTION_UNROLL
    for (int i = 0; i < lanes; ++i) block[i] = load(panel + (d + i) * width) * factor;
    transpose<Real>(block);
    LAMBDA_ATTENTION_UNROLL
    for (int i = 0; i < lanes; ++i) store(rows + i * row_stride + d, block[i]);
  }
}
