// What the kernels in every number format share: memory, and sums that several threads made.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

// Memory for `count` numbers from the start of a cache line; null where there is none.
template <typename Number>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : numbers_(static_cast<Number*>(std::aligned_alloc(64, (count * sizeof(Number) + 63) / 64 * 64))) {}
  ~Buffer() { std::free(numbers_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator Number*() const { return numbers_; }

 private:
  Number* numbers_;
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Sums of `parts` rows of `partial`, in their order: each has `width` numbers for `first`, then as many for `second`.
inline void add_parts(const float* partial, int parts, int64_t width, float* first, float* second) {
  std::memset(first, 0, width * sizeof(float));
  std::memset(second, 0, width * sizeof(float));
  for (int p = 0; p < parts; ++p) {
    for (int64_t i = 0; i < width; ++i) {
      first[i] += partial[2 * p * width + i];
      second[i] += partial[(2 * p + 1) * width + i];
    }
  }
}
