// Attention within each of many sequences that lie end to end, in fp32. The functions are those of the kernels in bf16.
//
// A job is one head of one sequence. Nothing is padded beyond the last registers of a row, and no sequence depends on another.
//
// Legend: T packed tokens, Q queries of a sequence, K its keys, E size of a head.

#include "../common/sequences.h"
#include "products.h"

namespace {

constexpr int CHUNK = 4;  // jobs that a thread takes at a time

struct Heads {
  const float *query, *key, *value;
  int64_t query_stride, key_stride;  // from token to token; values lie as keys do
  int64_t size;
  float scale;
};

// The 8 x 8 numbers of `row`, transposed.
inline void transpose(__m256* row) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    row[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    row[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    row[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    row[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(row[i], row[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(row[i], row[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) row[i] = t[i];
}

// A right-hand side that sums over the numbers of a head: for each COLUMNS rows of `x` number after number. Beyond the last
// row are zeros.
void lay_out(const float* x, int64_t stride, int64_t num_rows, int64_t size, float* to) {
  for (int64_t first = 0; first < round_up(num_rows, COLUMNS); first += LANES) {
    float* const panel = to + first / COLUMNS * COLUMNS * size + first % COLUMNS;
    for (int64_t e = 0; e < size; e += LANES) {
      __m256 row[LANES];
      for (int i = 0; i < LANES; ++i) row[i] = first + i < num_rows ? load(x + (first + i) * stride + e) : _mm256_setzero_ps();
      transpose(row);
      for (int i = 0; i < LANES; ++i) store(panel + (e + i) * COLUMNS, row[i]);
    }
  }
}

// Scores become probabilities times their sum; returns one over the sum.
float exponentiate(float* scores, int64_t num_keys, float scale) {
  const __m256 factor = all(scale * 1.44269504f);
  const int64_t end = round_up(num_keys, LANES);
  for (int64_t k = num_keys; k < end; ++k) scores[k] = -INFINITY;
  __m256 most = all(-INFINITY), total = _mm256_setzero_ps();
  for (int64_t k = 0; k < end; k += LANES) most = _mm256_max_ps(most, load(scores + k));
  most = all(largest(most));
  for (int64_t k = 0; k < end; k += LANES) {
    const __m256 power = exp2_of(_mm256_mul_ps(_mm256_sub_ps(load(scores + k), most), factor));
    store(scores + k, power);
    total = _mm256_add_ps(total, power);
  }
  return 1.0f / sum(total);
}

// What one thread needs for sequences of at most `most_keys`.
struct Scratch {
  int64_t stride;
  Buffer<float> keys, scores, mixed;

  Scratch(int64_t most_keys, int64_t size)
      : stride(round_up(most_keys, COLUMNS) + APART),
        keys(round_up(most_keys, COLUMNS) * size),
        scores(ROWS * stride),
        mixed(ROWS * size) {}

  bool missing() const { return keys == nullptr || scores == nullptr || mixed == nullptr; }
};

void attend(const Heads& heads, int64_t num_queries, int64_t num_keys, const Scratch& scratch, float* out, int64_t out_stride) {
  lay_out(heads.key, heads.key_stride, num_keys, heads.size, scratch.keys);
  const Rows scores{scratch.scores, scratch.stride}, mixed{scratch.mixed, heads.size};
  for (int64_t first = 0; first < num_queries; first += ROWS, out += ROWS * out_stride) {
    const int64_t rows = std::min<int64_t>(ROWS, num_queries - first);
    const Left queries{heads.query + first * heads.query_stride, heads.query_stride, 1};
    product_of_all(rows, queries, {scratch.keys, COLUMNS}, COLUMNS * heads.size, heads.size, num_keys, scores);
    float share[ROWS];
    for (int64_t r = 0; r < rows; ++r) share[r] = exponentiate(scores.row(r), num_keys, heads.scale);
    product_of_all(rows, scores, {heads.value, heads.key_stride}, COLUMNS, num_keys, heads.size, mixed);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t e = 0; e < heads.size; e += LANES) {
        store(out + r * out_stride + e, _mm256_mul_ps(load(mixed.row(r) + e), all(share[r])));
      }
    }
  }
}

// --- backward ---------------------------------------------------------------------------------------------------------

// Numbers of a head from token to token, `stride` apart.
struct HeadGradients {
  const float* upstream;
  int64_t upstream_stride;
  float *query, *key, *value;
  int64_t stride;
};

// What one thread needs for sequences of at most `longest` tokens.
struct BackwardScratch {
  int64_t stride;
  Buffer<float> keys, values, query_rows, key_rows, upstream_rows, probs, gradients;

  BackwardScratch(int64_t longest, int64_t size)
      : stride(round_up(longest, COLUMNS) + APART),
        keys(round_up(longest, COLUMNS) * size),
        values(round_up(longest, COLUMNS) * size),
        query_rows(longest * size),
        key_rows(longest * size),
        upstream_rows(longest * size),
        probs(longest * stride),
        gradients(longest * stride) {}

  bool missing() const {
    return keys == nullptr || values == nullptr || query_rows == nullptr || key_rows == nullptr || upstream_rows == nullptr ||
           probs == nullptr || gradients == nullptr;
  }
};

// Of a row: probabilities from their multiples, and gradients of scores from those of probabilities.
void backward_of_softmax(float* probs, float share, float* gradients, int64_t num_keys, float scale) {
  __m256 along = _mm256_setzero_ps();
  const int64_t end = round_up(num_keys, LANES);
  for (int64_t k = num_keys; k < end; ++k) probs[k] = 0;
  for (int64_t k = 0; k < end; k += LANES) {
    const __m256 prob = _mm256_mul_ps(load(probs + k), all(share));
    store(probs + k, prob);
    along = _mm256_fmadd_ps(prob, load(gradients + k), along);
  }
  const __m256 mean = all(sum(along));
  for (int64_t k = 0; k < end; k += LANES) {
    const __m256 off = _mm256_mul_ps(_mm256_sub_ps(load(gradients + k), mean), all(scale));
    store(gradients + k, _mm256_mul_ps(load(probs + k), off));
  }
}

void attend_backward(const Heads& heads, int64_t length, const HeadGradients& to, const BackwardScratch& scratch) {
  const int64_t size = heads.size;
  lay_out(heads.key, heads.key_stride, length, size, scratch.keys);
  lay_out(heads.value, heads.key_stride, length, size, scratch.values);
  const Rows queries{scratch.query_rows, size}, keys{scratch.key_rows, size}, upstream{scratch.upstream_rows, size};
  copy(heads.query, length, heads.query_stride, size, queries);
  copy(heads.key, length, heads.key_stride, size, keys);
  copy(to.upstream, length, to.upstream_stride, size, upstream);
  const Rows probs{scratch.probs, scratch.stride}, gradients{scratch.gradients, scratch.stride};
  product_of_all(length, queries, {scratch.keys, COLUMNS}, COLUMNS * size, size, length, probs);
  product_of_all(length, upstream, {scratch.values, COLUMNS}, COLUMNS * size, size, length, gradients);
  for (int64_t r = 0; r < length; ++r) {
    const float share = exponentiate(probs.row(r), length, heads.scale);
    backward_of_softmax(probs.row(r), share, gradients.row(r), length, heads.scale);
  }
  const auto transposed = [](Rows x) { return Left{x.at, 1, x.stride}; };
  product_of_all(length, gradients, {keys.at, size}, COLUMNS, length, size, {to.query, to.stride});
  product_of_all(length, transposed(gradients), {queries.at, size}, COLUMNS, length, size, {to.key, to.stride});
  product_of_all(length, transposed(probs), {upstream.at, size}, COLUMNS, length, size, {to.value, to.stride});
}

}  // namespace

extern "C" {

// Queries, keys and values of head h begin at `+ h * size`; rows of a token lie a stride apart. Sequence b has queries
// [query_bounds[b], query_bounds[b + 1]) and keys alike. Returns 0, 1 where memory is out, or 2 where a head has no size that
// fits.
int bertray_attention(const float* query, int64_t query_stride, const float* key, const float* value, int64_t key_stride,
                      const int32_t* query_bounds, const int32_t* key_bounds, int64_t num_sequences, int num_heads, int size,
                      float* out, int64_t out_stride, int num_threads) {
  if (!has_a_size(size)) return 2;
  const int64_t most_keys = longest_of(key_bounds, num_sequences), num_jobs = num_sequences * num_heads;
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Scratch scratch(most_keys, size);
    failed |= scratch.missing();
#pragma omp for schedule(dynamic, CHUNK)
    for (int64_t job = 0; job < num_jobs; ++job) {
      if (failed) continue;
      const int64_t b = job / num_heads, offset = job % num_heads * size;
      const int64_t first_query = query_bounds[b], first_key = key_bounds[b];
      const Heads heads{query + first_query * query_stride + offset,
                        key + first_key * key_stride + offset,
                        value + first_key * key_stride + offset,
                        query_stride,
                        key_stride,
                        size,
                        scale_of(size)};
      attend(heads, query_bounds[b + 1] - first_query, key_bounds[b + 1] - first_key, scratch,
             out + first_query * out_stride + offset, out_stride);
    }
  }
  return failed;
}

// Attention within each sequence of `x`, [T, D], by queries, keys and values that `linear` makes of it: those of the first
// head side by side, then those of the next. What a thread makes of some sequences stays in its cache. Returns 0, 1 where
// memory is out, or 2 where a head has no size that fits.
int bertray_self_attention(const float* x, const Linear* linear, const int32_t* bounds, int64_t num_sequences, int num_heads,
                           float* out, int num_threads) {
  const int64_t hidden = linear->inputs, size = linear->outputs / num_heads / 3;
  if (!has_a_size(size)) return 2;
  const int64_t stride = 3 * size + APART;
  const Blocks blocks{bounds, num_sequences, block_of(bounds[num_sequences], MOST_ROWS, num_threads)};
  const int64_t longest = longest_of(bounds, num_sequences), most = blocks.most_rows();
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Scratch scratch(longest, size);
    const Buffer<float> of_rows(most * (hidden + APART)), of_made(most * stride);
    const Rows rows{of_rows, hidden + APART}, made{of_made, stride};
    failed |= scratch.missing() || of_rows == nullptr || of_made == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < blocks.count(); ++n) {
      const int64_t begin = blocks.begin_of(n), end = blocks.begin_of(n + 1), first = bounds[begin], count = bounds[end] - first;
      if (failed || count == 0) continue;
      copy(x + first * hidden, count, hidden, hidden, rows);
      for (int head = 0; head < num_heads; ++head) {
        multiply(rows, count, Part(*linear, head * 3 * size, 3 * size, 0, hidden), made);
        for (int64_t b = begin; b < end; ++b) {
          const int64_t row = bounds[b], length = bounds[b + 1] - row;
          const float* const query = made.row(row - first);
          const Heads heads{query, query + size, query + 2 * size, stride, stride, size, scale_of(size)};
          attend(heads, length, length, scratch, out + row * hidden + head * size, hidden);
        }
      }
    }
  }
  return failed;
}

// Gradients of queries, keys and values, whose rows lie `gradient_stride` apart, from that of what attention gave. All of a
// sequence's tokens ask and are asked. Returns as `bertray_attention`.
int bertray_attention_gradient(const float* query, const float* key, const float* value, int64_t stride, const float* upstream,
                               int64_t upstream_stride, const int32_t* bounds, int64_t num_sequences, int num_heads, int size,
                               float* query_gradient, float* key_gradient, float* value_gradient, int64_t gradient_stride,
                               int num_threads) {
  if (!has_a_size(size)) return 2;
  const int64_t longest = longest_of(bounds, num_sequences), num_jobs = num_sequences * num_heads;
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const BackwardScratch scratch(longest, size);
    failed |= scratch.missing();
#pragma omp for schedule(dynamic, CHUNK)
    for (int64_t job = 0; job < num_jobs; ++job) {
      if (failed) continue;
      const int64_t b = job / num_heads, offset = job % num_heads * size, first = bounds[b];
      const int64_t from = first * stride + offset, to = first * gradient_stride + offset;
      const Heads heads{query + from, key + from, value + from, stride, stride, size, scale_of(size)};
      const HeadGradients gradients{upstream + first * upstream_stride + offset, upstream_stride, query_gradient + to,
                                    key_gradient + to, value_gradient + to, gradient_stride};
      attend_backward(heads, bounds[b + 1] - first, gradients, scratch);
    }
  }
  return failed;
}
}
