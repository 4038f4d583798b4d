// One step of AdamW over all weights, as one pass through memory, which is all it costs: gradients are scaled as they are
// read, and rows of an embedding that no gradient has ever reached cost a fraction of the others.
//
// Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (algorithm 2), in the order of torch's.

#include <algorithm>

#include "tiles.h"

extern "C" {

// A weight as rows; those that are one piece are one row of any width. `place[r]` is where the gradient of row r lies among
// the rows of `gradient`, or -1 where it has none, which counts as zeros; null where every row has one, in order.
// `moved[r]`, null likewise, says whether the averages of row r are other than zero.
struct Weight {
  float *weight, *mean, *square;
  const float* gradient;
  int64_t rows, width;
  const int32_t* place;
  uint8_t* moved;
  float kept;  // of the weight, after decay
};

struct Step {
  float size;  // learning rate over the correction of the mean
  float of_gradient, beta_square, of_new_square, epsilon;  // 1 - beta of the mean; beta of the square and 1 - beta
  float root_of_correction;  // of the mean square
  float gradient_scale;
};
}

namespace {

constexpr int64_t CHUNK = 1 << 15;  // numbers of a row that a thread takes at a time

// One number of each lane.
struct Lanes {
  __m512 weight, mean, square;
};

inline Lanes moved_on(Lanes x, __m512 gradient, const Step& step, float kept) {
  gradient = _mm512_mul_ps(gradient, _mm512_set1_ps(step.gradient_scale));
  const __m512 off = _mm512_sub_ps(gradient, x.mean);
  x.mean = _mm512_fmadd_ps(off, _mm512_set1_ps(step.of_gradient), x.mean);
  const __m512 new_share = _mm512_mul_ps(_mm512_mul_ps(gradient, gradient), _mm512_set1_ps(step.of_new_square));
  x.square = _mm512_fmadd_ps(x.square, _mm512_set1_ps(step.beta_square), new_share);
  const __m512 root = _mm512_div_ps(_mm512_sqrt_ps(x.square), _mm512_set1_ps(step.root_of_correction));
  const __m512 by = _mm512_div_ps(x.mean, _mm512_add_ps(root, _mm512_set1_ps(step.epsilon)));
  x.weight = _mm512_fnmadd_ps(by, _mm512_set1_ps(step.size), _mm512_mul_ps(x.weight, _mm512_set1_ps(kept)));
  return x;
}

// Moves `count` numbers from `at` on; `gradient` is null where it is zero.
void move(const Weight& w, int64_t at, int64_t count, const float* gradient, const Step& step) {
  for (int64_t i = 0; i < count; i += ROWS) {
    const __mmask16 mask = count - i < ROWS ? (1u << (count - i)) - 1 : 0xffff;
    const Lanes x{_mm512_maskz_loadu_ps(mask, w.weight + at + i), _mm512_maskz_loadu_ps(mask, w.mean + at + i),
                  _mm512_maskz_loadu_ps(mask, w.square + at + i)};
    const __m512 g = gradient ? _mm512_maskz_loadu_ps(mask, gradient + i) : _mm512_setzero_ps();
    const Lanes y = moved_on(x, g, step, w.kept);
    _mm512_mask_storeu_ps(w.weight + at + i, mask, y.weight);
    _mm512_mask_storeu_ps(w.mean + at + i, mask, y.mean);
    _mm512_mask_storeu_ps(w.square + at + i, mask, y.square);
  }
}

void decay(const Weight& w, int64_t at, int64_t count) {
  if (w.kept == 1) return;
  for (int64_t i = 0; i < count; ++i) w.weight[at + i] *= w.kept;
}

}  // namespace

extern "C" {

void bertray_adamw(const Weight* weights, int64_t num_weights, const Step* step, int num_threads) {
#pragma omp parallel num_threads(num_threads)
  for (int64_t n = 0; n < num_weights; ++n) {
    const Weight& w = weights[n];
    if (w.place) {
#pragma omp for schedule(static) nowait
      for (int64_t r = 0; r < w.rows; ++r) {
        const int32_t place = w.place[r];
        w.moved[r] |= place >= 0;
        if (w.moved[r]) {
          move(w, r * w.width, w.width, place < 0 ? nullptr : w.gradient + place * w.width, *step);
        } else {
          decay(w, r * w.width, w.width);
        }
      }
    } else {
      const int64_t all = w.rows * w.width;
#pragma omp for schedule(static) nowait
      for (int64_t at = 0; at < all; at += CHUNK) move(w, at, std::min(CHUNK, all - at), w.gradient + at, *step);
    }
  }
}
}
