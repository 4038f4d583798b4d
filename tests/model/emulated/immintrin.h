// A stand-in for the compiler's header: the instructions that our kernels use, in plain C++, so that tests can run every line
// of them on any CPU. It is found first with `-I`. Products of bf16 are summed in fp32, in an order of their own; those of int8
// are exact.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define EMULATED_VECTOR(type) typedef type __attribute__((vector_size(64), may_alias, aligned(64)))

EMULATED_VECTOR(float) __m512;
EMULATED_VECTOR(double) __m512d;
EMULATED_VECTOR(long long) __m512i;
EMULATED_VECTOR(short) __m512bh;
EMULATED_VECTOR(int32_t) Ints;
EMULATED_VECTOR(uint32_t) Unsigned;
EMULATED_VECTOR(uint16_t) Shorts;
EMULATED_VECTOR(int16_t) SignedShorts;
EMULATED_VECTOR(int8_t) Bytes;
EMULATED_VECTOR(uint8_t) UnsignedBytes;
typedef long long __m256i __attribute__((vector_size(32), may_alias, aligned(32)));
using __mmask16 = uint16_t;

#undef EMULATED_VECTOR

constexpr int _MM_FROUND_TO_NEG_INF = 1, _MM_FROUND_NO_EXC = 8, _CMP_LT_OQ = 17, _CMP_UNORD_Q = 3, _MM_HINT_T1 = 2;

template <typename Vector>
inline Vector loaded(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename Vector, typename Function>
inline Vector each_lane(Function function) {
  Vector x{};
  for (unsigned i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = function(i);
  return x;
}

inline bool in_mask(__mmask16 mask, unsigned i) { return mask >> i & 1; }

inline float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

inline uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// --- fp32 -------------------------------------------------------------------------------------------------------------

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_set1_ps(float x) { return x - __m512{}; }
inline __m512 _mm512_load_ps(const void* from) { return loaded<__m512>(from); }
inline __m512 _mm512_loadu_ps(const void* from) { return loaded<__m512>(from); }
inline void _mm512_store_ps(void* to, __m512 x) { std::memcpy(to, &x, sizeof(x)); }
inline void _mm512_storeu_ps(void* to, __m512 x) { std::memcpy(to, &x, sizeof(x)); }
inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return a * b + c; }
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) { return a * b - c; }
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return c - a * b; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
inline __m512 _mm512_abs_ps(__m512 x) { return each_lane<__m512>([&](unsigned i) { return std::fabs(x[i]); }); }
inline __m512 _mm512_sqrt_ps(__m512 x) { return each_lane<__m512>([&](unsigned i) { return std::sqrt(x[i]); }); }
inline __m512 _mm512_reduce_ps(__m512 x, int) {
  return each_lane<__m512>([&](unsigned i) { return std::isinf(x[i]) ? 0.0f : x[i] - std::floor(x[i]); });
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  return each_lane<__m512>([&](unsigned i) { return a[i] * std::exp2(std::floor(b[i])); });
}
inline float _mm512_reduce_add_ps(__m512 x) {
  float sum = 0;
  for (unsigned i = 0; i < 16; ++i) sum += x[i];
  return sum;
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  __mmask16 mask = 0;
  for (unsigned i = 0; i < 16; ++i) mask |= (how == _CMP_LT_OQ ? a[i] < b[i] : std::isunordered(a[i], b[i])) << i;
  return mask;
}
inline __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 mask, __m512 x) {
  return each_lane<__m512>([&](unsigned i) { return in_mask(mask, i) ? x[i] : other[i]; });
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) { return _mm512_mask_mov_ps(__m512{}, mask, x); }
inline __m512 _mm512_maskz_mul_ps(__mmask16 mask, __m512 a, __m512 b) { return _mm512_maskz_mov_ps(mask, a * b); }
inline __m512 _mm512_mask_max_ps(__m512 other, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(other, mask, _mm512_max_ps(a, b));
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
  return each_lane<__m512>([&](unsigned i) { return in_mask(mask, i) ? static_cast<const float*>(from)[i] : 0.0f; });
}
inline void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 x) {
  for (unsigned i = 0; i < 16; ++i) {
    if (in_mask(mask, i)) static_cast<float*>(to)[i] = x[i];
  }
}

// --- integers ---------------------------------------------------------------------------------------------------------

inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_load_si512(const void* from) { return loaded<__m512i>(from); }
inline __m512i _mm512_loadu_si512(const void* from) { return loaded<__m512i>(from); }
inline void _mm512_store_si512(void* to, __m512i x) { std::memcpy(to, &x, sizeof(x)); }
inline void _mm512_storeu_si512(void* to, __m512i x) { std::memcpy(to, &x, sizeof(x)); }
inline __m256i _mm256_loadu_si256(const void* from) { return loaded<__m256i>(from); }
inline __m512i _mm512_set1_epi32(int x) { return (__m512i)(x - Ints{}); }
inline __m512i _mm512_set1_epi16(short x) {
  return (__m512i)each_lane<Shorts>([&](unsigned) { return static_cast<uint16_t>(x); });
}
template <typename... Numbers>
inline __m512i _mm512_setr_epi32(Numbers... numbers) {
  return (__m512i)Ints{numbers...};
}
inline __m512i _mm512_set1_epi8(char x) { return (__m512i)each_lane<Bytes>([&](unsigned) { return x; }); }
inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) { return (__m512i)((Unsigned)a - (Unsigned)b); }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_mask_or_epi32(__m512i other, __mmask16 mask, __m512i a, __m512i b) {
  return (__m512i)each_lane<Ints>([&](unsigned i) { return ((Ints)(in_mask(mask, i) ? a | b : other))[i]; });
}
inline __m512i _mm512_max_epi32(__m512i a, __m512i b) { return (__m512i)((Ints)a > (Ints)b ? (Ints)a : (Ints)b); }
inline int _mm512_reduce_max_epi32(__m512i x) {
  int most = ((Ints)x)[0];
  for (unsigned i = 1; i < 16; ++i) most = ((Ints)x)[i] > most ? ((Ints)x)[i] : most;
  return most;
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) {
  return each_lane<__m512>([&](unsigned i) { return static_cast<float>(((Ints)x)[i]); });
}
inline __m512i _mm512_cvtps_epi32(__m512 x) {  // to the nearest, of two the even one; what has none is the lowest
  return (__m512i)each_lane<Ints>([&](unsigned i) {
    return std::fabs(x[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(x[i])) : INT32_MIN;
  });
}

// Numbers of both, four (eight) of one and as many of the other, at half the width; those too large are the largest.
template <typename Narrow, typename Wide>
inline Narrow packed(Wide a, Wide b) {
  constexpr unsigned HALF = 16 / sizeof(a[0]);
  constexpr int MOST = (1 << (8 * sizeof(a[0]) / 2 - 1)) - 1;
  return each_lane<Narrow>([&](unsigned i) {
    const unsigned quarter = i / (2 * HALF), place = i % (2 * HALF);
    const int x = place < HALF ? a[quarter * HALF + place] : b[quarter * HALF + place - HALF];
    return x > MOST ? MOST : x < -MOST - 1 ? -MOST - 1 : x;
  });
}

inline __m512i _mm512_packs_epi32(__m512i a, __m512i b) { return (__m512i)packed<SignedShorts>((Ints)a, (Ints)b); }
inline __m512i _mm512_packs_epi16(__m512i a, __m512i b) {
  return (__m512i)packed<Bytes>((SignedShorts)a, (SignedShorts)b);
}
inline __m512i _mm512_permutexvar_epi32(__m512i index, __m512i x) {
  return (__m512i)each_lane<Ints>([&](unsigned i) { return ((Ints)x)[((Ints)index)[i] & 15]; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) { return (__m512i)((Unsigned)a + (Unsigned)b); }
inline __m512i _mm512_add_epi16(__m512i a, __m512i b) { return (__m512i)((Shorts)a + (Shorts)b); }
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) { return (__m512i)((Unsigned)a * (Unsigned)b); }
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
inline __m512i _mm512_srli_epi32(__m512i x, int by) { return (__m512i)((Unsigned)x >> by); }
inline __m512i _mm512_slli_epi32(__m512i x, int by) { return (__m512i)((Unsigned)x << by); }
inline __mmask16 _mm512_cmpge_epu32_mask(__m512i a, __m512i b) {
  __mmask16 mask = 0;
  for (unsigned i = 0; i < 16; ++i) mask |= (((Unsigned)a)[i] >= ((Unsigned)b)[i]) << i;
  return mask;
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  uint16_t narrow[16];
  std::memcpy(narrow, &x, sizeof(narrow));
  return (__m512i)each_lane<Unsigned>([&](unsigned i) { return narrow[i]; });
}

// --- order ------------------------------------------------------------------------------------------------------------

// The lower or upper two of every four numbers (of every two, where they are wide) of both, in turn.
template <typename Vector>
inline Vector interleaved(Vector a, Vector b, unsigned a_quarter, bool upper) {
  return each_lane<Vector>([&](unsigned i) {
    const unsigned first = i / a_quarter * a_quarter + (upper ? a_quarter / 2 : 0) + i % a_quarter / 2;
    return i % 2 ? b[first] : a[first];
  });
}

inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) { return interleaved(a, b, 4, false); }
inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) { return interleaved(a, b, 4, true); }
inline __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) { return interleaved(a, b, 2, false); }
inline __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) { return interleaved(a, b, 2, true); }
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return (__m512i)interleaved((Ints)a, (Ints)b, 4, false); }
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return (__m512i)interleaved((Ints)a, (Ints)b, 4, true); }
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return interleaved(a, b, 2, false); }
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return interleaved(a, b, 2, true); }
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int quarters) {
  return each_lane<__m512>([&](unsigned i) { return (i < 8 ? a : b)[(quarters >> i / 4 * 2 & 3) * 4 + i % 4]; });
}
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int quarters) {
  return (__m512i)_mm512_shuffle_f32x4((__m512)a, (__m512)b, quarters);
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
  return (__m512i)each_lane<Shorts>([&](unsigned i) {
    const unsigned from = ((Shorts)index)[i] & 63;
    return from < 32 ? ((Shorts)a)[from] : ((Shorts)b)[from - 32];
  });
}
inline __m512i _mm512_castps_si512(__m512 x) { return (__m512i)x; }
inline __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
inline __m512d _mm512_castps_pd(__m512 x) { return (__m512d)x; }
inline __m512 _mm512_castpd_ps(__m512d x) { return (__m512)x; }

// --- bf16 -------------------------------------------------------------------------------------------------------------

inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return (__m512bh)each_lane<Shorts>([&](unsigned i) { return narrowed(i < 16 ? low[i] : high[i - 16]); });
}
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  const auto even = [](__m512bh x) { return (__m512)((Unsigned)x << 16); };
  const auto odd = [](__m512bh x) { return (__m512)((Unsigned)x & 0xffff0000u); };
  return sums + odd(a) * odd(b) + even(a) * even(b);
}

// --- int8 -------------------------------------------------------------------------------------------------------------

// Sums of products of four bytes side by side; `Left` says whether the first are signed.
template <typename Left>
inline __m512i with_products(__m512i sums, __m512i a, __m512i b) {
  return (__m512i)each_lane<Ints>([&](unsigned i) {
    int32_t sum = ((Ints)sums)[i];
    for (unsigned j = 4 * i; j < 4 * i + 4; ++j) sum += ((Left)a)[j] * ((Bytes)b)[j];
    return sum;
  });
}
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) { return with_products<UnsignedBytes>(sums, a, b); }

// --- tiles ------------------------------------------------------------------------------------------------------------

inline __m512i (&tile(int number))[16] {
  thread_local __m512i tiles[8][16];
  return tiles[number];
}

inline void _tile_loadconfig(const void*) {}
inline void _tile_release() {}
inline void _tile_zero(int number) { std::memset(tile(number), 0, 16 * sizeof(__m512i)); }
inline void _tile_loadd(int number, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) tile(number)[r] = loaded<__m512i>(static_cast<const char*>(from) + r * stride);
}
inline void _tile_stored(int number, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, &tile(number)[r], sizeof(__m512i));
}
// Adds to each row of `sums` the products of a row of `left`, four bytes after four, and the rows of `right`.
template <typename Add>
inline void add_tiles(int sums, int left, int right, Add add) {
  for (int r = 0; r < 16; ++r) {
    for (unsigned place = 0; place < 16; ++place) {
      const __m512i four = _mm512_set1_epi32(((Ints)tile(left)[r])[place]);
      tile(sums)[r] = add(tile(sums)[r], four, tile(right)[place]);
    }
  }
}
inline void _tile_dpbf16ps(int sums, int left, int right) {
  add_tiles(sums, left, right, [](__m512i sum, __m512i x, __m512i y) {
    return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
  });
}
inline void _tile_dpbssd(int sums, int left, int right) { add_tiles(sums, left, right, with_products<Bytes>); }

// --- the processor ----------------------------------------------------------------------------------------------------

inline void _mm_prefetch(const void*, int) {}
inline unsigned _mm_getcsr() { return __builtin_ia32_stmxcsr(); }
inline void _mm_setcsr(unsigned bits) { __builtin_ia32_ldmxcsr(bits); }
