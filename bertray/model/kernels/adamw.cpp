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
  float share_left;  // of the weight, after decay
};

struct Step {
  float corrected_rate;  // learning rate over the correction of the mean
  float one_minus_beta_mean, beta_square, one_minus_beta_square, epsilon;
  float root_of_correction;  // of the mean square
  float gradient_scale;
};
}

namespace {

constexpr int64_t CHUNK = 1 << 15;      // numbers of a row that a thread takes at a time
constexpr int64_t ROWS_AT_A_TIME = 64;  // of a vocabulary, whose first words are the frequent ones

// For as long as it lives, numbers too small for fp32's usual form count as 0: the average of a word that comes once decays
// through them for hundreds of steps, and the processor is many times slower with them.
class NoDenormals {
 public:
  NoDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO); }
  ~NoDenormals() { _mm_setcsr(before_); }
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;

 private:
  static constexpr unsigned FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x0040;
  const unsigned before_;
};

// One number of each lane.
struct Lanes {
  __m512 weight, mean, square;
};

inline Lanes moved_on(Lanes x, __m512 gradient, const Step& step, float share_left) {
  gradient = _mm512_mul_ps(gradient, _mm512_set1_ps(step.gradient_scale));
  const __m512 off = _mm512_sub_ps(gradient, x.mean);
  x.mean = _mm512_fmadd_ps(off, _mm512_set1_ps(step.one_minus_beta_mean), x.mean);
  const __m512 new_share = _mm512_mul_ps(_mm512_mul_ps(gradient, gradient), _mm512_set1_ps(step.one_minus_beta_square));
  x.square = _mm512_fmadd_ps(x.square, _mm512_set1_ps(step.beta_square), new_share);
  const __m512 root = _mm512_div_ps(_mm512_sqrt_ps(x.square), _mm512_set1_ps(step.root_of_correction));
  const __m512 by = _mm512_div_ps(x.mean, _mm512_add_ps(root, _mm512_set1_ps(step.epsilon)));
  x.weight = _mm512_fnmadd_ps(by, _mm512_set1_ps(step.corrected_rate), _mm512_mul_ps(x.weight, _mm512_set1_ps(share_left)));
  return x;
}

// Moves `count` numbers from `at` on; `gradient` is null where it is zero.
void move(const Weight& w, int64_t at, int64_t count, const float* gradient, const Step& step) {
  for (int64_t i = 0; i < count; i += ROWS) {
    const __mmask16 mask = count - i < ROWS ? (1u << (count - i)) - 1 : 0xffff;
    const Lanes x{_mm512_maskz_loadu_ps(mask, w.weight + at + i), _mm512_maskz_loadu_ps(mask, w.mean + at + i),
                  _mm512_maskz_loadu_ps(mask, w.square + at + i)};
    const __m512 g = gradient ? _mm512_maskz_loadu_ps(mask, gradient + i) : _mm512_setzero_ps();
    const Lanes y = moved_on(x, g, step, w.share_left);
    _mm512_mask_storeu_ps(w.weight + at + i, mask, y.weight);
    _mm512_mask_storeu_ps(w.mean + at + i, mask, y.mean);
    _mm512_mask_storeu_ps(w.square + at + i, mask, y.square);
  }
}

void decay(const Weight& w, int64_t at, int64_t count) {
  if (w.share_left == 1) return;
  for (int64_t i = 0; i < count; ++i) w.weight[at + i] *= w.share_left;
}

}  // namespace

extern "C" {

void bertray_adamw(const Weight* weights, int64_t num_weights, const Step* step, int num_threads) {
#pragma omp parallel num_threads(num_threads)
  {
    const NoDenormals flushed;
    for (int64_t n = 0; n < num_weights; ++n) {
      const Weight& w = weights[n];
      if (w.place) {
#pragma omp for schedule(static, ROWS_AT_A_TIME) nowait
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
}
