// A tile of queries against runs of keys, as in tile.inl, with the products of pairs done by a matrix unit, 16 x 16 of 16 words
// at a time. Keys, queries, weights, scores and output lie as they do there; of values, the words of 16 pairs of keys are
// transposed on the way:
//
//     S^T [16 keys][16 queries]  +=  K [16 keys][16 words]     Q^T [16 words][16 queries]
//     O^T [16 dims][16 queries]  +=  V^T [16 dims][16 pairs]   P^T [16 pairs][16 queries]
//
// Included by kernel_text_matrices.inl.

inline constexpr index_t matrix_size = 16;
inline constexpr index_t keys_per_step = 2 * matrix_size;  // whose scores take two registers, whose pairs one
inline constexpr index_t dims_per_step = 2 * matrix_size;  // whose output takes two registers, whose words of a key one
static_assert(keys_per_block % keys_per_step == 0, "blocks are whole steps");

// The registers: 0 ... 3 sums, `Rows` x `Columns` of them, two to a row; 4 and 5 left factors, 6 and 7 right ones.
template <int Rows, int Columns>
LAMBDA_ATTENTION_INLINE void add_block_of_products(const void* left, index_t left_row_bytes, const float* right,
                                                   index_t right_stride) {
  load_matrix<4>(left, left_row_bytes);
  load_matrix<6>(right, 4 * right_stride);
  add_matrix_products<0, 4, 6>();
  if constexpr (Columns == 2) {
    load_matrix<7>(right + matrix_size, 4 * right_stride);
    add_matrix_products<1, 4, 7>();
  }
  if constexpr (Rows == 2) {
    load_matrix<5>(static_cast<const unsigned char*>(left) + matrix_size * left_row_bytes, left_row_bytes);
    add_matrix_products<2, 5, 6>();
    if constexpr (Columns == 2) add_matrix_products<3, 5, 7>();
  }
}
LAMBDA_ATTENTION_INLINE void clear_sums() {
  clear_matrix<0>();
  clear_matrix<1>();
  clear_matrix<2>();
  clear_matrix<3>();
}
template <int Rows, int Columns>
LAMBDA_ATTENTION_INLINE void store_sums(float* first, index_t stride) {
  store_matrix<0>(first, 4 * stride);
  if constexpr (Columns == 2) store_matrix<1>(first + matrix_size, 4 * stride);
  if constexpr (Rows == 2) store_matrix<2>(first + matrix_size * stride, 4 * stride);
  if constexpr (Rows == 2 && Columns == 2) store_matrix<3>(first + matrix_size * stride + matrix_size, 4 * stride);
}
template <int Columns>
LAMBDA_ATTENTION_INLINE void load_sums(const float* first, index_t stride) {
  load_matrix<0>(first, 4 * stride);
  load_matrix<2>(first + matrix_size * stride, 4 * stride);
  if constexpr (Columns == 2) {
    load_matrix<1>(first + matrix_size, 4 * stride);
    load_matrix<3>(first + matrix_size * stride + matrix_size, 4 * stride);
  }
}

// Calls visit(first lane, columns) for the vectors of a tile that see the keys, two at a time.
template <int Count>
struct columns {
  static constexpr int count = Count;
};
template <class Visit>
LAMBDA_ATTENTION_INLINE void for_each_column(const tile_keys<float>& keys, Visit&& visit) {
  int done = 0;
  for (; done + 2 <= keys.num_vectors; done += 2) visit((keys.first_vector + done) * matrix_size, columns<2>{});
  if (done < keys.num_vectors) visit((keys.first_vector + done) * matrix_size, columns<1>{});
}

// Whole steps of keys, of which those numbers [first, last) are there. A step lies in its rings as a whole, whatever is there.
struct key_steps {
  const float* keys;
  const float* values;  // a row for two keys
  index_t num_keys;
  index_t first;
  index_t last;

  bool lacks_some_of_step(index_t key) const { return key < first || key + keys_per_step > last; }
};

// Scores, to tile.scores.
LAMBDA_ATTENTION_INLINE void multiply_keys(const tile_state<float>& tile, const tile_keys<float>& keys,
                                           const key_steps& steps) {
  const index_t num_words = words_for(tile.head_dim);
  for (index_t k = 0; k < steps.num_keys; k += keys_per_step) {
    for_each_column(keys, [&](index_t lane, auto at_once) {
      clear_sums();
      for (index_t word = 0; word < num_words; word += matrix_size)
        add_block_of_products<2, at_once.count>(steps.keys + k * keys.key_stride + word, 4 * keys.key_stride,
                                                keys.queries + word * tile.width + lane, tile.width);
      store_sums<2, at_once.count>(tile.scores + k * tile.width + lane, tile.width);
    });
  }
}

// Scores -> weights, in place. `first`: number of the first key of the steps among those of the run.
template <int Vectors>
LAMBDA_ATTENTION_INLINE void weigh_steps(tile_state<float>& tile, const tile_keys<float>& keys, index_t first,
                                         const key_steps& steps) {
  constexpr int at_once = 4;
  for (index_t k = 0; k < steps.num_keys; k += at_once) {
    floats acc[at_once][Vectors];
    load_block(tile.scores + k * tile.width + keys.first_vector * matrix_size, tile.width, acc);
    weigh_block<at_once, Vectors>(tile, keys, first + k, k, acc,
                                  [&](int i) { return k + i >= steps.first && k + i < steps.last; });
  }
}

// A part of the values of a step, two rows of registers wide, with zeros for the keys that are not there: what weighs nothing
// still spoils a sum if it is no number.
LAMBDA_ATTENTION_INLINE void copy_values_there(const float* values, index_t stride, index_t step,
                                               const key_steps& steps, float* copy) {
  for (index_t pair = 0; pair < matrix_size; ++pair) {
    const index_t key = step + 2 * pair;
    const auto is_there = [&](index_t k) { return k >= steps.first && k < steps.last; };
    const std::uint32_t mask = (is_there(key) ? 0xffffU : 0) | (is_there(key + 1) ? 0xffff0000U : 0);
    for (index_t d = 0; d < dims_per_step; d += matrix_size)
      store(copy + pair * dims_per_step + d, (floats)((bits_of_lanes<float>)load(values + pair * stride + d) & mask));
  }
}

// 16 words of 16 rows, row by row -> word by word.
LAMBDA_ATTENTION_INLINE void transpose_words(const float* rows, index_t stride, float* transposed, index_t width) {
  floats block[matrix_size];
  LAMBDA_ATTENTION_UNROLL
  for (int i = 0; i < matrix_size; ++i) block[i] = load(rows + i * stride);
  transpose<float>(block);
  LAMBDA_ATTENTION_UNROLL
  for (int i = 0; i < matrix_size; ++i) store(transposed + i * width, block[i]);
}

LAMBDA_ATTENTION_INLINE void multiply_values(tile_state<float>& tile, const tile_keys<float>& keys,
                                             const key_steps& steps) {
  constexpr index_t width = keys_per_block / 2;
  alignas(vector_bytes) float values[dims_per_step * width], there[matrix_size * dims_per_step];
  for (index_t d = 0; d < tile.v_head_dim; d += dims_per_step) {
    for (index_t k = 0; k < steps.num_keys; k += keys_per_step) {
      const float* rows = steps.values + k / 2 * keys.value_stride + d;
      index_t stride = keys.value_stride;
      if (steps.lacks_some_of_step(k)) {
        copy_values_there(rows, stride, k, steps, there);
        rows = there;
        stride = dims_per_step;
      }
      for (index_t half = 0; half < dims_per_step; half += matrix_size)
        transpose_words(rows + half, stride, values + half * width + k / 2, width);
    }
    for_each_column(keys, [&](index_t lane, auto at_once) {
      float* const sums = tile.output + d * tile.width + lane;
      load_sums<at_once.count>(sums, tile.width);
      for (index_t pair = 0; pair < steps.num_keys / 2; pair += matrix_size)
        add_block_of_products<2, at_once.count>(values + pair, 4 * width, tile.scores + pair * tile.width + lane,
                                                tile.width);
      store_sums<2, at_once.count>(sums, tile.width);
    });
  }
}

template <int Vectors>
__attribute__((noinline)) void add_steps_to(tile_state<float>& tile, const tile_keys<float>& keys) {
  const index_t end = (keys.missing + keys.num_keys + keys_per_step - 1) / keys_per_step * keys_per_step;
  for (index_t done = 0; done < end; done += keys_per_block) {
    const index_t first = done - keys.missing;
    const key_steps steps = {keys.keys + first * keys.key_stride,
                             keys.values + (done / 2 - keys.missing / 2) * keys.value_stride,
                             min(end - done, keys_per_block), max(0, -first), keys.num_keys - first};
    multiply_keys(tile, keys, steps);
    weigh_steps<Vectors>(tile, keys, first, steps);
    add_sum_of_block<Vectors>(tile, keys.first_vector * matrix_size);
    multiply_values(tile, keys, steps);
  }
}

template <class Real>
void add_keys(tile_state<Real>& tile, const tile_keys<Real>& keys) {
  const matrix_unit unit;
  if (keys.num_vectors == 4) add_steps_to<4>(tile, keys);
  if (keys.num_vectors == 3) add_steps_to<3>(tile, keys);
  if (keys.num_vectors == 2) add_steps_to<2>(tile, keys);
  if (keys.num_vectors == 1) add_steps_to<1>(tile, keys);
}
