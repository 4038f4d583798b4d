// One step of AdamW over all weights, as one pass through memory, which is all it costs: gradients are scaled as they are
// read, and rows of an embedding that no gradient has ever reached cost a fraction of the others.
//
// Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (algorithm 2), in the order of torch's.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

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

// Moves `count` numbers from `at` on by `gradient(i)`; the compiler takes whole registers of them. Which products are added without
// rounding is written out, so that all instruction sets have the same numbers.
template <typename Gradient>
inline void move(const Weight& w, int64_t at, int64_t count, Gradient gradient, const Step& step) {
  float* __restrict weight = w.weight + at;
  float* __restrict mean = w.mean + at;
  float* __restrict square = w.square + at;
  const Step s = step;
  const float share_left = w.share_left;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient(i) * s.gradient_scale;
    mean[i] = __builtin_fmaf(g - mean[i], s.one_minus_beta_mean, mean[i]);
    square[i] = __builtin_fmaf(square[i], s.beta_square, g * g * s.one_minus_beta_square);
    const float root = __builtin_sqrtf(square[i]) / s.root_of_correction;
    weight[i] = __builtin_fmaf(-(mean[i] / (root + s.epsilon)), s.corrected_rate, weight[i] * share_left);
  }
}

// As above, by `gradient`, which is null where it is zero.
void move(const Weight& w, int64_t at, int64_t count, const float* gradient, const Step& step) {
  if (gradient) {
    move(w, at, count, [=](int64_t i) { return gradient[i]; }, step);
  } else {
    move(w, at, count, [](int64_t) { return 0.0f; }, step);
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
