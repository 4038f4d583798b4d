// Linear layers in fp32, and all of a layer of BERT that follows attention. The functions are those of the kernels in bf16.
//
// A thread takes a block of rows through all it has to go through, so that what lies between stays in its cache.
//
// Legend: I inputs of a linear layer, O its outputs; both are multiples of 32.

#include "products.h"

namespace {

constexpr int64_t ROWS_OF_ONE = 96;           // of a block of one linear layer, whose outputs go to memory
constexpr int64_t BYTES_BETWEEN = 384 << 10;  // of what lies between the layers of a block

}  // namespace

extern "C" {

struct Norm {
  const float *weight, *bias;
  float epsilon;
};
}

namespace {

// Normalizes x + residual, rows of `width`; x is working space.
void add_and_norm(float* x, const float* residual, int64_t width, const Norm& norm, float* to) {
  for (int64_t i = 0; i < width; i += LANES) store(x + i, _mm256_add_ps(load(x + i), load(residual + i)));
  const Moments moments = moments_of(x, width, norm.epsilon);
  for (int64_t i = 0; i < width; i += LANES) {
    const __m256 even = _mm256_mul_ps(_mm256_sub_ps(load(x + i), moments.mean), moments.scale);
    store(to + i, _mm256_fmadd_ps(even, load(norm.weight + i), load(norm.bias + i)));
  }
}

}  // namespace

extern "C" {

// out = x W^T + b; rows of both lie end to end. Returns 0, or 1 where memory is out.
int bertray_linear(const float* x, int, int64_t num_rows, const Linear* linear, float* out, int, int num_threads) {
  const int64_t inputs = linear->inputs, outputs = linear->outputs, block = block_of(num_rows, ROWS_OF_ONE, num_threads);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Buffer<float> of_rows(block * (inputs + APART));
    const Rows rows{of_rows, inputs + APART};
    failed |= of_rows == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first);
      copy(x + first * inputs, count, inputs, inputs, rows);
      multiply(rows, count, Part(*linear), {out + first * outputs, outputs});
    }
  }
  return failed;
}

// What follows attention in a layer: y = norm(attended W^T + b + x), out = norm(W2 gelu(W1 y + b1) + b2 + y).
// Returns 0, or 1 where memory is out.
int bertray_feed_forward(const float* attended, const float* x, int64_t num_rows, const Linear* attended_linear,
                         const Norm* attended_norm, const Linear* up, const Linear* down, const Norm* output_norm, float* out,
                         int num_threads) {
  const int64_t hidden = up->inputs, inner = up->outputs, stride = hidden + APART;
  const int64_t block = block_of(num_rows, BYTES_BETWEEN / (3 * stride * static_cast<int64_t>(sizeof(float))), num_threads);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Buffer<float> of_activated(block * stride), of_middle(block * stride), of_sums(block * stride);
    const Rows activated{of_activated, stride}, middle{of_middle, stride}, sums{of_sums, stride};
    failed |= of_activated == nullptr || of_middle == nullptr || of_sums == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < num_rows; first += block) {
      if (failed) continue;
      const int64_t count = std::min(block, num_rows - first);
      copy(attended + first * hidden, count, hidden, hidden, activated);
      multiply(activated, count, Part(*attended_linear), sums);
      for (int64_t r = 0; r < count; ++r) {
        add_and_norm(sums.row(r), x + (first + r) * hidden, hidden, *attended_norm, middle.row(r));
      }
      // As many of the inner numbers at a time as there are hidden ones.
      for (int64_t i = 0; i < inner; i += hidden) {
        const int64_t width = std::min(hidden, inner - i);
        multiply<false>(middle, count, Part(*up, i, width, 0, hidden), activated, [&](int64_t r, int64_t rows, int64_t o) {
          for (float* row = activated.row(r) + o; rows > 0; --rows, row += stride) {
            store(row, gelu(load(row)));
            store(row + LANES, gelu(load(row + LANES)));
          }
        });
        const auto add = i == 0 ? multiply<false> : multiply<true>;
        add(activated, count, Part(*down, 0, hidden, i, width), sums);
      }
      for (int64_t r = 0; r < count; ++r) {
        add_and_norm(sums.row(r), middle.row(r), hidden, *output_norm, out + (first + r) * hidden);
      }
    }
  }
  return failed;
}
}
