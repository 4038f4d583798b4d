// What training needs besides, in fp32: weights laid out anew after each step, their gradients, GELU, and dropout with the sum
// and the norm behind it, forward and backward. The functions are those of the kernels in bf16.
//
// Legend: I inputs of a linear layer, O its outputs, D hidden; all are multiples of 32.

#include "products.h"

namespace {

constexpr int64_t ROWS_AT_A_TIME = 384;  // of both sides of a gradient: COLUMNS of them fit a first-level cache

// Columns of x, `width` at a time, row after row; those beyond the last are zeros.
void lay_out_columns(const float* x, int64_t stride, int64_t num_rows, int64_t columns, int64_t width, float* to) {
  for (int64_t r = 0; r < num_rows; ++r, x += stride, to += width) {
    std::memcpy(to, x, columns * sizeof(float));
    std::memset(to + columns, 0, (width - columns) * sizeof(float));
  }
}

void add_column_sums(const float* x, int64_t stride, int64_t num_rows, int64_t columns, float* sums) {
  for (int64_t r = 0; r < num_rows; ++r, x += stride) {
    for (int64_t c = 0; c < columns; ++c) sums[c] += x[c];
  }
}

// Which numbers stay: a number's place and the seed, mixed well (the last mixing of MurmurHash3, by Appleby, public domain),
// make 32 bits that are uniform. Nothing is kept for the way back.
struct Dropout {
  uint64_t seed;
  uint32_t dropped;  // of 2^32
  float scale;       // of those that stay

  __m256 apply(__m256 number, int64_t place) const {
    const auto mix = [](__m256i x, int shift, uint32_t by) {
      return _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, shift)), _mm256_set1_epi32(static_cast<int>(by)));
    };
    __m256i x = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(place)));
    x = _mm256_xor_si256(_mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int>(0x9e3779b1))),
                         _mm256_set1_epi32(static_cast<int>(seed)));
    x = mix(x, 16, 0x85ebca6b);
    x = _mm256_add_epi32(x, _mm256_set1_epi32(static_cast<int>((seed >> 32) + (place >> 32))));
    x = mix(x, 13, 0xc2b2ae35);
    x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
    // Unsigned: the larger of both is itself.
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(x, _mm256_set1_epi32(static_cast<int>(dropped))), x);
    return _mm256_and_ps(_mm256_mul_ps(number, all(scale)), _mm256_castsi256_ps(kept));
  }
};

}  // namespace

extern "C" {

// Weights [outputs, inputs] as right-hand sides of x W^T, and of g W where `for_gradient` is not null.
void bertray_lay_out_weight(const float* weight, int64_t outputs, int64_t inputs, float* panels, float* for_gradient,
                            int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t o = 0; o < outputs; o += COLUMNS) {
    const float* const from = weight + o * inputs;
    float* const panel = panels + o * inputs;
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t c = 0; c < COLUMNS; ++c) panel[i * COLUMNS + c] = from[c * inputs + i];
    }
    for (int64_t i = 0; for_gradient && i < inputs; i += COLUMNS) {
      lay_out_columns(from + i, inputs, COLUMNS, COLUMNS, COLUMNS, for_gradient + i * outputs + o * COLUMNS);
    }
  }
}

// gradient [outputs, inputs] = upstream^T x and the sums of upstream's columns. Returns 0, or 1 where memory is out.
int bertray_weight_gradient(const float* upstream, int, const float* x, int, int64_t num_rows, int64_t outputs, int64_t inputs,
                            float* gradient, float* bias_gradient, int num_threads) {
  const int64_t most = std::min(ROWS_AT_A_TIME, std::max(num_rows, int64_t{1})), groups = (outputs + ROWS - 1) / ROWS;
  const Buffer<float> left(groups * ROWS * most), right(inputs * most);
  if (left == nullptr || right == nullptr) return 1;
  std::memset(bias_gradient, 0, outputs * sizeof(float));
  if (num_rows == 0) std::memset(gradient, 0, outputs * inputs * sizeof(float));
#pragma omp parallel num_threads(num_threads)
  for (int64_t first = 0; first < num_rows; first += ROWS_AT_A_TIME) {
    const int64_t count = std::min(ROWS_AT_A_TIME, num_rows - first);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < groups + inputs / COLUMNS; ++part) {
      if (part < groups) {
        const int64_t o = part * ROWS, columns = std::min<int64_t>(ROWS, outputs - o);
        const float* const from = upstream + first * outputs + o;
        lay_out_columns(from, outputs, count, columns, ROWS, left + o * most);
        add_column_sums(from, outputs, count, columns, bias_gradient + o);
      } else {
        const int64_t i = (part - groups) * COLUMNS;
        lay_out_columns(x + first * inputs + i, inputs, count, COLUMNS, COLUMNS, right + i * most);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < inputs; i += COLUMNS) {
      for (int64_t o = 0; o < outputs; o += ROWS) {
        const auto multiply = first == 0 ? product_of<From::ZERO> : product_of<From::THERE>;
        multiply(std::min<int64_t>(ROWS, outputs - o), {left + o * most, 1, ROWS}, {right + i * most, COLUMNS}, count,
                 {gradient + o * inputs + i, inputs}, nullptr);
      }
    }
  }
  return 0;
}

// out = gelu(x), or, with `upstream`, upstream times its slope at x; `count` is a multiple of 32.
void bertray_gelu(const float* x, const float* upstream, int64_t count, float* out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t i = 0; i < count; i += LANES) {
    store(out + i, upstream ? _mm256_mul_ps(load(upstream + i), slope_of_gelu(load(x + i))) : gelu(load(x + i)));
  }
}

// sums = dropout(x) + residual, out = norm(sums).
void bertray_add_norm(const float* x, const float* residual, int64_t num_rows, int64_t width, const Dropout* dropout,
                      const float* weight, const float* bias, float epsilon, float* sums, float* out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t at = r * width;
    for (int64_t i = at; i < at + width; i += LANES) {
      store(sums + i, _mm256_add_ps(dropout->apply(load(x + i), i), load(residual + i)));
    }
    const Moments moments = moments_of(sums + at, width, epsilon);
    for (int64_t i = 0; i < width; i += LANES) {
      const __m256 even = _mm256_mul_ps(_mm256_sub_ps(load(sums + at + i), moments.mean), moments.scale);
      store(out + at + i, _mm256_fmadd_ps(even, load(weight + i), load(bias + i)));
    }
  }
}

// Gradients of x, residual, weight and bias from that of what `bertray_add_norm` gave, and the sums it kept. Returns 0, or 1
// where memory is out.
int bertray_add_norm_gradient(const float* upstream, const float* sums, int64_t num_rows, int64_t width,
                              const Dropout* dropout, const float* weight, float epsilon, float* x_gradient,
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
      const auto even_at = [&](int64_t i) {
        return _mm256_mul_ps(_mm256_sub_ps(load(sums + at + i), moments.mean), moments.scale);
      };
      __m256 total = _mm256_setzero_ps(), along = _mm256_setzero_ps();
      for (int64_t i = 0; i < width; i += LANES) {
        const __m256 even = even_at(i), up = load(upstream + at + i);
        store(of_weight + i, _mm256_fmadd_ps(up, even, load(of_weight + i)));
        store(of_bias + i, _mm256_add_ps(up, load(of_bias + i)));
        const __m256 scaled = _mm256_mul_ps(up, load(weight + i));
        total = _mm256_add_ps(total, scaled);
        along = _mm256_fmadd_ps(scaled, even, along);
      }
      const __m256 mean = all(sum(total) / width), slope = all(sum(along) / width);
      for (int64_t i = 0; i < width; i += LANES) {
        const __m256 off = _mm256_fmsub_ps(load(upstream + at + i), load(weight + i), mean);
        const __m256 gradient = _mm256_mul_ps(_mm256_fnmadd_ps(even_at(i), slope, off), moments.scale);
        store(residual_gradient + at + i, gradient);
        store(x_gradient + at + i, dropout->apply(gradient, at + i));
      }
    }
  }
  add_parts(partial, num_threads, width, weight_gradient, bias_gradient);
  return 0;
}
}
