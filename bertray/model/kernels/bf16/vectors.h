// What the kernels share: pairs of registers of fp32 for 32 numbers in bf16.

#pragma once

#include <immintrin.h>

#include "../common/memory.h"

using bf16 = uint16_t;

constexpr int ROWS = 16;        // of a tile, and numbers in fp32 in a row of it
constexpr int WIDE = 2 * ROWS;  // numbers in bf16 in a row of a tile
constexpr int64_t TILE = ROWS * WIDE;

// 32 numbers in fp32.
struct Pair {
  __m512 low, high;
};

inline Pair load(const float* from) { return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + ROWS)}; }

inline Pair load(const bf16* from) {
  const auto widen = [](const bf16* half) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  };
  return {widen(from), widen(from + ROWS)};
}

// 32 numbers as bf16: the nearest, of two the even one.
inline __m512i narrowed(__m512 low, __m512 high) {
#ifdef __AVX512BF16__
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
  const auto nearest = [](__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, is_nan, bits, _mm512_set1_epi32(0x400000));
  };
  alignas(64) static const uint16_t upper_halves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(nearest(low), _mm512_load_si512(upper_halves), nearest(high));
#endif
}

inline __m512i rounded(const bf16* from) { return _mm512_loadu_si512(from); }
inline __m512i rounded(const float* from) {
  const Pair x = load(from);
  return narrowed(x.low, x.high);
}

inline void store(float* to, Pair x) {
  _mm512_storeu_ps(to, x.low);
  _mm512_storeu_ps(to + ROWS, x.high);
}

inline void store(bf16* to, Pair x) { _mm512_storeu_si512(to, narrowed(x.low, x.high)); }

inline Pair operator+(Pair a, Pair b) { return {_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)}; }
inline Pair operator-(Pair a, Pair b) { return {_mm512_sub_ps(a.low, b.low), _mm512_sub_ps(a.high, b.high)}; }
inline Pair operator*(Pair a, Pair b) { return {_mm512_mul_ps(a.low, b.low), _mm512_mul_ps(a.high, b.high)}; }

inline Pair pair_of(float x) { return {_mm512_set1_ps(x), _mm512_set1_ps(x)}; }
inline float sum(Pair x) { return _mm512_reduce_add_ps(_mm512_add_ps(x.low, x.high)); }

inline Pair multiply_add(Pair a, Pair b, Pair c) {
  return {_mm512_fmadd_ps(a.low, b.low, c.low), _mm512_fmadd_ps(a.high, b.high, c.high)};
}

// 2^x for x <= 0, within 3e-6 of itself; 0 far below.
inline __m512 exp2_of(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 y = _mm512_set1_ps(0.0135341606f);
  y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.0520114746f));
  y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.2414427486f));
  y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.6930038360f));
  y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(1.0000025933f));
  return _mm512_scalef_ps(y, x);  // times 2 to the floor of x
}

// The 16 x 16 dwords of `row`, transposed.
inline void transpose(__m512i* row) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
