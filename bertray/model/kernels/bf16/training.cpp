// What training needs besides: weights laid out anew after each step, their gradients, GELU, and dropout with the sum and
// the norm behind it, forward and backward. Sums and norms are in fp32.
//
// Legend: I inputs of a linear layer, O its outputs, D hidden; all are multiples of 32.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "products.h"

namespace {

constexpr int64_t ROWS_AT_A_TIME = 512;  // of both sides of a gradient, so that they stay in or near the second-level cache

// Lays out 32 columns of some rows as right-hand tiles that sum over rows, or, TRANSPOSED, as left-hand tiles of columns.
template <bool TRANSPOSED, typename Number>
void lay_out_columns(const Number* x, int64_t stride, int64_t count, bf16* to) {
  __m512i low[ROWS], high[ROWS];
  for (int64_t first = 0; first < count; first += WIDE, to += 2 * TILE) {
    pair_rows(x + first * stride, stride, count - first, low, high);
    if constexpr (TRANSPOSED) {
      transpose(low);
      transpose(high);
    }
    store_tile(to, low);
    store_tile(to + TILE, high);
  }
}

template <typename Number>
void add_column_sums(const Number* x, int64_t stride, int64_t count, float* sums) {
  Pair total = load(sums);
  for (int64_t r = 0; r < count; ++r) total = total + load(x + r * stride);
  store(sums, total);
}

template <typename Up, typename In>
int weight_gradient_of(const void* upstream_, const void* x_, int64_t num_rows, int64_t outputs, int64_t inputs,
                       float* gradient, float* bias_gradient, int num_threads) {
  const Up* upstream = static_cast<const Up*>(upstream_);
  const In* x = static_cast<const In*>(x_);
  const int64_t most = std::min(ROWS_AT_A_TIME, round_up(num_rows, WIDE));
  const Buffer<bf16> left(outputs * most), right(inputs * most);
  if (left == nullptr || right == nullptr) return 1;
  std::memset(bias_gradient, 0, outputs * sizeof(float));
  if (num_rows == 0) std::memset(gradient, 0, outputs * inputs * sizeof(float));
#pragma omp parallel num_threads(num_threads)
  {
    const Tiles tiles;
    for (int64_t first = 0; first < num_rows; first += ROWS_AT_A_TIME) {
      const int64_t count = std::min(ROWS_AT_A_TIME, num_rows - first), whole = round_up(count, WIDE);
#pragma omp for schedule(static)
      for (int64_t column = 0; column < outputs + inputs; column += WIDE) {
        if (column < outputs) {
          const Up* from = upstream + first * outputs + column;
          lay_out_columns<true>(from, outputs, count, left + column * whole);
          add_column_sums(from, outputs, count, bias_gradient + column);
        } else {
          const int64_t i = column - outputs;
          lay_out_columns<false>(x + first * inputs + i, inputs, count, right + i * whole);
        }
      }
#pragma omp for schedule(static)
      for (int64_t o = 0; o < outputs; o += WIDE) {
        for (int64_t i = 0; i < inputs; i += WIDE) {
          float* to = gradient + o * inputs + i;
          const auto nothing = [] {};
          const Left rows = left_of(left + o * whole);
          const Right columns = right_of(right + i * whole);
          if (first == 0) {
            multiply(WIDE, rows, columns, whole, to, inputs, nothing);
          } else {
            multiply<InBf16, true>(WIDE, rows, columns, whole, to, inputs, nothing);
          }
        }
      }
    }
  }
  return 0;
}

// --- GELU -------------------------------------------------------------------------------------------------------------

// x times the normal distribution's share below it, and the slope of that: share + x * density.
struct Gelu {
  __m512 value, slope;
};

inline Gelu gelu_of(__m512 x) {
  // The share by Abramowitz and Stegun 1964, 7.1.26 (error 1.5e-7), which needs the density too.
  const __m512 magnitude = _mm512_abs_ps(x);
  const __m512 power = exp2_of(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));  // e^(-x^2 / 2)
  const __m512 t = _mm512_div_ps(_mm512_set1_ps(1.0f),
                                 _mm512_fmadd_ps(magnitude, _mm512_set1_ps(0.3275911f * 0.70710678f), _mm512_set1_ps(1.0f)));
  __m512 y = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(c));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(y, t), power), _mm512_set1_ps(0.5f));
  const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 share = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(1.0f), tail), below, tail);
  const __m512 density = _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f));
  return {_mm512_mul_ps(x, share), _mm512_fmadd_ps(x, density, share)};
}

// --- dropout ----------------------------------------------------------------------------------------------------------

// Which numbers stay: a number's place and the seed, mixed well (the last mixing of MurmurHash3, by Appleby, public domain),
// make 32 bits that are uniform. Nothing is kept for the way back.
struct Dropout {
  uint64_t seed;
  uint32_t dropped;  // of 2^32
  float scale;       // of those that stay

  __mmask16 kept(int64_t place) const {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i x = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(place)));
    x = _mm512_xor_si512(_mm512_mullo_epi32(x, _mm512_set1_epi32(0x9e3779b1)), _mm512_set1_epi32(static_cast<int>(seed)));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x85ebca6b));
    x = _mm512_add_epi32(x, _mm512_set1_epi32(static_cast<int>((seed >> 32) + (place >> 32))));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 13));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0xc2b2ae35));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    return _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32(static_cast<int>(dropped)));
  }

  Pair apply(Pair x, int64_t place) const {
    const __m512 by = _mm512_set1_ps(scale);
    return {_mm512_maskz_mul_ps(kept(place), x.low, by), _mm512_maskz_mul_ps(kept(place + ROWS), x.high, by)};
  }
};

struct Moments {
  Pair mean, scale;  // scale: one over the deviation
};

Moments moments_of(const float* x, int64_t width, float epsilon) {
  Pair total = pair_of(0), squares = pair_of(0);
  for (int64_t i = 0; i < width; i += WIDE) total = total + load(x + i);
  const Pair mean = pair_of(sum(total) / width);
  for (int64_t i = 0; i < width; i += WIDE) {
    const Pair off = load(x + i) - mean;
    squares = multiply_add(off, off, squares);
  }
  return {mean, pair_of(1.0f / std::sqrt(sum(squares) / width + epsilon))};
}

}  // namespace

extern "C" {

// Weights [outputs, inputs] as right-hand tiles of x W^T, and of g W where `for_gradient` is not null.
void bertray_lay_out_weight(const float* weight, int64_t outputs, int64_t inputs, bf16* tiles, bf16* for_gradient,
                            int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t o = 0; o < outputs; o += WIDE) {
    for (int64_t i = 0; i < inputs; i += WIDE) {
      const float* from = weight + o * inputs + i;
      bf16* to = tiles + o * inputs + i * WIDE;
      for (int half = 0; half < 2; ++half) {
        __m512i row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = rounded(from + (half * ROWS + r) * inputs);
        transpose(row);
        store_tile(to + half * TILE, row);
      }
      if (for_gradient) lay_out_columns<false>(from, inputs, WIDE, for_gradient + i * outputs + o * WIDE);
    }
  }
}

// gradient [outputs, inputs] = upstream^T x and the sums of upstream's columns; each side in fp32 where it is `wide`. Returns
// 0, or 1 where memory is out.
int bertray_weight_gradient(const void* upstream, int upstream_is_wide, const void* x, int x_is_wide, int64_t num_rows,
                            int64_t outputs, int64_t inputs, float* gradient, float* bias_gradient, int num_threads) {
  const auto run = upstream_is_wide ? (x_is_wide ? weight_gradient_of<float, float> : weight_gradient_of<float, bf16>)
                                    : (x_is_wide ? weight_gradient_of<bf16, float> : weight_gradient_of<bf16, bf16>);
  return run(upstream, x, num_rows, outputs, inputs, gradient, bias_gradient, num_threads);
}

// out = gelu(x), or, with `upstream`, upstream times its slope at x; `count` is a multiple of 32.
void bertray_gelu(const bf16* x, const bf16* upstream, int64_t count, bf16* out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t i = 0; i < count; i += WIDE) {
    const Pair at = load(x + i);
    const Gelu low = gelu_of(at.low), high = gelu_of(at.high);
    store(out + i, upstream ? load(upstream + i) * Pair{low.slope, high.slope} : Pair{low.value, high.value});
  }
}

// sums = dropout(x) + residual, out = norm(sums).
void bertray_add_norm(const bf16* x, const float* residual, int64_t num_rows, int64_t width, const Dropout* dropout,
                      const float* weight, const float* bias, float epsilon, float* sums, float* out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t at = r * width;
    for (int64_t i = 0; i < width; i += WIDE) {
      store(sums + at + i, dropout->apply(load(x + at + i), at + i) + load(residual + at + i));
    }
    const Moments moments = moments_of(sums + at, width, epsilon);
    for (int64_t i = 0; i < width; i += WIDE) {
      const Pair even = (load(sums + at + i) - moments.mean) * moments.scale;
      store(out + at + i, multiply_add(even, load(weight + i), load(bias + i)));
    }
  }
}

// Gradients of x, residual, weight and bias from that of what `bertray_add_norm` gave, and the sums it kept. Returns 0, or 1
// where memory is out.
int bertray_add_norm_gradient(const float* upstream, const float* sums, int64_t num_rows, int64_t width,
                              const Dropout* dropout, const float* weight, float epsilon, bf16* x_gradient,
                              float* residual_gradient, float* weight_gradient, float* bias_gradient, int num_threads) {
  const Buffer<float> partial(2 * num_threads * width);
  if (partial == nullptr) return 1;
  std::memset(partial, 0, 2 * num_threads * width * sizeof(float));
  // A part is added up by one thread, whichever it is, so that the sums are the same each time.
  const int64_t part = (num_rows + num_threads - 1) / num_threads;
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int p = 0; p < num_threads; ++p) {
    float* const of_weight = partial + 2 * p * width;
    float* const of_bias = of_weight + width;
    for (int64_t r = p * part; r < std::min(num_rows, (p + 1) * part); ++r) {
      const int64_t at = r * width;
      const Moments moments = moments_of(sums + at, width, epsilon);
      Pair total = pair_of(0), along = pair_of(0);
      for (int64_t i = 0; i < width; i += WIDE) {
        const Pair even = (load(sums + at + i) - moments.mean) * moments.scale, up = load(upstream + at + i);
        store(of_weight + i, multiply_add(up, even, load(of_weight + i)));
        store(of_bias + i, up + load(of_bias + i));
        const Pair scaled = up * load(weight + i);
        total = total + scaled;
        along = multiply_add(scaled, even, along);
      }
      const Pair mean = pair_of(sum(total) / width), slope = pair_of(sum(along) / width);
      for (int64_t i = 0; i < width; i += WIDE) {
        const Pair even = (load(sums + at + i) - moments.mean) * moments.scale;
        const Pair gradient = (load(upstream + at + i) * load(weight + i) - mean - even * slope) * moments.scale;
        store(residual_gradient + at + i, gradient);
        store(x_gradient + at + i, dropout->apply(gradient, at + i));
      }
    }
  }
  add_parts(partial, num_threads, width, weight_gradient, bias_gradient);
  return 0;
}
}
