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

// Weights in tiles of some inputs of a linear layer; those of 32 outputs and of the next 32 lie `stride` apart. In int8 inputs
// count two by two, each output has a scale, and `before` and `through` are those of `Right`.
struct Weights {
  const bf16* tiles;
  int64_t stride, inputs, outputs;
  const float *bias, *scales;
  const int32_t *before, *through;
};

// Of 32 outputs the weights of so many inputs stay in a first-level cache while all rows pass by.
constexpr int64_t MOST_INPUTS = 384, INPUTS_AT_A_TIME = 256;

extern "C" {

// For each 32 outputs and each 32 inputs two tiles, 16 outputs each: pairs of inputs a row. The bias is in fp32, or null.
// In int8, where `scales` is not null: fours of inputs a row, a scale for each output, and `zeros`, 128 times the sums of the
// weights of all inputs before the first, before the next 64, ..., before the end, [inputs / 64 + 1, outputs].
struct Linear {
  const bf16* tiles;
  const float* bias;
  int64_t inputs, outputs;
  const float* scales;
  const int32_t* zeros;

  bool in_int8() const { return scales != nullptr; }
  Weights weights() const { return part(0, inputs, 0, outputs); }
  Weights outputs_from(int64_t o, int64_t count) const { return part(0, inputs, o, count); }
  Weights inputs_from(int64_t i, int64_t count) const { return part(i, count, 0, outputs); }

 private:
  Weights part(int64_t i, int64_t num_inputs, int64_t o, int64_t num_outputs) const {
    const int64_t packed = in_int8() ? InInt8::PACKED : InBf16::PACKED;
    const auto zeros_at = [=](int64_t input) { return zeros + input / (WIDE * packed) * outputs + o; };
    return {tiles + (o * inputs + i * WIDE) / packed,
            inputs / packed * WIDE,
            num_inputs / packed,
            num_outputs,
            bias ? bias + o : nullptr,
            in_int8() ? scales + o : nullptr,
            in_int8() ? zeros_at(i) : nullptr,
            in_int8() ? zeros_at(i + num_inputs) : nullptr};
  }
};
}

// Sums of 32 rows of `x` for 32 outputs go to `place(o, first)`, [32, .] as `multiply` leaves them, for all outputs and all rows; ADD: are
// added to what is there. `x` lies in tiles, in whole blocks of 32 rows. What `beside(o, first, i)` returns is called for each
// 32 inputs of these from i on.
template <typename Format, bool ADD, typename Place, typename Beside>
void multiply_all(const bf16* x, int64_t num_rows, const Weights& weights, Place place, int64_t sums_stride,
                  Beside beside) {
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
        Right columns = right_of(panel + i * WIDE);
        if constexpr (std::is_same_v<Format, InInt8>) {
          columns.before = weights.before + o;
          columns.through = weights.through + o;
        }
        if (ADD || i > 0) {
          multiply<Format, true>(WIDE, rows, columns, count, place(o, first), sums_stride, each_step);
        } else {
          multiply<Format>(WIDE, rows, columns, count, place(o, first), sums_stride, each_step);
        }
      }
    }
  }
}

constexpr int64_t GROUP = 2;  // rows whose sums are handed on together
// Rows that a thread takes through a linear layer at a time: so few that others soon make up for one that was held up.
constexpr int64_t MOST_ROWS = 256;

// Calls `take(o, r, sums)` for each GROUP of rows of `x` from r on and each 32 outputs from o on with their sums, [GROUP, 32] as
// `multiply` leaves them. Rows come in whole blocks of 32, in tiles; `waiting` holds 64 numbers a row.
template <typename Format, typename Take>
void for_each_sum(const Weights& weights, const bf16* x, int64_t num_rows, float* waiting, Take take) {
  const int64_t inputs = weights.inputs, blocks = num_rows / WIDE;
  // Sums of a block wait until the next is made; where their inputs come in turns, until that of the same rows is.
  const int64_t lag = inputs <= MOST_INPUTS ? 1 : blocks;
  const auto waiting_of = [=](int64_t block) { return waiting + block % (2 * lag) * WIDE * WIDE; };
  multiply_all<Format, false>(
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

// --- the left-hand side -----------------------------------------------------------------------------------------------

// A block of rows that is multiplied with weights: `put` number by number and then each row `complete`, or laid out at once.
template <typename Format>
class Rows;

template <>
class Rows<InBf16> {
 public:
  static constexpr int64_t BYTES = 2;  // of a number

  Rows(int64_t num_rows, int64_t width) : tiles_(num_rows * width) {}
  bool missing() const { return tiles_ == nullptr; }
  const bf16* tiles() const { return tiles_; }

  Pair at(int64_t r, int64_t i, int64_t width) const { return load(tiles_ + in_tiles(r, i, width)); }
  void put(int64_t r, int64_t i, int64_t width, Pair numbers) { store(tiles_ + in_tiles(r, i, width), numbers); }
  void complete(int64_t, int64_t) {}

  // Sums of row r as fp32, without the bias.
  Pair product(const Weights&, int64_t, int64_t, const float* sums) const { return load(sums); }

  // `count` rows, filled up with zeros.
  template <typename Number>
  void lay_out(const Number* x, int64_t count, int64_t width) {
    for (int64_t r = 0; r < round_up(count, WIDE); ++r) {
      for (int64_t i = 0; i < width; i += WIDE) {
        const __m512i numbers = r < count ? rounded(x + r * width + i) : _mm512_setzero_si512();
        _mm512_store_si512(tiles_ + in_tiles(r, i, width), numbers);
      }
    }
  }

 private:
  Buffer<bf16> tiles_;
};

// Each row has a scale of its own, so that what comes out for it depends on no other.
template <>
class Rows<InInt8> {
 public:
  static constexpr int64_t BYTES = 3;

  Rows(int64_t num_rows, int64_t width)
      : numbers_(num_rows * width), tiles_(num_rows * width / InInt8::PACKED), scales_(num_rows) {}
  bool missing() const { return numbers_ == nullptr || tiles_ == nullptr || scales_ == nullptr; }
  const bf16* tiles() const { return tiles_; }

  Pair at(int64_t r, int64_t i, int64_t width) const { return load(numbers_ + r * width + i); }
  void put(int64_t r, int64_t i, int64_t width, Pair numbers) { store(numbers_ + r * width + i, numbers); }
  void complete(int64_t r, int64_t width) { quantize(numbers_ + r * width, r, width); }

  Pair product(const Weights& weights, int64_t o, int64_t r, const float* sums) const {
    const auto wide = [](const float* from) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(from)); };
    return Pair{wide(sums), wide(sums + ROWS)} * load(weights.scales + o) * pair_of(scales_[r]);
  }

  template <typename Number>
  void lay_out(const Number* x, int64_t count, int64_t width) {
    for (int64_t r = 0; r < count; ++r) quantize(x + r * width, r, width);
    for (int64_t r = count; r < round_up(count, WIDE); ++r) {
      for (int64_t i = 0; i < width; i += 2 * WIDE) store_codes(r, i, width, _mm512_setzero_si512());
      scales_[r] = 0;
    }
  }

 private:
  void store_codes(int64_t r, int64_t i, int64_t width, __m512i codes) {
    const __m512i zeros = _mm512_set1_epi8(static_cast<char>(ZERO_CODE));
    _mm512_store_si512(tiles_ + in_tiles(r, i / InInt8::PACKED, width / InInt8::PACKED), _mm512_xor_si512(codes, zeros));
  }

  // Codes of row r: numbers over a scale by which the largest of them becomes 127; where one is not a number, no sum is one.
  template <typename Number>
  void quantize(const Number* x, int64_t r, int64_t width) {
    // Magnitudes are compared as integers, of which NaN is the largest.
    const auto magnitude = [](__m512 y) { return _mm512_and_si512(_mm512_castps_si512(y), _mm512_set1_epi32(0x7fffffff)); };
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += WIDE) {
      const Pair y = load(x + i);
      most = _mm512_max_epi32(most, _mm512_max_epi32(magnitude(y.low), magnitude(y.high)));
    }
    const int largest = _mm512_reduce_max_epi32(most);
    float magnitude_of_largest;
    std::memcpy(&magnitude_of_largest, &largest, sizeof(largest));
    const float scale = magnitude_of_largest / 127;
    const Pair inverse = pair_of(scale > 1e-30f ? 1 / scale : 0);
    for (int64_t i = 0; i < width; i += 2 * WIDE) {
      store_codes(r, i, width, codes(load(x + i) * inverse, load(x + i + WIDE) * inverse));
    }
    scales_[r] = scale;
  }

  // 64 numbers as signed bytes.
  static __m512i codes(Pair first, Pair second) {
    const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(first.low), _mm512_cvtps_epi32(first.high));
    const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(second.low), _mm512_cvtps_epi32(second.high));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // packing goes by quarters
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
  }

  Buffer<bf16> numbers_, tiles_;
  Buffer<float> scales_;
};

// Sums of row r with the bias.
template <typename Format>
inline Pair biased(const Rows<Format>& rows, const Weights& weights, int64_t o, int64_t r, const float* sums) {
  const Pair product = rows.product(weights, o, r, sums);
  return weights.bias ? product + load(weights.bias + o) : product;
}

// --- rows in pairs ----------------------------------------------------------------------------------------------------

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
