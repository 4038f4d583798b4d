// Products of matrices in fp32, ROWS rows and COLUMNS columns at a time, whose sums fill twelve registers. The sums of a row
// are made in one order, whatever rows are beside it: no row depends on another.

#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.h"

constexpr int COLUMNS = 2 * LANES, ROWS = 6;
constexpr int64_t APART = COLUMNS;  // between rows of working space: those at powers of two share few places in a cache

// Left-hand side: the next row lies `stride` on, the next input `step`.
struct Left {
  const float* at;
  int64_t stride, step;

  Left row(int64_t r) const { return {at + r * stride, stride, step}; }
};

// Right-hand side: COLUMNS numbers of an input, those of the next input `stride` on.
struct Right {
  const float* at;
  int64_t stride;
};

// Rows whose numbers lie side by side, `stride` from row to row.
struct Rows {
  float* at;
  int64_t stride;

  float* row(int64_t r) const { return at + r * stride; }
  operator Left() const { return {at, stride, 1}; }
};

// What sums begin with: nothing, the bias of their columns, or what is there.
enum class From { ZERO, BIAS, THERE };

template <int M, From FROM>
[[gnu::always_inline]] inline void product(Left x, Right y, int64_t inputs, const float* bias, Rows sums) {
  __m256 low[M], high[M];
#pragma GCC unroll 6
  for (int r = 0; r < M; ++r) {
    const float* from = FROM == From::BIAS ? bias : sums.row(r);
    low[r] = FROM == From::ZERO ? _mm256_setzero_ps() : load(from);
    high[r] = FROM == From::ZERO ? _mm256_setzero_ps() : load(from + LANES);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < inputs; ++i, x.at += x.step, y.at += y.stride) {
    const __m256 first = load(y.at), second = load(y.at + LANES);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) {
      const __m256 one = _mm256_broadcast_ss(x.at + r * x.stride);
      low[r] = _mm256_fmadd_ps(one, first, low[r]);
      high[r] = _mm256_fmadd_ps(one, second, high[r]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < M; ++r) {
    store(sums.row(r), low[r]);
    store(sums.row(r) + LANES, high[r]);
  }
}

// Sums over all inputs of `rows` rows, at most ROWS, for COLUMNS columns.
template <From FROM>
inline void product_of(int64_t rows, Left x, Right y, int64_t inputs, Rows sums, const float* bias = nullptr) {
  switch (rows) {
    case 1: return product<1, FROM>(x, y, inputs, bias, sums);
    case 2: return product<2, FROM>(x, y, inputs, bias, sums);
    case 3: return product<3, FROM>(x, y, inputs, bias, sums);
    case 4: return product<4, FROM>(x, y, inputs, bias, sums);
    case 5: return product<5, FROM>(x, y, inputs, bias, sums);
    default: return product<ROWS, FROM>(x, y, inputs, bias, sums);
  }
}

// As above, for any number of rows and `columns` columns; of these the next COLUMNS lie `apart` on.
inline void product_of_all(int64_t num_rows, Left x, Right y, int64_t apart, int64_t inputs, int64_t columns, Rows sums) {
  for (int64_t column = 0; column < columns; column += COLUMNS, y.at += apart) {
    for (int64_t r = 0; r < num_rows; r += ROWS) {
      product_of<From::ZERO>(std::min<int64_t>(ROWS, num_rows - r), x.row(r), y, inputs, {sums.row(r) + column, sums.stride});
    }
  }
}

// --- linear layers ----------------------------------------------------------------------------------------------------

constexpr int64_t MOST_INPUTS = 256;  // of COLUMNS outputs the weights of so many stay in a first-level cache
constexpr int64_t MOST_ROWS = 144;    // of a block that a thread takes

extern "C" {

// For each COLUMNS outputs their weights of every input, input after input. The bias may be null.
struct Linear {
  const float *panels, *bias;
  int64_t inputs, outputs;
};
}

// A part of a linear layer: `outputs` from `o` on, `inputs` from `i` on.
struct Part {
  const Linear* linear;
  int64_t o, outputs, i, inputs;

  explicit Part(const Linear& linear) : Part(linear, 0, linear.outputs, 0, linear.inputs) {}
  Part(const Linear& linear, int64_t o, int64_t outputs, int64_t i, int64_t inputs)
      : linear(&linear), o(o), outputs(outputs), i(i), inputs(inputs) {}

  const float* panel(int64_t at) const { return linear->panels + (o + at) * linear->inputs + i * COLUMNS; }
};

// Sums of a part for all rows of `x`, with its bias or, ADD, added to what is there. Calls `made(r, rows, o)` when the sums of
// `rows` rows from r on and COLUMNS outputs from o on are there.
template <bool ADD, typename Made>
void multiply(Left x, int64_t num_rows, const Part& part, Rows sums, Made made) {
  const int64_t turns = (part.inputs + MOST_INPUTS - 1) / MOST_INPUTS;
  const int64_t at_a_time = round_up((part.inputs + turns - 1) / turns, LANES);
  static const float no_bias[COLUMNS] = {};
  for (int64_t o = 0; o < part.outputs; o += COLUMNS) {
    const float* const bias = part.linear->bias ? part.linear->bias + part.o + o : no_bias;
    for (int64_t i = 0; i < part.inputs; i += at_a_time) {
      const int64_t count = std::min(at_a_time, part.inputs - i);
      const bool last = i + count == part.inputs;
      const Right panel{part.panel(o) + i * COLUMNS, COLUMNS};
      // The next weights come into the second-level cache meanwhile.
      const float* ahead = last ? part.panel(o + COLUMNS) : panel.at + count * COLUMNS;
      const int64_t groups = (num_rows + ROWS - 1) / ROWS;
      const int64_t lines = last && o + COLUMNS == part.outputs ? 0 : (count + groups - 1) / groups;
      for (int64_t r = 0; r < num_rows; r += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, num_rows - r);
        for (int64_t line = 0; line < lines; ++line, ahead += COLUMNS) _mm_prefetch(ahead, _MM_HINT_T1);
        const Left from{x.row(r).at + i * x.step, x.stride, x.step};
        const Rows to{sums.row(r) + o, sums.stride};
        if (ADD || i > 0) {
          product_of<From::THERE>(rows, from, panel, count, to);
        } else {
          product_of<From::BIAS>(rows, from, panel, count, to, bias);
        }
        if (last) made(r, rows, o);
      }
    }
  }
}

template <bool ADD = false>
void multiply(Left x, int64_t num_rows, const Part& part, Rows sums) {
  multiply<ADD>(x, num_rows, part, sums, [](int64_t, int64_t, int64_t) {});
}

inline void copy(const float* x, int64_t num_rows, int64_t stride, int64_t width, Rows to) {
  for (int64_t r = 0; r < num_rows; ++r) std::memcpy(to.row(r), x + r * stride, width * sizeof(float));
}

// Rows of a block, at most so many: every thread has as much to do, as far as ROWS at a time allow.
inline int64_t block_of(int64_t num_rows, int64_t most, int num_threads) {
  most = std::clamp(most / ROWS * ROWS, int64_t{ROWS}, MOST_ROWS);
  const int64_t rounds = (num_rows + most * num_threads - 1) / (most * num_threads);
  const int64_t blocks = std::max(rounds * num_threads, int64_t{1});
  return std::max(round_up((num_rows + blocks - 1) / blocks, ROWS), int64_t{ROWS});
}
