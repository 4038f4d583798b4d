// What attention in every number format shares: sizes of heads, and sequences that lie end to end.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

constexpr int64_t HEADS_IN = 32, MOST_HEAD = 128;  // a head is a multiple of the first wide, at most the second

inline bool has_a_size(int64_t head) { return head % HEADS_IN == 0 && head <= MOST_HEAD; }
inline float scale_of(int64_t head) { return 1.0f / std::sqrt(static_cast<float>(head)); }

inline int64_t longest_of(const int32_t* bounds, int64_t num_sequences) {
  int64_t longest = 0;
  for (int64_t b = 0; b < num_sequences; ++b) longest = std::max<int64_t>(longest, bounds[b + 1] - bounds[b]);
  return longest;
}

// Blocks of about as many rows: a sequence belongs to the block in which it begins.
struct Blocks {
  const int32_t* bounds;
  int64_t num_sequences, rows;

  int64_t count() const { return (num_rows() + rows - 1) / rows; }

  // First sequence of a block; of the one behind the last, their number.
  int64_t begin_of(int64_t number) const {
    const int32_t row = static_cast<int32_t>(std::min(number * rows, num_rows()));
    return std::lower_bound(bounds, bounds + num_sequences, row) - bounds;
  }

  int64_t most_rows() const {
    int64_t most = 0;
    for (int64_t n = 0; n < count(); ++n) most = std::max<int64_t>(most, bounds[begin_of(n + 1)] - bounds[begin_of(n)]);
    return most;
  }

 private:
  int64_t num_rows() const { return bounds[num_sequences]; }
};
