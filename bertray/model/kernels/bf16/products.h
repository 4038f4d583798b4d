// Products of matrices in tiles: how both sides lie, and all 32 x 32 blocks of a product in an order that suits the caches.

#pragma once

#include <algorithm>

#include "tiles.h"

// Numbers of a row of 16 and of another, 16 rows below, lie in two tiles side by side, those of the next inputs behind.
inline int64_t in_tiles(int64_t r, int64_t i, int64_t width) {
  return r / WIDE * WIDE * width + i / WIDE * 2 * TILE + r % WIDE * WIDE;
}

inline Left left_of(const bf16* x) { return {x, WIDE, 2 * TILE}; }
inline Right right_of(const bf16* tiles) { return {tiles, TILE, 2 * TILE}; }

// Weights in tiles of some inputs of a linear layer; those of 32 outputs and of the next 32 lie `stride` apart.
struct Weights {
  const bf16* tiles;
  int64_t stride, inputs, outputs;
};

// Of 32 outputs the weights of so many inputs stay in a first-level cache while all rows pass by.
constexpr int64_t MOST_INPUTS = 384, INPUTS_AT_A_TIME = 256;

extern "C" {

// For each 32 outputs and each 32 inputs two tiles, 16 outputs each: pairs of inputs a row. The bias is in fp32, or null.
struct Linear {
  const bf16* tiles;
  const float* bias;
  int64_t inputs, outputs;

  Weights weights() const { return {tiles, inputs * WIDE, inputs, outputs}; }
  Weights outputs_from(int64_t o, int64_t count) const { return {tiles + o * inputs, inputs * WIDE, inputs, count}; }
  Weights inputs_from(int64_t i, int64_t count) const { return {tiles + i * WIDE, inputs * WIDE, count, outputs}; }
};
}

// Sums of 32 rows of `x` for 32 outputs go to `place(o, first)`, [32, .] in fp32, for all outputs and all rows; ADD: are
// added to what is there. `x` lies in tiles, in whole blocks of 32 rows. What `beside(o, first, i)` returns is called for each
// 32 inputs of these from i on.
template <bool ADD, typename Place, typename Beside>
void multiply_all(const bf16* x, int64_t num_rows, const Weights& weights, Place place, int64_t sums_stride, Beside beside) {
  const int64_t inputs = weights.inputs, at_a_time = inputs <= MOST_INPUTS ? inputs : INPUTS_AT_A_TIME;
  const int64_t lines_a_step = (WIDE * WIDE + num_rows - 1) / num_rows;
  for (int64_t o = 0; o < weights.outputs; o += WIDE) {
    const bf16* const panel = weights.tiles + o / WIDE * weights.stride;
    for (int64_t i = 0; i < inputs; i += at_a_time) {
      const int64_t count = std::min(at_a_time, inputs - i);
      // The next weights come into the second-level cache meanwhile.
      const bool last = i + count == inputs;
      const bf16* ahead = last ? panel + weights.stride : panel + (i + count) * WIDE;
      const int64_t lines = last && o + WIDE == weights.outputs ? 0 : lines_a_step;
      for (int64_t first = 0; first < num_rows; first += WIDE) {
        auto also = beside(o, first, i);
        const auto each_step = [&] {
          for (int64_t line = 0; line < lines; ++line, ahead += WIDE) _mm_prefetch(ahead, _MM_HINT_T1);
          also();
        };
        const Left rows = left_of(x + first * inputs + i * WIDE);
        const Right columns = right_of(panel + i * WIDE);
        if (ADD || i > 0) {
          multiply<true>(WIDE, rows, columns, count, place(o, first), sums_stride, each_step);
        } else {
          multiply(WIDE, rows, columns, count, place(o, first), sums_stride, each_step);
        }
      }
    }
  }
}

constexpr int64_t GROUP = 2;  // rows whose sums are handed on together
// Rows that a thread takes through a linear layer at a time: so few that others soon make up for one that was held up.
constexpr int64_t MOST_ROWS = 256;

// Calls `take(o, r, sums)` for each GROUP of rows of `x` from r on and each 32 outputs from o on with their sums, [GROUP, 32] in
// fp32 without the bias. Rows come in whole blocks of 32, in tiles; `waiting` holds 64 numbers a row.
template <typename Take>
void for_each_sum(const Weights& weights, const bf16* x, int64_t num_rows, float* waiting, Take take) {
  const int64_t inputs = weights.inputs, blocks = num_rows / WIDE;
  // Sums of a block wait until the next is made; where their inputs come in turns, until that of the same rows is.
  const int64_t lag = inputs <= MOST_INPUTS ? 1 : blocks;
  const auto waiting_of = [=](int64_t block) { return waiting + block % (2 * lag) * WIDE * WIDE; };
  multiply_all<false>(
      x, num_rows, weights, [=](int64_t o, int64_t first) { return waiting_of((o * blocks + first) / WIDE); },
      WIDE, [=](int64_t o, int64_t first, int64_t i) {
        const int64_t made = (o * blocks + first) / WIDE, block = std::max(made - lag, int64_t{0});
        const int64_t o_before = block / blocks * WIDE, first_before = block % blocks * WIDE;
        const float* const from = waiting_of(block);
        // Of the 32 rows as large a share as of the inputs.
        int64_t r = made < lag ? WIDE : round_up((i * WIDE + inputs - 1) / inputs, GROUP);
        return [=]() mutable {
          i += WIDE;
          for (; r * inputs < i * WIDE; r += GROUP) take(o_before, first_before + r, from + r * WIDE);
        };
      });
  const int64_t made = weights.outputs / WIDE * blocks;
  for (int64_t block = made - lag; block < made; ++block) {
    for (int64_t r = 0; r < WIDE; r += GROUP) {
      take(block / blocks * WIDE, block % blocks * WIDE + r, waiting_of(block) + r * WIDE);
    }
  }
}

// Rows of a block, at most so many: every thread has as much to do.
inline int64_t block_of(int64_t num_rows, int64_t most, int num_threads) {
  most = std::clamp(most / WIDE * WIDE, int64_t{WIDE}, MOST_ROWS);
  const int64_t rounds = (num_rows + most * num_threads - 1) / (most * num_threads);
  const int64_t blocks = std::max(rounds * num_threads, int64_t{1});
  return std::max(round_up((num_rows + blocks - 1) / blocks, WIDE), int64_t{WIDE});
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
