// Linear layers in bf16 or int8, and all of a layer of BERT that follows attention, with weights laid out in tiles.
//
// A thread takes a block of rows and takes it through all it has to go through, so that what lies between stays in its
// cache: products are summed in fp32 (of int8 in int32), and bias, GELU, residual and norm are added before anything is
// rounded to bf16 again, and for the next product to int8.
//
// Legend: I inputs of a linear layer, O its outputs; both are multiples of 32.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "products.h"

namespace {

constexpr int64_t ROWS_OF_ONE = 128;     // of a block of one linear layer, whose outputs go to memory
constexpr int64_t MOST_BYTES = SECOND_LEVEL_BYTES / 4 * 3;  // of what lies between a block's layers

}  // namespace

extern "C" {

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

// Sums of rows lie 32 x 32 at a time, those of the next outputs behind, a little apart: rows at powers of two share few
// places in a cache.
constexpr int64_t SUMS_APART = WIDE * WIDE + WIDE;

inline int64_t in_blocks(int64_t r, int64_t o, int64_t width) {
  return (r / WIDE * (width / WIDE) + o / WIDE) * SUMS_APART + r % WIDE * WIDE;
}

// Sums of all outputs of `num_rows` rows as fp32, without the bias; ADD: added to what is there.
template <typename Format, bool ADD>
void all_sums(const Weights& weights, const Rows<Format>& rows, int64_t num_rows, float* sums, float* waiting) {
  if constexpr (std::is_same_v<Format, InInt8>) {
    for_each_sum<Format>(weights, rows.tiles(), num_rows, waiting, [&](int64_t o, int64_t r, const float* part) {
      for (int64_t g = 0; g < GROUP; ++g) {
        float* const to = sums + in_blocks(r + g, o, weights.outputs);
        const Pair product = rows.product(weights, o, r + g, part + g * WIDE);
        store(to, ADD ? load(to) + product : product);
      }
    });
  } else {
    multiply_all<Format, ADD>(
        rows.tiles(), num_rows, weights,
        [&](int64_t o, int64_t first) { return sums + in_blocks(first, o, weights.outputs); },
        WIDE, [](int64_t, int64_t, int64_t) { return [] {}; });
  }
}

// Normalizes sums + bias + residual over row r; takes residuals from `residual(i)` and hands on numbers by `to(i, ...)`.
template <typename Residual, typename To>
void add_and_norm(float* sums, int64_t r, const Linear& linear, const Norm& norm, Residual residual, To to) {
  const int64_t width = linear.outputs;
  float* const row = sums + in_blocks(r, 0, width);
  const auto at = [&](int64_t i) { return row + i / WIDE * SUMS_APART; };
  Pair total = pair_of(0), squares = pair_of(0);
  for (int64_t i = 0; i < width; i += WIDE) {
    const Pair x = load(at(i)) + load(linear.bias + i) + residual(i);
    store(at(i), x);
    total = total + x;
  }
  const Pair mean = pair_of(sum(total) / width);
  for (int64_t i = 0; i < width; i += WIDE) {
    const Pair off = load(at(i)) - mean;
    squares = multiply_add(off, off, squares);
  }
  const Pair scale = pair_of(1.0f / std::sqrt(sum(squares) / width + norm.epsilon));
  for (int64_t i = 0; i < width; i += WIDE) {
    to(i, multiply_add((load(at(i)) - mean) * scale, load(norm.weight + i), load(norm.bias + i)));
  }
}

template <typename Format, typename In, typename Out>
int linear_of(const void* from, int64_t num_rows, const Linear& linear, void* to, int num_threads) {
  const In* x = static_cast<const In*>(from);
  Out* out = static_cast<Out*>(to);
  const Weights weights = linear.weights();
  const int64_t block = block_of(num_rows, ROWS_OF_ONE, num_threads);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    Rows<Format> rows(block, linear.inputs);
    const Buffer<float> waiting(2 * block * WIDE);
    failed |= rows.missing() || waiting == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first);
      rows.lay_out(x + first * linear.inputs, count, linear.inputs);
      for_each_sum<Format>(weights, rows.tiles(), round_up(count, WIDE), waiting, [&](int64_t o, int64_t r, const float* sums) {
        Out* row = out + (first + r) * linear.outputs + o;
        for (const int64_t end = std::min(r + GROUP, count); r < end; ++r, sums += WIDE, row += linear.outputs) {
          store(row, biased(rows, weights, o, r, sums));
        }
      });
    }
  }
  return failed;
}

template <typename Format>
int linear_in(const void* x, int x_is_wide, int64_t num_rows, const Linear& linear, void* out, int out_is_wide,
              int num_threads) {
  const auto run = x_is_wide ? (out_is_wide ? linear_of<Format, float, float> : linear_of<Format, float, bf16>)
                             : (out_is_wide ? linear_of<Format, bf16, float> : linear_of<Format, bf16, bf16>);
  return run(x, num_rows, linear, out, num_threads);
}

template <typename Format>
int feed_forward_of(const bf16* attended, const bf16* x, int64_t num_rows, const Linear& attended_linear,
                    const Norm& attended_norm, const Linear& up, const Linear& down, const Norm& output_norm, bf16* out,
                    int num_threads) {
  const int64_t hidden = up.inputs, inner = up.outputs;
  const int64_t bytes_a_row = hidden * (2 * Rows<Format>::BYTES + sizeof(float));
  const int64_t block = block_of(num_rows, MOST_BYTES / bytes_a_row, num_threads);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    Rows<Format> middle(block, hidden), activated(block, hidden);
    const Buffer<float> sums(in_blocks(block, 0, hidden)), waiting(2 * block * WIDE);
    failed |= middle.missing() || activated.missing() || sums == nullptr || waiting == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first), whole = round_up(count, WIDE);
      // What attention gave lies where activated numbers will.
      activated.lay_out(attended + first * hidden, count, hidden);
      all_sums<Format, false>(attended_linear.weights(), activated, whole, sums, waiting);
      for (int64_t r = 0; r < whole; ++r) {
        const int64_t row = first + std::min(r, count - 1);  // what fills the block repeats the last row, and is thrown away
        add_and_norm(sums, r, attended_linear, attended_norm,
                     [&](int64_t i) { return load(x + row * hidden + i); },
                     [&](int64_t i, Pair y) { middle.put(r, i, hidden, y); });
        middle.complete(r, hidden);
      }
      // As many of the inner numbers at a time as there are hidden ones.
      for (int64_t i = 0; i < inner; i += hidden) {
        const int64_t width = std::min(hidden, inner - i);
        const Weights to_inner = up.outputs_from(i, width);
        for_each_sum<Format>(to_inner, middle.tiles(), whole, waiting, [&](int64_t o, int64_t r, const float* part) {
          for (int64_t g = 0; g < GROUP; ++g) {
            activated.put(r + g, o, width, gelu(biased(middle, to_inner, o, r + g, part + g * WIDE)));
          }
        });
        for (int64_t r = 0; r < whole; ++r) activated.complete(r, width);
        const auto add = i == 0 ? all_sums<Format, false> : all_sums<Format, true>;
        add(down.inputs_from(i, width), activated, whole, sums, waiting);
      }
      for (int64_t r = 0; r < count; ++r) {
        add_and_norm(sums, r, down, output_norm, [&](int64_t i) { return middle.at(r, i, hidden); },
                     [&](int64_t i, Pair y) { store(out + (first + r) * hidden + i, y); });
      }
    }
  }
  return failed;
}

}  // namespace

extern "C" {

// out = x W^T + b; rows of both lie end to end, each in fp32 where it is `wide`. Returns 0, or 1 where memory is out.
int bertray_linear(const void* x, int x_is_wide, int64_t num_rows, const Linear* linear, void* out, int out_is_wide,
                   int num_threads) {
  const auto run = linear->in_int8() ? linear_in<InInt8> : linear_in<InBf16>;
  return run(x, x_is_wide, num_rows, *linear, out, out_is_wide, num_threads);
}

// What follows attention in a layer: y = norm(attended W^T + b + x), out = norm(W2 gelu(W1 y + b1) + b2 + y). All of its linear
// layers are in one number format. Returns 0, or 1 where memory is out.
int bertray_feed_forward(const bf16* attended, const bf16* x, int64_t num_rows, const Linear* attended_linear,
                         const Norm* attended_norm, const Linear* up, const Linear* down, const Norm* output_norm,
                         bf16* out, int num_threads) {
  const auto run = up->in_int8() ? feed_forward_of<InInt8> : feed_forward_of<InBf16>;
  return run(attended, x, num_rows, *attended_linear, *attended_norm, *up, *down, *output_norm, out, num_threads);
}
}
