// The vector types of an ISA, of `vector_bytes` bytes each. Included by isa_*.inl.

template <class Real>
struct vectors {
  typedef Real vector __attribute__((vector_size(vector_bytes)));
  typedef typename integer_of<Real>::type mask __attribute__((vector_size(vector_bytes)));
  // For arithmetic on the bits of numbers, which wraps.
  typedef typename integer_of<Real>::unsigned_type bits __attribute__((vector_size(vector_bytes)));
  // The same in memory: aligned or not, and readable whatever else was written there.
  typedef Real strict __attribute__((vector_size(vector_bytes), may_alias));
  typedef Real loose __attribute__((vector_size(vector_bytes), aligned(alignof(Real)), may_alias));
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(Real));
};

template <class Real>
using vector_of = typename vectors<Real>::vector;
template <class Real>
using mask_of = typename vectors<Real>::mask;
template <class Real>
using bits_of_lanes = typename vectors<Real>::bits;

// Powers of two below this count as zero. A product of a weight and a value then stays a normal number for values of 2^-26
// and up (2^-62 of doubles); others take Intel's processors a hundred times as long.
template <class Real>
inline constexpr Real lowest_power = sizeof(Real) == 4 ? Real(-100) : Real(-960);
template <class Real>
inline constexpr Real lowest_weight = sizeof(Real) == 4 ? Real(0x1p-100) : Real(0x1p-960);
template <class Real>
inline constexpr Real lowest_normal = sizeof(Real) == 4 ? Real(0x1p-126) : Real(0x1p-1022);

// A vector of lanes of a, by number, and of b, whose numbers go on from those of a.
// GCC 11 lacks __builtin_shufflevector.
template <int... Lane, class Vector>
LAMBDA_ATTENTION_INLINE Vector shuffled(Vector a, Vector b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Lane...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){Lane...});
#endif
}
