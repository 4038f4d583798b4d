// Rate of the products of a CPU: one instruction on registers or tiles again and again, nothing from memory. It is written
// as assembly, so that no compiler leaves it out, and so that each library has products that it is not compiled for: the
// caller asks only for those of its CPU.

#include <cstdint>
#include <cstring>

#include "tile_config.h"

namespace {

// Operands: numbers in [1, 2) as bf16 and as fp32, any as int8. They differ, since equal ones draw less power.
struct alignas(64) Operands {
  uint16_t numbers[4 * 512];

  Operands() {
    for (uint32_t i = 0; i < 4 * 512; ++i) numbers[i] = 0x3f80 | (i * 2654435761u >> 25);
  }
};

constexpr int SUMS = 12;  // that do not wait for each other: more than any product's latency over its throughput

#define EACH_SUM(PRODUCT)                                               \
  PRODUCT(0) PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5)     \
  PRODUCT(6) PRODUCT(7) PRODUCT(8) PRODUCT(9) PRODUCT(10) PRODUCT(11)

#define REGISTERS(NAME, INSTRUCTION, REGISTER)                                                               \
  void NAME(int64_t rounds, const uint16_t* operands) {                                                      \
    asm volatile("vzeroall\n\t"                                                                              \
                 "vmovups (%1), %%" REGISTER "12\n\t"                                                        \
                 "vmovups 64(%1), %%" REGISTER "13\n"                                                        \
                 "1:\n\t" EACH_SUM(INSTRUCTION) "dec %0\n\t"                                                 \
                 "jnz 1b\n\t"                                                                                \
                 "vzeroupper"                                                                                \
                 : "+r"(rounds)                                                                              \
                 : "r"(operands)                                                                             \
                 : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",   \
                   "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                            \
  }

#define FMA3(SUM) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #SUM "\n\t"
#define AVX512_F(SUM) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #SUM "\n\t"
#define AVX512_VNNI(SUM) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #SUM "\n\t"
#define AVX512_BF16(SUM) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" #SUM "\n\t"

REGISTERS(fma3, FMA3, "ymm")
REGISTERS(avx512_f, AVX512_F, "zmm")
REGISTERS(avx512_vnni, AVX512_VNNI, "zmm")
#ifdef __AVX512BF16__
REGISTERS(avx512_bf16, AVX512_BF16, "zmm")
#endif

#ifdef __AMX_BF16__

// Four sums of tiles, as the kernels have them: products of two left-hand and two right-hand tiles.
#define TILES(NAME, INSTRUCTION)                                                                             \
  void NAME(int64_t rounds, const uint16_t* operands) {                                                      \
    static const TileConfig config;                                                                          \
    asm volatile("ldtilecfg %3\n\t"                                                                          \
                 "tileloadd (%1,%2), %%tmm4\n\t"                                                             \
                 "tileloadd 1024(%1,%2), %%tmm5\n\t"                                                         \
                 "tileloadd 2048(%1,%2), %%tmm6\n\t"                                                         \
                 "tileloadd 3072(%1,%2), %%tmm7\n\t"                                                         \
                 "tilezero %%tmm0\n\t"                                                                       \
                 "tilezero %%tmm1\n\t"                                                                       \
                 "tilezero %%tmm2\n\t"                                                                       \
                 "tilezero %%tmm3\n"                                                                         \
                 "1:\n\t" INSTRUCTION " %%tmm6, %%tmm4, %%tmm0\n\t" INSTRUCTION                              \
                 " %%tmm7, %%tmm4, %%tmm1\n\t" INSTRUCTION " %%tmm6, %%tmm5, %%tmm2\n\t" INSTRUCTION         \
                 " %%tmm7, %%tmm5, %%tmm3\n\t"                                                               \
                 "dec %0\n\t"                                                                                \
                 "jnz 1b\n\t"                                                                                \
                 "tilerelease"                                                                               \
                 : "+r"(rounds)                                                                              \
                 : "r"(operands), "r"(int64_t{64}), "m"(config)                                              \
                 : "cc", "memory");                                                                          \
  }

TILES(amx_bf16, "tdpbf16ps")
TILES(amx_int8, "tdpbssd")
#endif

// `name` is that of the feature of a CPU as torch has it; `operations` of a round, additions and multiplications.
const struct {
  const char* name;
  void (*run)(int64_t, const uint16_t*);
  int64_t operations;
} PRODUCTS[] = {
    {"fma3", fma3, SUMS * 8 * 2},
    {"avx512_f", avx512_f, SUMS * 16 * 2},
    {"avx512_vnni", avx512_vnni, SUMS * 64 * 2},
#ifdef __AVX512BF16__
    {"avx512_bf16", avx512_bf16, SUMS * 32 * 2},
#endif
#ifdef __AMX_BF16__
    {"amx_bf16", amx_bf16, 4 * 16 * 16 * 32 * 2},
    {"amx_int8", amx_int8, 4 * 16 * 16 * 64 * 2},
#endif
};
}  // namespace

// Runs `rounds` of a product on each thread. Returns the operations of all; 0 where it has no such product, or no rounds.
extern "C" int64_t bertray_peak(const char* name, int64_t rounds, int num_threads) {
  static const Operands operands;
  for (const auto& product : PRODUCTS) {
    if (std::strcmp(product.name, name) != 0 || rounds < 1) continue;
    int threads = 0;
#pragma omp parallel num_threads(num_threads) reduction(+ : threads)
    {
      product.run(rounds, operands.numbers);
      threads += 1;
    }
    return threads * rounds * product.operations;
  }
  return 0;
}
