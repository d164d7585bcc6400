// A position encoding of your own: rows turned by a function, biases in a table. Either alone will do. Its score() and
// bias() say the same in plain terms: that is what reference.hpp computes, and what this program compares with.
#include <lambda_attention/lambda_attention.hpp>
#include <lambda_attention/reference.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace la = lambda_attention;

// Four elements turn together, as a quaternion multiplied from the left by cos(angle) + sin(angle) (i + j + k) / sqrt(3).
// Turns about one axis add up, so inner products depend on differences of positions only: all that the library asks.
// And a bias that falls with the logarithm of the distance (KERPLE), down to the last distance of the table.
class quaternion_rotation : public la::position_encoding {
 public:
  quaternion_rotation(la::index_t heads, la::index_t distances) : biases_(heads, distances) {
    for (la::index_t h = 0; h < heads; ++h)
      for (la::index_t d = 0; d < distances; ++d) biases_.set(h, d, static_cast<double>(bias(h, d)));
  }
  la::index_t num_heads() const { return biases_.num_heads(); }
  la::position_data data() const {
    la::position_data data;
    data.function = la::row_function_of(*this);
    data.biases = &biases_;
    return data;
  }

  template <class Real>
  void turn(std::uint64_t position, Real* row, la::index_t head_dim) const noexcept {
    for (Real* r = row; r + 4 <= row + head_dim; r += 4) {
      // In 2^-64 of a turn: the product wraps where the circle does, so no position is too far to be exact. The first
      // four elements turn by a radian a token, the others ever more slowly.
      const std::uint64_t turns = position * (0x28be60db9391054au >> (24 * (r - row) / head_dim));
      const double angle = static_cast<double>(turns) * (6.283185307179586 / 0x1p64);
      const Real c = static_cast<Real>(std::cos(angle)), s = static_cast<Real>(std::sin(angle) / std::sqrt(3.0));
      const Real w = r[0], x = r[1], y = r[2], z = r[3];
      r[0] = c * w - s * (x + y + z);
      r[1] = c * x + s * (w + z - y);
      r[2] = c * y + s * (w + x - z);
      r[3] = c * z + s * (w + y - x);
    }
  }

  long double score(const long double* query, const long double* key, la::index_t head_dim, la::index_t d) const {
    std::vector<long double> turned(query, query + head_dim);
    turn(static_cast<std::uint64_t>(d), turned.data(), head_dim);
    return position_encoding::score(turned.data(), key, head_dim, d);
  }
  long double bias(la::index_t head, la::index_t distance) const {
    const la::index_t d = distance < biases_.num_distances() ? distance : biases_.num_distances() - 1;
    return -0.5L / static_cast<long double>(head + 1) * std::log1p(static_cast<long double>(d));
  }

 private:
  la::bias_table biases_;
};

int main() {
  constexpr la::index_t n = 300, heads = 4, dim = 32, first_position = la::index_t{1} << 40;
  std::vector<float> q(n * heads * dim), k(q.size()), v(q.size()), out(q.size());
  std::vector<double> expected(q.size());
  std::mt19937 random(1);
  for (std::vector<float>* rows : {&q, &k, &v})
    for (float& x : *rows) x = std::normal_distribution<float>()(random);
  const auto view = [](auto& rows) { return la::token_major(rows.data(), n, heads, dim); };

  const quaternion_rotation position(heads, 50);
  const la::lambda_shape shape = la::lm_infinite(4, 64);
  la::reference::attend(view(q), view(k), view(v), shape, position, view(expected));
  la::kv_cache<la::f32, quaternion_rotation> cache(shape, position, heads, dim, dim, {64, 0, first_position});
  la::attend(view(q), view(k), view(v), cache, view(out));
  double worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i)
    worst = std::fmax(worst, std::abs(static_cast<double>(out[i]) - expected[i]));
  std::printf("largest difference from reference.hpp: %.1e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
