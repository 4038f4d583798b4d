// Products of tiles, which is all that depends on the CPU: by the tiles of AMX where the compiler is told of them, else in
// registers that hold a row of a right-hand tile: in int8 by VNNI, in bf16 by AVX512-BF16, or in fp32 where that is missing. All
// read the same layouts.
//
// A left-hand tile is 16 rows of 32 inputs. A right-hand tile is 16 pairs of inputs, a pair a row, of 16 outputs each. In int8
// two inputs lie where one lies in bf16: all that is said of inputs here counts those two as one.

#pragma once

#include <atomic>
#include <cstring>
#include <type_traits>

#include "../common/tile_config.h"
#include "vectors.h"

// Left-hand side: row r begins at `from + r * stride`, its next 32 inputs lie `step` on.
struct Left {
  const bf16* from;
  int64_t stride, step;
};

// Right-hand side of 32 outputs: the tile of the second 16 lies `apart` from that of the first, the next 32 inputs `step` on.
struct Right {
  const bf16* tiles;
  int64_t apart, step;
  // In int8, for each output: 128 times the sum of the weights of all inputs before these, and of these too.
  const int32_t *before = nullptr, *through = nullptr;
};

// Number formats of a product, and how many numbers lie in two bytes.
struct InBf16 {
  static constexpr int64_t PACKED = 1;
};
// Sums are int32, in the place of fp32.
struct InInt8 {
  static constexpr int64_t PACKED = 2;
};

#ifdef __AMX_BF16__

constexpr int64_t SECOND_LEVEL_BYTES = 2 << 20;  // of the second-level cache of such CPUs
constexpr int QUERIES = 2 * ROWS;                // that attention takes at a time
constexpr uint8_t ZERO_CODE = 0;                 // of the left-hand side in int8

// This thread's tiles are ours for as long as it lives.
class Tiles {
 public:
  Tiles() {
    static const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The compiler wants the numbers of tiles as they are.
#define BERTRAY_ADD_PRODUCT(sums, x, y)                \
  if constexpr (std::is_same_v<Format, InInt8>) {      \
    _tile_dpbssd(sums, x, y);                          \
  } else {                                             \
    _tile_dpbf16ps(sums, x, y);                        \
  }

template <typename Format, bool TWO, bool ADD, typename Beside>
inline void multiply_tiles(Left x, Right y, int64_t inputs, float* sums, int64_t sums_bytes, Beside beside) {
  float* sums_lower = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(sums) + ROWS * sums_bytes);
  const int64_t bytes = x.stride * sizeof(bf16);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // to the compiler a tile's load does not look like one
  if constexpr (ADD) {
    _tile_loadd(0, sums, sums_bytes);
    _tile_loadd(1, sums + ROWS, sums_bytes);
    if constexpr (TWO) {
      _tile_loadd(2, sums_lower, sums_bytes);
      _tile_loadd(3, sums_lower + ROWS, sums_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t i = 0; i < inputs; i += WIDE, x.from += x.step, y.tiles += y.step) {
    _tile_loadd(4, x.from, bytes);
    _tile_loadd(6, y.tiles, 64);
    BERTRAY_ADD_PRODUCT(0, 4, 6)
    _tile_loadd(7, y.tiles + y.apart, 64);
    BERTRAY_ADD_PRODUCT(1, 4, 7)
    if constexpr (TWO) {
      _tile_loadd(5, x.from + ROWS * x.stride, bytes);
      BERTRAY_ADD_PRODUCT(2, 5, 6)
      BERTRAY_ADD_PRODUCT(3, 5, 7)
    }
    beside();
  }
  _tile_stored(0, sums, sums_bytes);
  _tile_stored(1, sums + ROWS, sums_bytes);
  if constexpr (TWO) {
    _tile_stored(2, sums_lower, sums_bytes);
    _tile_stored(3, sums_lower + ROWS, sums_bytes);
  }
}

#undef BERTRAY_ADD_PRODUCT

// Sums over all inputs of `num_rows` rows, at most 32, for 32 outputs: rows of fp32 that lie `sums_stride` apart; ADD: added to
// what is there. Whole tiles are read and written. Calls `beside()` for each 32 inputs: work for the vector units, which would
// wait for tiles otherwise.
template <typename Format = InBf16, bool ADD = false, typename Beside>
inline void multiply(int num_rows, Left x, Right y, int64_t inputs, float* sums, int64_t sums_stride, Beside beside) {
  const int64_t bytes = sums_stride * sizeof(float);
  if (num_rows > ROWS) {
    multiply_tiles<Format, true, ADD>(x, y, inputs, sums, bytes, beside);
  } else {
    multiply_tiles<Format, false, ADD>(x, y, inputs, sums, bytes, beside);
  }
}

#else

constexpr int64_t SECOND_LEVEL_BYTES = 1 << 20;
constexpr int QUERIES = ROWS;
constexpr uint8_t ZERO_CODE = 128;  // of the left-hand side in int8, whose bytes these products take as unsigned

// Registers need no preparation.
class Tiles {
 public:
  Tiles() {}
};

constexpr int AT_A_TIME = 8;  // rows, whose sums fill 16 registers: enough to hide the latency of a product

inline __m512 add_products(InBf16, __m512 sums, __m512i x, __m512i y) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)y);
#else
  const auto even = [](__m512i two) { return _mm512_castsi512_ps(_mm512_slli_epi32(two, 16)); };
  const auto odd = [](__m512i two) { return _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(static_cast<int>(0xffff0000)))); };
  return _mm512_fmadd_ps(even(x), even(y), _mm512_fmadd_ps(odd(x), odd(y), sums));
#endif
}
inline __m512 add_products(InInt8, __m512 sums, __m512i x, __m512i y) {
  return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sums), x, y));
}

// What sums of 16 outputs begin with: less the products of ZERO_CODE.
inline __m512 nothing_yet(InBf16, const Right&, int) { return _mm512_setzero_ps(); }
inline __m512 nothing_yet(InInt8, const Right& y, int first) {
  const __m512i before = _mm512_loadu_si512(y.before + first), through = _mm512_loadu_si512(y.through + first);
  return _mm512_castsi512_ps(_mm512_sub_epi32(before, through));
}

// Always inlined: a row's address costs nothing only where the compiler knows how far apart rows lie.
template <typename Format, bool ADD>
[[gnu::always_inline]] inline void multiply_registers(Left x, Right y, int64_t inputs, float* sums, int64_t sums_stride) {
  __m512 low[AT_A_TIME], high[AT_A_TIME];
  for (int r = 0; r < AT_A_TIME; ++r) {
    low[r] = ADD ? _mm512_loadu_ps(sums + r * sums_stride) : nothing_yet(Format(), y, 0);
    high[r] = ADD ? _mm512_loadu_ps(sums + r * sums_stride + ROWS) : nothing_yet(Format(), y, ROWS);
  }
  for (int64_t i = 0; i < inputs; i += WIDE, x.from += x.step, y.tiles += y.step) {
#pragma GCC unroll 16
    for (int pair = 0; pair < WIDE / 2; ++pair) {
      const __m512i first = _mm512_loadu_si512(y.tiles + pair * WIDE);
      const __m512i second = _mm512_loadu_si512(y.tiles + y.apart + pair * WIDE);
      for (int r = 0; r < AT_A_TIME; ++r) {
        int two;
        std::memcpy(&two, x.from + r * x.stride + 2 * pair, sizeof(two));
        const __m512i both = _mm512_set1_epi32(two);
        low[r] = add_products(Format(), low[r], both, first);
        high[r] = add_products(Format(), high[r], both, second);
      }
    }
  }
  for (int r = 0; r < AT_A_TIME; ++r) {
    _mm512_storeu_ps(sums + r * sums_stride, low[r]);
    _mm512_storeu_ps(sums + r * sums_stride + ROWS, high[r]);
  }
}

// As on AMX; `beside()` is called between rows, since it would want registers.
template <typename Format = InBf16, bool ADD = false, typename Beside>
[[gnu::always_inline]] inline void multiply(int num_rows, Left x, Right y, int64_t inputs, float* sums, int64_t sums_stride,
                                            Beside beside) {
  const int rounds = (num_rows + AT_A_TIME - 1) / AT_A_TIME;
  int64_t due = 0;
  for (int r = 0; r < num_rows; r += AT_A_TIME) {
    multiply_registers<Format, ADD>({x.from + r * x.stride, x.stride, x.step}, y, inputs, sums + r * sums_stride, sums_stride);
    for (due += inputs; due > 0; due -= WIDE * rounds) beside();
  }
}

#endif
