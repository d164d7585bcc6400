// Text of both units. RUN returns 0 when every result is right: a mean of equal rows is that row.
// What is instantiated here must not be shared either, hence the unnamed namespace and no std::fabs.
#include <lambda_attention/lambda_attention.hpp>

int RUN();

namespace {

namespace la = lambda_attention;

constexpr la::index_t n = 100, heads = 4, kv_heads = 2, dim = 16;

template <class T>
struct tensors {
  T q[n * heads * dim], k[n * kv_heads * dim], v[n * kv_heads * dim], out[n * heads * dim];

  tensors() {
    for (T& x : q) x = T(0.5f);
    for (T& x : k) x = T(0.25f);
    for (T& x : v) x = T(2.0f);
  }
  bool right() const {
    for (const T& x : out)
      if (!(static_cast<double>(x) > 1.98 && static_cast<double>(x) < 2.02)) return false;
    return true;
  }
};

template <class T, class Position>
bool sequence(const Position& position) {
  static tensors<T> t;
  la::attend(la::token_major(t.q, n, heads, dim), la::token_major(t.k, n, kv_heads, dim),
             la::token_major(t.v, n, kv_heads, dim), la::lm_infinite(4, 16), position,
             la::token_major(t.out, n, heads, dim));
  return t.right();
}

template <class Storage, class Position>
bool stream(const Position& position) {
  static tensors<float> t;
  la::kv_cache<Storage, Position> cache(la::lm_infinite(4, 16), position, kv_heads, dim, dim);
  for (la::index_t i = 0; i < n; ++i)
    la::attend(la::token_major(t.q, n, heads, dim).slice(i, 1), la::token_major(t.k, n, kv_heads, dim).slice(i, 1),
               la::token_major(t.v, n, kv_heads, dim).slice(i, 1), cache,
               la::token_major(t.out, n, heads, dim).slice(i, 1));
  return t.right();
}

// A token over two runs of the caller's.
bool runs() {
  static tensors<float> t;
  const auto k = la::token_major(t.k, n, kv_heads, dim), v = la::token_major(t.v, n, kv_heads, dim);
  const la::key_run<float, float> halves[] = {{n / 2, k.slice(n / 2, n / 2), v.slice(n / 2, n / 2)},
                                              {0, k.slice(0, n / 2), v.slice(0, n / 2)}};
  for (la::index_t i = 0; i < n; ++i)
    la::attend(la::query_run{i, la::token_major(t.q, n, heads, dim).slice(i, 1)}, halves, 2, la::lm_infinite(4, 16),
               la::rope(dim), la::token_major(t.out, n, heads, dim).slice(i, 1));
  return t.right();
}

// The best keys of the middle.
bool retrieval() {
  static tensors<float> t;
  static float lse[n * heads];
  la::middle_store<la::bf16, la::rope> store(la::lm_infinite(4, 16), la::rope(dim), kv_heads, dim, dim);
  la::append(la::token_major(t.k, n, kv_heads, dim), la::token_major(t.v, n, kv_heads, dim), store);
  const auto out = la::token_major(t.out, n, heads, dim), q = la::token_major(t.q, n, heads, dim);
  for (la::index_t i = n; i > 0; --i, store.rewind(1))
    la::attend_top_k(q.slice(i - 1, 1), store, {3, 16},
                     la::partial_result{out.slice(i - 1, 1), la::token_major(lse, 1, heads, 1)});
  for (la::index_t i = 0; i < 20 * heads * dim; ++i)  // tokens without a middle
    if (t.out[i] != 0) return false;
  for (la::index_t i = 0; i < 20 * heads * dim; ++i) t.out[i] = 2;
  return t.right();
}

}  // namespace

int RUN() {
  const bool right = sequence<float>(la::rope(dim)) && sequence<double>(la::alibi(heads)) &&
                     stream<la::f32>(la::rope(dim)) && stream<la::f16>(la::rope(dim)) && stream<la::bf16>(la::none()) &&
                     stream<la::int8>(la::alibi(heads)) && runs() && retrieval();
  return right ? 0 : 1;
}
