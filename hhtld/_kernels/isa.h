/* Instruction tiers, target regions and run-time detection.
 *
 * Every other header holds a scalar body first: it is the specification and, usually, the tail
 * of the others. The bodies for one instruction set stand between HH_TARGET_<TIER>_BEGIN and
 * HH_TARGET_END, so one translation unit built with baseline flags carries them all and nothing
 * outside a region may use the wider registers. Each operation ends in one `hh_<op>(tier, ...)`
 * that picks a body; a tier without a body of its own falls to the one below.
 *
 * Two laws make every tier give the same bits where bits are stored:
 *   - a float reduction has either one accumulator per output, summed in ascending order, or 16
 *     virtual lanes (element j goes to lane j % 16) folded by the fixed tree of hh_tree16_f64;
 *   - no fused multiply-add, except where the product is exact in the wider type (float32 times
 *     float32 or bfloat16 in float64), because there fusing changes nothing.
 * The build passes -ffp-contract=off: without it GCC 12 fuses even separate intrinsics.
 */
#ifndef HHTLD_ISA_H
#define HHTLD_ISA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != 1234
#error "hhtld's kernels read little-endian words where they lie: this machine is big-endian"
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define HH_X86 1
#include <immintrin.h>
#else
#define HH_X86 0
#endif

#if defined(__aarch64__)
#define HH_NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#else
#define HH_NEON 0
#endif

/* Ordered: a higher number may use everything a lower one of the same machine may. */
enum {
    HH_TIER_SCALAR = 0,
    HH_TIER_NEON = 1,        /* aarch64 always has it (Cortex-A53, Cortex-A72) */
    HH_TIER_NEONDOTPROD = 2, /* + the dot product of int8 (Cortex-A76, Neoverse N1, Apple M1) */
    HH_TIER_AVX2 = 3,        /* AVX2 FMA F16C BMI1 BMI2 (Haswell, Zen) */
    HH_TIER_AVX512 = 4,      /* + AVX512 F BW DQ VL (Skylake-X) */
    HH_TIER_AVX512VNNI = 5,  /* + AVX512 VNNI VBMI (Ice Lake, Zen 4) */
    HH_N_TIERS = 6
};

/* clang spells a target region as a pushed attribute, GCC as pushed options; MSVC needs none. */
/* clang-format off */
#if HH_X86 && defined(__clang__)
#define HH_TARGET_AVX2_BEGIN                                                                     \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi,bmi2\"))), apply_to = function)")
#define HH_TARGET_AVX512_BEGIN                                                                   \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl\"))), apply_to = function)")
#define HH_TARGET_AVX512VNNI_BEGIN                                                               \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi\"))), apply_to = function)")
#define HH_TARGET_END _Pragma("clang attribute pop")
#elif HH_X86 && defined(__GNUC__)
#define HH_TARGET_AVX2_BEGIN                                                                     \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2\")")
#define HH_TARGET_AVX512_BEGIN                                                                   \
    _Pragma("GCC push_options")                                                                  \
    _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl\")")
#define HH_TARGET_AVX512VNNI_BEGIN                                                               \
    _Pragma("GCC push_options")                                                                  \
    _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi\")")
#define HH_TARGET_END _Pragma("GCC pop_options")
#elif HH_NEON && defined(__clang__)
#define HH_TARGET_NEONDOTPROD_BEGIN                                                              \
    _Pragma("clang attribute push(__attribute__((target(\"dotprod\"))), apply_to = function)")
#define HH_TARGET_END _Pragma("clang attribute pop")
#elif HH_NEON
#define HH_TARGET_NEONDOTPROD_BEGIN                                                              \
    _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod\")")
#define HH_TARGET_END _Pragma("GCC pop_options")
#else
#define HH_TARGET_AVX2_BEGIN
#define HH_TARGET_AVX512_BEGIN
#define HH_TARGET_AVX512VNNI_BEGIN
#define HH_TARGET_END
#endif
/* clang-format on */

/* A header's kernels are not all used by every module that includes it. */
#if defined(__GNUC__)
#define HH_KERNEL static __attribute__((unused))
#define HH_INLINE static inline __attribute__((always_inline, unused))
#else
#define HH_KERNEL static
#define HH_INLINE static __forceinline
#endif

#if HH_X86
#if defined(_MSC_VER)
#include <intrin.h>
static void hh_cpuid_(uint32_t leaf, uint32_t subleaf, uint32_t regs[4]) {
    __cpuidex((int *)regs, (int)leaf, (int)subleaf);
}
static uint64_t hh_xgetbv_(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void hh_cpuid_(uint32_t leaf, uint32_t subleaf, uint32_t regs[4]) {
    regs[0] = regs[1] = regs[2] = regs[3] = 0;
    if (__get_cpuid_max(leaf & 0x80000000u, NULL) >= leaf)
        __cpuid_count(leaf, subleaf, regs[0], regs[1], regs[2], regs[3]);
}
static uint64_t hh_xgetbv_(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}
#endif
#endif

/* The best tier this processor and operating system support. A tier counts only when its whole
 * feature group is present; the register state must be enabled by the system (XGETBV) before the
 * instruction bits mean anything. */
HH_KERNEL int hh_detect_tier(void) {
#if HH_X86
    uint32_t r[4];
    hh_cpuid_(1, 0, r);
    const uint32_t ecx1 = r[2];
    const int osxsave = (ecx1 >> 27) & 1, fma = (ecx1 >> 12) & 1, f16c = (ecx1 >> 29) & 1;
    if (!osxsave) return HH_TIER_SCALAR;
    const uint64_t state = hh_xgetbv_();
    if ((state & 0x06) != 0x06) return HH_TIER_SCALAR; /* XMM and YMM */
    hh_cpuid_(7, 0, r);
    const uint32_t ebx7 = r[1], ecx7 = r[2];
    const int bmi1 = (ebx7 >> 3) & 1, avx2 = (ebx7 >> 5) & 1, bmi2 = (ebx7 >> 8) & 1;
    if (!(fma && f16c && bmi1 && avx2 && bmi2)) return HH_TIER_SCALAR;
    if ((state & 0xE6) != 0xE6) return HH_TIER_AVX2; /* opmask and ZMM */
    const int f = (ebx7 >> 16) & 1, dq = (ebx7 >> 17) & 1, bw = (ebx7 >> 30) & 1, vl = (ebx7 >> 31) & 1;
    if (!(f && dq && bw && vl)) return HH_TIER_AVX2;
    const int vbmi = (ecx7 >> 1) & 1, vnni = (ecx7 >> 11) & 1;
    return vbmi && vnni ? HH_TIER_AVX512VNNI : HH_TIER_AVX512;
#elif HH_NEON
    int dotprod = 0;
#if defined(__linux__)
    dotprod = (getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP, which old headers do not name */
#elif defined(__APPLE__)
    size_t nbytes = sizeof dotprod;
    if (sysctlbyname("hw.optional.arm.FEAT_DotProd", &dotprod, &nbytes, NULL, 0)) dotprod = 0;
#endif
    return dotprod ? HH_TIER_NEONDOTPROD : HH_TIER_NEON;
#else
    return HH_TIER_SCALAR;
#endif
}

/* The fixed tree over 16 virtual lanes: i + (i + 8), then 4, 2, 1 apart. */
HH_KERNEL double hh_tree16_f64(double lane[16]) {
    for (int width = 8; width; width >>= 1)
        for (int i = 0; i < width; i++) lane[i] = lane[i] + lane[i + width];
    return lane[0];
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_INLINE double hh_tree16_f64_avx2(__m256d a, __m256d b, __m256d c, __m256d d) {
    const __m256d four_f64x4 = _mm256_add_pd(_mm256_add_pd(a, c), _mm256_add_pd(b, d));
    const __m128d two_f64x2 = _mm_add_pd(_mm256_castpd256_pd128(four_f64x4), _mm256_extractf128_pd(four_f64x4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two_f64x2, _mm_unpackhi_pd(two_f64x2, two_f64x2)));
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_INLINE double hh_tree16_f64_avx512(__m512d low, __m512d high) {
    const __m512d eight_f64x8 = _mm512_add_pd(low, high);
    const __m256d four_f64x4 =
        _mm256_add_pd(_mm512_castpd512_pd256(eight_f64x8), _mm512_extractf64x4_pd(eight_f64x8, 1));
    const __m128d two_f64x2 = _mm_add_pd(_mm256_castpd256_pd128(four_f64x4), _mm256_extractf128_pd(four_f64x4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two_f64x2, _mm_unpackhi_pd(two_f64x2, two_f64x2)));
}
HH_TARGET_END
#elif HH_NEON
/* Lanes 2 i and 2 i + 1 in pair i. */
HH_INLINE double hh_tree16_f64_neon(const float64x2_t pair_f64x2[8]) {
    float64x2_t sum_f64x2[4];
    for (int i = 0; i < 4; i++) sum_f64x2[i] = vaddq_f64(pair_f64x2[i], pair_f64x2[i + 4]);
    for (int i = 0; i < 2; i++) sum_f64x2[i] = vaddq_f64(sum_f64x2[i], sum_f64x2[i + 2]);
    return vpaddd_f64(vaddq_f64(sum_f64x2[0], sum_f64x2[1]));
}
#endif

#endif
