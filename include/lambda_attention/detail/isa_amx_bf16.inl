// What AMX adds to AVX-512 BF16, inside whose namespace this is. Included by kernels.hpp.
//
// Eight registers of 16 rows of 16 words. All are used whole, so one configuration serves all.

struct alignas(64) matrix_configuration {
  unsigned char palette = 1;
  unsigned char start_row = 0;
  unsigned char reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// While one lives, the matrix registers may be used.
class matrix_unit {
 public:
  matrix_unit() {
    static constexpr matrix_configuration whole_registers;
    __asm__ volatile("ldtilecfg %0" : : "m"(whole_registers));
  }
  ~matrix_unit() { __asm__ volatile("tilerelease"); }
  matrix_unit(const matrix_unit&) = delete;
  matrix_unit& operator=(const matrix_unit&) = delete;
};

template <int Register>
LAMBDA_ATTENTION_INLINE void clear_matrix() {
  __asm__ volatile("tilezero {%%|}tmm%c0" : : "i"(Register));
}
template <int Register>
LAMBDA_ATTENTION_INLINE void load_matrix(const void* first_row, index_t row_bytes) {
  __asm__ volatile("{tileloadd (%0,%1,1), %%tmm%c2|tileloadd tmm%c2, [%0+%1*1]}"
                   :
                   : "r"(first_row), "r"(row_bytes), "i"(Register)
                   : "memory");
}
template <int Register>
LAMBDA_ATTENTION_INLINE void store_matrix(float* first_row, index_t row_bytes) {
  __asm__ volatile("{tilestored %%tmm%c2, (%0,%1,1)|tilestored [%0+%1*1], tmm%c2}"
                   :
                   : "r"(first_row), "r"(row_bytes), "i"(Register)
                   : "memory");
}
// Sum[i][j] += the products of the pairs in A[i][k] and B[k][j], over k.
template <int Sum, int A, int B>
LAMBDA_ATTENTION_INLINE void add_matrix_products() {
  __asm__ volatile("{tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps tmm%c0, tmm%c1, tmm%c2}"
                   :
                   : "i"(Sum), "i"(A), "i"(B));
}
