// Linear layers in bf16 on AMX, and all of a layer of BERT that follows attention, with weights laid out in tiles.
//
// A thread takes a block of rows and takes it through all it has to go through, so that what lies between stays in its
// cache: products are summed in fp32, and bias, GELU, residual and norm are added before anything is rounded to bf16.
//
// Legend: I inputs of a linear layer, O its outputs; both are multiples of 32.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "products.h"

namespace {

constexpr int64_t MOST_ROWS = 128;  // of a block: what lies between its layers fits a second-level cache

}  // namespace

extern "C" {

// For each 32 outputs and each 32 inputs two tiles, 16 outputs each: pairs of inputs a row. The bias is in fp32, or null.
struct Linear {
  const bf16* tiles;
  const float* bias;
  int64_t inputs, outputs;
};

struct Norm {
  const float *weight, *bias;
  float epsilon;
};
}

namespace {

// x times the normal distribution's share below it, within 6e-5: the exact GELU.
inline Pair gelu(Pair x) {
  constexpr float FAR = 4.3f;  // beyond it the error function is 1 within 2e-5
  static const float coefficients[] = {1.032203836e-10f, -1.007241401e-08f, 4.338497490e-07f,
                                       -1.098431494e-05f, 1.844732324e-04f, -2.205426339e-03f,
                                       1.960161515e-02f,  -1.326541901e-01f, 7.977932692e-01f};
  const __m512 far = _mm512_set1_ps(FAR), near = _mm512_set1_ps(-FAR);
  // The number comes second, so that NaN stays NaN.
  const Pair z{_mm512_min_ps(far, _mm512_max_ps(near, x.low)), _mm512_min_ps(far, _mm512_max_ps(near, x.high))};
  const Pair square = z * z;
  Pair y = pair_of(coefficients[0]);
  for (int i = 1; i < 9; ++i) y = multiply_add(y, square, pair_of(coefficients[i]));
  const Pair half = x * pair_of(0.5f);
  return multiply_add(half * z, y, half);
}

// Calls `row(o, r, sums)` for each row r of `x` and each 32 outputs from o on with their sums, without the bias. Rows come in
// whole blocks of 32, in tiles.
template <typename Row>
void for_each_sum(const Linear& linear, const bf16* x, int64_t num_rows, Row row) {
  alignas(64) float sums[2][WIDE * WIDE];
  const bf16* tiles = linear.tiles;
  int64_t made = 0, o_before = 0, first_before = 0;
  const auto hand_on = [&](int64_t r) {
    row(o_before, first_before + r, load(sums[(made - 1) % 2] + r * WIDE));
  };
  for (int64_t o = 0; o < linear.outputs; o += WIDE, tiles += linear.inputs * WIDE) {
    for (int64_t first = 0; first < num_rows; first += WIDE) {
      float* const to = sums[made % 2];
      if (made == 0) {
        multiply(x + first * linear.inputs, tiles, linear.inputs, to, WIDE * sizeof(float), [](int64_t) {});
      } else {
        multiply(x + first * linear.inputs, tiles, linear.inputs, to, WIDE * sizeof(float), hand_on);
      }
      ++made;
      o_before = o;
      first_before = first;
    }
  }
  for (int64_t r = 0; r < WIDE; ++r) hand_on(r);
}

// Sums of all outputs of the rows of `x`, [num_rows, outputs] in fp32, without the bias.
void all_sums(const Linear& linear, const bf16* x, int64_t num_rows, float* sums, int64_t sums_stride) {
  const bf16* tiles = linear.tiles;
  for (int64_t o = 0; o < linear.outputs; o += WIDE, tiles += linear.inputs * WIDE) {
    for (int64_t first = 0; first < num_rows; first += WIDE) {
      multiply(x + first * linear.inputs, tiles, linear.inputs, sums + first * sums_stride + o,
               sums_stride * sizeof(float), [](int64_t) {});
    }
  }
}

// Normalizes sums + bias + residual over a row; takes residuals from `residual(i)` and hands on numbers by `to(i, ...)`.
template <typename Residual, typename To>
void add_and_norm(float* sums, const Linear& linear, const Norm& norm, Residual residual, To to) {
  const int64_t width = linear.outputs;
  Pair total = pair_of(0), squares = pair_of(0);
  for (int64_t i = 0; i < width; i += WIDE) {
    const Pair x = load(sums + i) + load(linear.bias + i) + residual(i);
    store(sums + i, x);
    total = total + x;
  }
  const Pair mean = pair_of(sum(total) / width);
  for (int64_t i = 0; i < width; i += WIDE) {
    const Pair off = load(sums + i) - mean;
    squares = multiply_add(off, off, squares);
  }
  const Pair scale = pair_of(1.0f / std::sqrt(sum(squares) / width + norm.epsilon));
  for (int64_t i = 0; i < width; i += WIDE) {
    to(i, multiply_add((load(sums + i) - mean) * scale, load(norm.weight + i), load(norm.bias + i)));
  }
}

// So that every thread has work.
int64_t block_of(int64_t num_rows, int num_threads) {
  return std::clamp(round_up((num_rows + num_threads - 1) / num_threads, WIDE), int64_t{WIDE}, MOST_ROWS);
}

template <typename In, typename Out>
int linear_of(const void* from, int64_t num_rows, const Linear& linear, void* to, int num_threads) {
  const In* x = static_cast<const In*>(from);
  Out* out = static_cast<Out*>(to);
  const int64_t block = block_of(num_rows, num_threads);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    const Buffer<bf16> copy(block * linear.inputs);
    failed |= copy == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first);
      lay_out(x + first * linear.inputs, count, linear.inputs, copy);
      for_each_sum(linear, copy, round_up(count, WIDE), [&](int64_t o, int64_t r, Pair sums) {
        if (r >= count) return;
        store(out + (first + r) * linear.outputs + o, linear.bias ? sums + load(linear.bias + o) : sums);
      });
    }
  }
  return failed;
}

}  // namespace

extern "C" {

// out = x W^T + b; rows of both lie end to end, each in fp32 where it is `wide`. Returns 0, or 1 where memory is out.
int bertray_linear(const void* x, int x_is_wide, int64_t num_rows, const Linear* linear, void* out, int out_is_wide,
                   int num_threads) {
  const auto run = x_is_wide ? (out_is_wide ? linear_of<float, float> : linear_of<float, bf16>)
                             : (out_is_wide ? linear_of<bf16, float> : linear_of<bf16, bf16>);
  return run(x, num_rows, *linear, out, num_threads);
}

// What follows attention in a layer: y = norm(attended W^T + b + x), out = norm(W2 gelu(W1 y + b1) + b2 + y).
// Returns 0, or 1 where memory is out.
int bertray_feed_forward(const bf16* attended, const bf16* x, int64_t num_rows, const Linear* attended_linear,
                         const Norm* attended_norm, const Linear* up, const Linear* down, const Norm* output_norm,
                         bf16* out, int num_threads) {
  const int64_t hidden = up->inputs, inner = up->outputs;
  const int64_t block = block_of(num_rows, num_threads);
  const int64_t sums_stride = hidden + ROWS;  // rows at powers of two share few places in a cache
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    const Buffer<bf16> copy(block * hidden), middle(block * hidden), activated(block * inner);
    const Buffer<float> sums(block * sums_stride);
    failed |= copy == nullptr || middle == nullptr || activated == nullptr || sums == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first), whole = round_up(count, WIDE);
      lay_out(attended + first * hidden, count, hidden, copy);
      all_sums(*attended_linear, copy, whole, sums, sums_stride);
      for (int64_t r = 0; r < whole; ++r) {
        const int64_t row = first + std::min(r, count - 1);  // what fills the block repeats the last row, and is thrown away
        add_and_norm(sums + r * sums_stride, *attended_linear, *attended_norm,
                     [&](int64_t i) { return load(x + row * hidden + i); },
                     [&](int64_t i, Pair y) { store(middle + in_tiles(r, i, hidden), y); });
      }
      for_each_sum(*up, middle, whole, [&](int64_t o, int64_t r, Pair part) {
        store(activated + in_tiles(r, o, inner), gelu(part + load(up->bias + o)));
      });
      all_sums(*down, activated, whole, sums, sums_stride);
      for (int64_t r = 0; r < count; ++r) {
        add_and_norm(sums + r * sums_stride, *down, *output_norm,
                     [&](int64_t i) { return load(middle + in_tiles(r, i, hidden)); },
                     [&](int64_t i, Pair y) { store(out + (first + r) * hidden + i, y); });
      }
    }
  }
  return failed;
}
}
