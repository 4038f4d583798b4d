// What the kernels in fp32 share: registers of eight numbers, and exponentials.

#pragma once

#include <immintrin.h>

#include <cmath>

#include "../common/memory.h"

constexpr int LANES = 8;

inline __m256 all(float x) { return _mm256_set1_ps(x); }
inline __m256 load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, __m256 x) { _mm256_storeu_ps(to, x); }

template <typename Op>
inline float reduce(__m256 x, Op op) {
  const __m128 four = op(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = op(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(op(two, _mm_movehdup_ps(two)));
}

inline float sum(__m256 x) {
  return reduce(x, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}

inline float largest(__m256 x) {
  return reduce(x, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

// 2^x for x <= 0, within 2e-7 of itself; 2^-126 below that, NaN of NaN.
inline __m256 exp2_of(__m256 x) {
  x = _mm256_max_ps(all(-126), x);  // the number comes second, so that NaN stays NaN
  const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 rest = _mm256_sub_ps(x, whole);
  static const float coefficients[] = {1.52527338e-5f, 1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f,
                                       5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f};
  __m256 y = all(coefficients[0]);
  for (int i = 1; i < 8; ++i) y = _mm256_fmadd_ps(y, rest, all(coefficients[i]));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_castps_si256(all(1)))));
}

// The normal distribution at x: the share below it within 2e-7, and the density.
// Source of the share: Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 7.1.26.
struct Normal {
  __m256 share, density;
};

inline Normal normal_at(__m256 x) {
  const __m256 size = _mm256_andnot_ps(all(-0.0f), x);
  const __m256 t = _mm256_div_ps(all(1), _mm256_fmadd_ps(size, all(0.3275911f * 0.70710678f), all(1)));
  static const float coefficients[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  __m256 y = all(coefficients[0]);
  for (int i = 1; i < 5; ++i) y = _mm256_fmadd_ps(y, t, all(coefficients[i]));
  const __m256 power = exp2_of(_mm256_mul_ps(_mm256_mul_ps(x, x), all(-0.72134752f)));  // e^(-x^2 / 2)
  const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(y, t), power), all(0.5f));
  return {_mm256_blendv_ps(_mm256_sub_ps(all(1), tail), tail, x),  // by the sign of x
          _mm256_mul_ps(power, all(0.39894228f))};
}

// The exact GELU, x times the share below it, and its slope.
inline __m256 gelu(__m256 x) { return _mm256_mul_ps(x, normal_at(x).share); }
inline __m256 slope_of_gelu(__m256 x) {
  const Normal normal = normal_at(x);
  return _mm256_fmadd_ps(x, normal.density, normal.share);
}

// Mean of a row, and one over its deviation.
struct Moments {
  __m256 mean, scale;
};

inline Moments moments_of(const float* x, int64_t width, float epsilon) {
  __m256 total = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
  for (int64_t i = 0; i < width; i += LANES) total = _mm256_add_ps(total, load(x + i));
  const __m256 mean = all(sum(total) / width);
  for (int64_t i = 0; i < width; i += LANES) {
    const __m256 off = _mm256_sub_ps(load(x + i), mean);
    squares = _mm256_fmadd_ps(off, off, squares);
  }
  return {mean, all(1.0f / std::sqrt(sum(squares) / width + epsilon))};
}
