// Attention within each of many sequences that lie end to end, in bf16.
//
// A job is one head of one sequence. Its keys and values are laid out for tiles once. Then, for 16 or 32 queries at a time,
// scores come out of tiles as rows of fp32, become probabilities in vector registers, and go through tiles again as bf16.
// Nothing is padded beyond the last tile of a sequence, and no sequence depends on another.
//
// Legend: T packed tokens, Q queries of a sequence, K its keys, E size of a head.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../common/sequences.h"
#include "products.h"

namespace {

constexpr int CHUNK = 4;  // jobs that a thread takes at a time

// Numbers from row to row: rows at powers of two share few places in a cache.
inline int64_t stride_of_scores(int64_t keys_in_tiles) { return keys_in_tiles + ROWS; }
inline int64_t stride_of_probs(int64_t keys_in_tiles) { return keys_in_tiles + WIDE; }

// Lane r of the result is row r reduced by `op`.
template <typename Op>
inline __m512 reduce_rows(const __m512* row, Op op) {
  __m512 quads[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 *a = row + 4 * i, *b = a + 1, *c = a + 2, *d = a + 3;
    const __m512d ab = _mm512_castps_pd(op(_mm512_unpacklo_ps(*a, *b), _mm512_unpackhi_ps(*a, *b)));
    const __m512d cd = _mm512_castps_pd(op(_mm512_unpacklo_ps(*c, *d), _mm512_unpackhi_ps(*c, *d)));
    quads[i] = op(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  }
  const __m512 low = op(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const __m512 high = op(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return op(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

struct Heads {
  const bf16 *query, *key, *value;
  int64_t query_stride, key_stride;  // from token to token; values lie as keys do
  int wide;                          // tiles of WIDE that a head is wide
  float scale;
};

// What one thread needs for sequences of at most `most_keys`.
struct Scratch {
  Buffer<bf16> keys, values, queries, probs;
  Buffer<float> scores, mixed;

  Scratch(int64_t most_keys, int64_t head)
      : keys(round_up(most_keys, WIDE) * head),
        values(round_up(most_keys, WIDE) * head),
        queries(2 * ROWS * head),
        probs(2 * ROWS * stride_of_probs(round_up(most_keys, WIDE))),
        scores(2 * ROWS * stride_of_scores(round_up(most_keys, WIDE))),
        mixed(2 * ROWS * head) {}

  bool missing() const {
    return keys == nullptr || values == nullptr || queries == nullptr || probs == nullptr || scores == nullptr ||
           mixed == nullptr;
  }
};

// Keys as right-hand tiles: of 16 keys, pairs of their numbers, a pair a row. Beyond the last key are zeros.
void lay_out_keys(const bf16* key, int64_t stride, int64_t num_keys, int wide, bf16* to) {
  for (int64_t first = 0; first < round_up(num_keys, WIDE); first += ROWS) {
    for (int part = 0; part < wide; ++part, to += ROWS * WIDE) {
      __m512i row[ROWS];
      for (int i = 0; i < ROWS; ++i) {
        row[i] = first + i < num_keys ? _mm512_loadu_si512(key + (first + i) * stride + part * WIDE) : _mm512_setzero_si512();
      }
      transpose(row);
      store_tile(to, row);
    }
  }
}

// Values as right-hand tiles: of 32 keys and 16 numbers of each, a pair of keys a row. Beyond the last key are zeros.
void lay_out_values(const bf16* value, int64_t stride, int64_t num_keys, int wide, bf16* to) {
  __m512i low[ROWS], high[ROWS];
  for (int64_t first = 0; first < num_keys; first += WIDE) {
    for (int part = 0; part < wide; ++part, to += 2 * TILE) {
      pair_rows(value + first * stride + part * WIDE, stride, num_keys - first, low, high);
      store_tile(to, low);
      store_tile(to + TILE, high);
    }
  }
}

// Scores of `count` queries, at most 32, [., keys in tiles], from `query`, whose rows lie `stride` apart.
void score(const bf16* query, int64_t stride, int count, const bf16* keys, int64_t keys_in_tiles, int wide, float* scores) {
  for (int64_t first = 0; first < keys_in_tiles; first += WIDE, keys += 2 * wide * TILE) {
    multiply(count, Left{query, stride, WIDE}, Right{keys, wide * TILE, TILE}, wide * WIDE, scores + first,
             stride_of_scores(keys_in_tiles), [] {});
  }
}

// Probabilities times their sum, bf16 [16, keys in tiles], of scores; returns one over each row's sum.
__m512 exponentiate(const float* scores, int64_t num_keys, int64_t keys_in_tiles, int num_queries, float scale, bf16* probs) {
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512 rows[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = lowest;
  const int64_t whole = num_keys / ROWS * ROWS;
  const __mmask16 rest = static_cast<__mmask16>((1u << (num_keys - whole)) - 1);
  for (int r = 0; r < num_queries; ++r) {
    const float* row = scores + r * stride_of_scores(keys_in_tiles);
    __m512 most = lowest;
    for (int64_t k = 0; k < whole; k += ROWS) most = _mm512_max_ps(most, _mm512_load_ps(row + k));
    if (rest) most = _mm512_mask_max_ps(most, rest, most, _mm512_load_ps(row + whole));
    rows[r] = most;
  }
  alignas(64) float most_of[ROWS];
  const auto larger = [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); };
  _mm512_store_ps(most_of, _mm512_mul_ps(reduce_rows(rows, larger), factor));
  for (int r = 0; r < ROWS; ++r) rows[r] = _mm512_setzero_ps();
  for (int r = 0; r < num_queries; ++r) {
    const float* row = scores + r * stride_of_scores(keys_in_tiles);
    bf16* to = probs + r * stride_of_probs(keys_in_tiles);
    const __m512 most = _mm512_set1_ps(most_of[r]);
    __m512 sum = _mm512_setzero_ps();
    const auto power = [&](int64_t k) { return exp2_of(_mm512_fmsub_ps(_mm512_load_ps(row + k), factor, most)); };
    int64_t k = 0;
    for (; k + WIDE <= num_keys; k += WIDE) {
      const __m512 a = power(k), b = power(k + ROWS);
      sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
      _mm512_store_si512(to + k, narrowed(a, b));
    }
    if (k < num_keys) {
      const bool second = num_keys - k > ROWS;
      const __m512 a = _mm512_maskz_mov_ps(second || !rest ? 0xffff : rest, power(k));
      const __m512 b = _mm512_maskz_mov_ps(second ? rest : 0, power(k + ROWS));
      sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
      _mm512_store_si512(to + k, narrowed(a, b));
    }
    rows[r] = sum;
  }
  const auto plus = [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); };
  return _mm512_div_ps(_mm512_set1_ps(1.0f), reduce_rows(rows, plus));
}

// Values mixed by probabilities of `count` queries, at most 32, [., E].
void mix(const bf16* probs, int count, const bf16* values, int64_t keys_in_tiles, int wide, float* mixed) {
  for (int part = 0; part < wide; ++part) {
    multiply(count, Left{probs, stride_of_probs(keys_in_tiles), WIDE}, Right{values + 2 * part * TILE, TILE, 2 * wide * TILE},
             keys_in_tiles, mixed + part * WIDE, wide * WIDE, [] {});
  }
}

// What `count` queries, at most QUERIES, attend to.
void attend_from(const bf16* query, int count, const Heads& heads, int64_t num_keys, const Scratch& scratch, bf16* out,
                 int64_t out_stride) {
  const int head = heads.wide * WIDE;
  const int64_t keys_in_tiles = round_up(num_keys, WIDE);
  int64_t stride = heads.query_stride;
  if (count % ROWS != 0) {  // whole rows of 16 are read, and there may be no more
    for (int r = 0; r < count; ++r) std::memcpy(scratch.queries + r * head, query + r * stride, head * sizeof(bf16));
    query = scratch.queries;
    stride = head;
  }
  score(query, stride, count, scratch.keys, keys_in_tiles, heads.wide, scratch.scores);
  alignas(64) float share_of[QUERIES];
  for (int first = 0; first < count; first += ROWS) {
    const __m512 shares = exponentiate(scratch.scores + first * stride_of_scores(keys_in_tiles), num_keys, keys_in_tiles,
                                       std::min(ROWS, count - first), heads.scale,
                                       scratch.probs + first * stride_of_probs(keys_in_tiles));
    _mm512_store_ps(share_of + first, shares);
  }
  mix(scratch.probs, count, scratch.values, keys_in_tiles, heads.wide, scratch.mixed);
  for (int r = 0; r < count; ++r) {
    const __m512 share = _mm512_set1_ps(share_of[r]);
    for (int e = 0; e < head; e += WIDE) {
      const __m512 a = _mm512_mul_ps(_mm512_load_ps(scratch.mixed + r * head + e), share);
      const __m512 b = _mm512_mul_ps(_mm512_load_ps(scratch.mixed + r * head + e + ROWS), share);
      _mm512_storeu_si512(out + r * out_stride + e, narrowed(a, b));
    }
  }
}

void attend(const Heads& heads, int64_t num_queries, int64_t num_keys, const Scratch& scratch, bf16* out, int64_t out_stride) {
  lay_out_keys(heads.key, heads.key_stride, num_keys, heads.wide, scratch.keys);
  lay_out_values(heads.value, heads.key_stride, num_keys, heads.wide, scratch.values);
  for (int64_t first = 0; first < num_queries; first += QUERIES) {
    const int count = static_cast<int>(std::min<int64_t>(QUERIES, num_queries - first));
    const bf16* query = heads.query + first * heads.query_stride;
    attend_from(query, count, heads, num_keys, scratch, out + first * out_stride, out_stride);
  }
}

// --- backward ---------------------------------------------------------------------------------------------------------

// What one thread needs besides; 32 queries at a time.
struct BackwardScratch {
  Buffer<bf16> values_as_keys, keys_as_values, upstream, queries_in_pairs, upstream_in_pairs, score_gradients;
  Buffer<float> prob_gradients, key_gradients, value_gradients;

  BackwardScratch(int64_t most_keys, int64_t head)
      : values_as_keys(round_up(most_keys, WIDE) * head),
        keys_as_values(round_up(most_keys, WIDE) * head),
        upstream(WIDE * head),
        queries_in_pairs(WIDE * head),
        upstream_in_pairs(WIDE * head),
        score_gradients(WIDE * stride_of_probs(round_up(most_keys, WIDE))),
        prob_gradients(WIDE * stride_of_scores(round_up(most_keys, WIDE))),
        key_gradients(round_up(most_keys, WIDE) * head),
        value_gradients(round_up(most_keys, WIDE) * head) {}

  bool missing() const {
    return values_as_keys == nullptr || keys_as_values == nullptr || upstream == nullptr ||
           queries_in_pairs == nullptr || upstream_in_pairs == nullptr || score_gradients == nullptr ||
           prob_gradients == nullptr || key_gradients == nullptr || value_gradients == nullptr;
  }
};

// 32 rows of a head, zeros behind the last.
void copy_rows(const bf16* from, int64_t stride, int count, int head, bf16* to) {
  for (int r = 0; r < WIDE; ++r) {
    if (r < count) {
      std::memcpy(to + r * head, from + r * stride, head * sizeof(bf16));
    } else {
      std::memset(to + r * head, 0, head * sizeof(bf16));
    }
  }
}

// Turns powers, times `share`, into probabilities in place, and the gradients of those into the gradients of scores.
void backward_of_softmax(bf16* probs, const float* prob_gradients, int64_t keys_in_tiles, float share, float scale,
                         bf16* score_gradients) {
  const Pair shares = pair_of(share);
  Pair together = pair_of(0);
  for (int64_t k = 0; k < keys_in_tiles; k += WIDE) {
    together = multiply_add(load(probs + k) * shares, load(prob_gradients + k), together);
  }
  const Pair mean = pair_of(sum(together)), scales = pair_of(scale);
  for (int64_t k = 0; k < keys_in_tiles; k += WIDE) {
    const Pair prob = load(probs + k) * shares;
    store(score_gradients + k, prob * scales * (load(prob_gradients + k) - mean));
    store(probs + k, prob);
  }
}

// sums [keys in tiles, E] += weights^T right, over 32 queries; `right` as right-hand tiles.
void add_transposed(const bf16* weights, int64_t keys_in_tiles, const bf16* right, int wide, float* sums) {
  alignas(64) bf16 left[2 * TILE];
  __m512i low[ROWS], high[ROWS];
  for (int64_t first = 0; first < keys_in_tiles; first += WIDE, sums += WIDE * wide * WIDE) {
    pair_rows(weights + first, stride_of_probs(keys_in_tiles), WIDE, low, high);
    transpose(low);
    transpose(high);
    store_tile(left, low);
    store_tile(left + TILE, high);
    for (int part = 0; part < wide; ++part) {
      const Right of_part = right_of(right + 2 * part * TILE);
      multiply<InBf16, true>(WIDE, left_of(left), of_part, WIDE, sums + part * WIDE, wide * WIDE, [] {});
    }
  }
}

struct HeadGradients {
  const bf16* upstream;
  int64_t upstream_stride;
  bf16 *query, *key, *value;
  int64_t stride;
};

void attend_backward(const Heads& heads, int64_t length, const HeadGradients& to, const Scratch& scratch,
                     const BackwardScratch& back) {
  const int head = heads.wide * WIDE;
  const int64_t keys_in_tiles = round_up(length, WIDE), probs_stride = stride_of_probs(keys_in_tiles);
  lay_out_keys(heads.key, heads.key_stride, length, heads.wide, scratch.keys);
  lay_out_keys(heads.value, heads.key_stride, length, heads.wide, back.values_as_keys);
  lay_out_values(heads.key, heads.key_stride, length, heads.wide, back.keys_as_values);
  std::memset(back.key_gradients, 0, keys_in_tiles * head * sizeof(float));
  std::memset(back.value_gradients, 0, keys_in_tiles * head * sizeof(float));
  for (int64_t first = 0; first < length; first += WIDE) {
    const int count = static_cast<int>(std::min<int64_t>(WIDE, length - first));
    copy_rows(heads.query + first * heads.query_stride, heads.query_stride, count, head, scratch.queries);
    copy_rows(to.upstream + first * to.upstream_stride, to.upstream_stride, count, head, back.upstream);
    lay_out_values(scratch.queries, head, WIDE, heads.wide, back.queries_in_pairs);
    lay_out_values(back.upstream, head, WIDE, heads.wide, back.upstream_in_pairs);
    score(scratch.queries, head, WIDE, scratch.keys, keys_in_tiles, heads.wide, scratch.scores);
    score(back.upstream, head, WIDE, back.values_as_keys, keys_in_tiles, heads.wide, back.prob_gradients);
    alignas(64) float share_of[WIDE];
    for (int half = 0; half < WIDE; half += ROWS) {
      const __m512 shares = exponentiate(scratch.scores + half * stride_of_scores(keys_in_tiles), length, keys_in_tiles,
                                         std::clamp(count - half, 0, ROWS), heads.scale, scratch.probs + half * probs_stride);
      _mm512_store_ps(share_of + half, shares);
    }
    for (int r = 0; r < WIDE; ++r) {
      bf16* probs = scratch.probs + r * probs_stride;
      bf16* gradients = back.score_gradients + r * probs_stride;
      if (r < count) {
        const float* of_probs = back.prob_gradients + r * stride_of_scores(keys_in_tiles);
        backward_of_softmax(probs, of_probs, keys_in_tiles, share_of[r], heads.scale, gradients);
      } else {
        std::memset(probs, 0, keys_in_tiles * sizeof(bf16));
        std::memset(gradients, 0, keys_in_tiles * sizeof(bf16));
      }
    }
    add_transposed(scratch.probs, keys_in_tiles, back.upstream_in_pairs, heads.wide, back.value_gradients);
    add_transposed(back.score_gradients, keys_in_tiles, back.queries_in_pairs, heads.wide, back.key_gradients);
    mix(back.score_gradients, WIDE, back.keys_as_values, keys_in_tiles, heads.wide, scratch.mixed);
    for (int r = 0; r < count; ++r) {
      for (int e = 0; e < head; e += WIDE) store(to.query + (first + r) * to.stride + e, load(scratch.mixed + r * head + e));
    }
  }
  for (int64_t k = 0; k < length; ++k) {
    for (int e = 0; e < head; e += WIDE) {
      store(to.key + k * to.stride + e, load(back.key_gradients + k * head + e));
      store(to.value + k * to.stride + e, load(back.value_gradients + k * head + e));
    }
  }
}

// --- with the linear layer before it ----------------------------------------------------------------------------------

template <typename Format>
int self_attention_of(const bf16* x, const Linear& linear, const int32_t* bounds, int64_t num_sequences, int num_heads,
                      bf16* out, int num_threads) {
  const int64_t hidden = linear.inputs, size = linear.outputs / num_heads / 3;
  if (!has_a_size(size)) return 2;
  const int64_t stride = 3 * size;
  const Blocks blocks{bounds, num_sequences, block_of(bounds[num_sequences], MOST_ROWS, num_threads)};
  const int64_t longest = longest_of(bounds, num_sequences), most = round_up(blocks.most_rows(), WIDE);
  const float scale = scale_of(size);
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    const Scratch scratch(longest, size);
    Rows<Format> rows(most, hidden);
    const Buffer<bf16> made(most * stride);
    const Buffer<float> waiting(2 * most * WIDE);
    failed |= scratch.missing() || rows.missing() || made == nullptr || waiting == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < blocks.count(); ++n) {
      const int64_t begin = blocks.begin_of(n), end = blocks.begin_of(n + 1), first = bounds[begin], count = bounds[end] - first;
      if (failed || count == 0) continue;
      rows.lay_out(x + first * hidden, count, hidden);
      for (int head = 0; head < num_heads; ++head) {
        const Weights weights = linear.outputs_from(head * stride, stride);
        const int64_t whole = round_up(count, WIDE);
        for_each_sum<Format>(weights, rows.tiles(), whole, waiting, [&](int64_t o, int64_t r, const float* sums) {
          for (int64_t g = 0; g < GROUP; ++g) {
            store(made + (r + g) * stride + o, biased(rows, weights, o, r + g, sums + g * WIDE));
          }
        });
        for (int64_t b = begin; b < end; ++b) {
          const int64_t row = bounds[b], length = bounds[b + 1] - row;
          const bf16* query = made + (row - first) * stride;
          const Heads heads{query, query + size, query + 2 * size, stride, stride, static_cast<int>(size / WIDE), scale};
          attend(heads, length, length, scratch, out + row * hidden + head * size, hidden);
        }
      }
    }
  }
  return failed;
}

}  // namespace

extern "C" {

// Queries, keys and values of head h begin at `+ h * size`; rows of a token lie a stride apart. Sequence b has queries
// [query_bounds[b], query_bounds[b + 1]) and keys alike. Returns 0,
// 1 where memory is out, or 2 where a head has no size for tiles.
int bertray_attention(const bf16* query, int64_t query_stride, const bf16* key, const bf16* value, int64_t key_stride,
                      const int32_t* query_bounds, const int32_t* key_bounds, int64_t num_sequences, int num_heads,
                      int size, bf16* out, int64_t out_stride, int num_threads) {
  if (!has_a_size(size)) return 2;
  const int wide = size / WIDE;
  const int64_t most_keys = longest_of(key_bounds, num_sequences);
  const float scale = scale_of(size);
  const int64_t num_jobs = num_sequences * num_heads;
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
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
                        wide,
                        scale};
      attend(heads, query_bounds[b + 1] - first_query, key_bounds[b + 1] - first_key, scratch,
             out + first_query * out_stride + offset, out_stride);
    }
  }
  return failed;
}

// Attention within each sequence of `x`, [T, D], by queries, keys and values that `linear` makes of it: those of the first
// head side by side, then those of the next. What a thread makes of some sequences stays in its cache. Returns 0, 1 where
// memory is out, or 2 where a head has no size for tiles.
int bertray_self_attention(const bf16* x, const Linear* linear, const int32_t* bounds, int64_t num_sequences, int num_heads,
                           bf16* out, int num_threads) {
  const auto run = linear->in_int8() ? self_attention_of<InInt8> : self_attention_of<InBf16>;
  return run(x, *linear, bounds, num_sequences, num_heads, out, num_threads);
}

// Gradients of queries, keys and values, whose rows lie `gradient_stride` apart, from that of what attention gave. All of a
// sequence's tokens ask and are asked.
int bertray_attention_gradient(const bf16* query, const bf16* key, const bf16* value, int64_t stride, const bf16* upstream,
                               int64_t upstream_stride, const int32_t* bounds, int64_t num_sequences, int num_heads,
                               int size, bf16* query_gradient, bf16* key_gradient, bf16* value_gradient,
                               int64_t gradient_stride, int num_threads) {
  if (!has_a_size(size)) return 2;
  const int64_t longest = longest_of(bounds, num_sequences);
  const float scale = scale_of(size);
  const int64_t num_jobs = num_sequences * num_heads;
  int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
  {
    const Tiles tiles;
    const Scratch scratch(longest, size);
    const BackwardScratch back(longest, size);
    failed |= scratch.missing() || back.missing();
#pragma omp for schedule(dynamic, CHUNK)
    for (int64_t job = 0; job < num_jobs; ++job) {
      if (failed) continue;
      const int64_t b = job / num_heads, offset = job % num_heads * size, first = bounds[b];
      const int64_t from = first * stride + offset, to = first * gradient_stride + offset;
      const Heads heads{query + from, key + from, value + from, stride, stride, size / WIDE, scale};
      const HeadGradients gradients{upstream + first * upstream_stride + offset, upstream_stride, query_gradient + to,
                                    key_gradient + to, value_gradient + to, gradient_stride};
      attend_backward(heads, bounds[b + 1] - first, gradients, scratch, back);
    }
  }
  return failed;
}
}
