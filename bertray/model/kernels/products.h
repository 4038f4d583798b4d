// Products of matrices in tiles: how both sides lie, and 32 x 32 of their product at a time.

#pragma once

#include "tiles.h"

// Numbers of a row of 16 and of another, 16 rows below, lie in two tiles side by side, those of the next inputs behind.
inline int64_t in_tiles(int64_t r, int64_t i, int64_t width) {
  return r / WIDE * WIDE * width + i / WIDE * 2 * TILE + r % WIDE * WIDE;
}

// Sums over all inputs of 32 rows for 32 outputs, [32, .] in fp32, whose rows lie so many bytes apart; ADD: added to what is
// there. Calls `beside(r)` for each of 32 numbers r in turn: work for the vector units, which would wait for tiles otherwise.
template <bool ADD = false, typename Beside>
inline void multiply(const bf16* x, const bf16* tiles, int64_t inputs, float* sums, int64_t sums_bytes, Beside beside) {
  float* sums_lower = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(sums) + ROWS * sums_bytes);
  before_loads();
  if constexpr (ADD) {
    _tile_loadd(0, sums, sums_bytes);
    _tile_loadd(1, sums + ROWS, sums_bytes);
    _tile_loadd(2, sums_lower, sums_bytes);
    _tile_loadd(3, sums_lower + ROWS, sums_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t steps = inputs / WIDE;
  int64_t r = 0;
  for (int64_t step = 1; step <= steps; ++step, x += 2 * TILE, tiles += 2 * TILE) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, tiles, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles + TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + TILE, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    for (; r * steps < step * WIDE; ++r) beside(r);
  }
  _tile_stored(0, sums, sums_bytes);
  _tile_stored(1, sums + ROWS, sums_bytes);
  _tile_stored(2, sums_lower, sums_bytes);
  _tile_stored(3, sums_lower + ROWS, sums_bytes);
}

// `count` rows in tiles, filled up with zeros.
template <typename Number>
void lay_out(const Number* x, int64_t count, int64_t width, bf16* to) {
  for (int64_t r = 0; r < round_up(count, WIDE); ++r) {
    for (int64_t i = 0; i < width; i += WIDE) {
      const __m512i numbers = r < count ? rounded(x + r * width + i) : _mm512_setzero_si512();
      _mm512_store_si512(to + in_tiles(r, i, width), numbers);
    }
  }
}

// Numbers of 32 rows, `count` of them there and zeros beyond, in pairs: a pair of rows a register, their columns side by
// side. Those of the first 16 columns go to `low`, of the next 16 to `high`; each is a right-hand tile that sums over rows.
template <typename Number>
inline void pair_rows(const Number* x, int64_t stride, int64_t count, __m512i* low, __m512i* high) {
  alignas(64) static const uint16_t first_half[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(first_half);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int i = 0; i < ROWS; ++i) {
    const int64_t r = 2 * i;
    const __m512i even = r < count ? rounded(x + r * stride) : _mm512_setzero_si512();
    const __m512i odd = r + 1 < count ? rounded(x + (r + 1) * stride) : _mm512_setzero_si512();
    low[i] = _mm512_permutex2var_epi16(even, first, odd);
    high[i] = _mm512_permutex2var_epi16(even, second, odd);
  }
}

inline void store_tile(bf16* to, const __m512i* row) {
  for (int i = 0; i < ROWS; ++i) _mm512_store_si512(to + i * WIDE, row[i]);
}
