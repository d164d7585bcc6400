// The vector types of an ISA, of `vector_bytes` bytes each. Included by isa_*.inl.

template <class Real>
struct vectors {
  using integer = integer_as_wide_as<Real>;
  typedef Real vector __attribute__((vector_size(vector_bytes)));
  typedef integer mask __attribute__((vector_size(vector_bytes)));
  // The same in memory: aligned or not, and readable whatever else was written there.
  typedef Real strict __attribute__((vector_size(vector_bytes), may_alias));
  typedef Real loose __attribute__((vector_size(vector_bytes), aligned(alignof(Real)), may_alias));
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(Real));
};

template <class Real>
using vector_of = typename vectors<Real>::vector;
template <class Real>
using mask_of = typename vectors<Real>::mask;
