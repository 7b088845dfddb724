// Vectors of the instruction set that this translation unit is compiled for: AVX-512, AVX2 with
// FMA, NEON, or whatever the compiler makes of four-element loops. NEON is where CMake says so: any
// compiler for AArch64 has it, also for the portable set.
//
// The kernels are compiled once for each set, in a namespace of its own (MAMLPP_ISA), and include
// no standard header with inline functions of external linkage: the linker would merge those of an
// AVX-512 unit with everyone else's.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(MAMLPP_NEON)
#include <arm_neon.h>
#endif

#define MAMLPP_INLINE inline __attribute__((always_inline))
#define MAMLPP_LAMBDA __attribute__((always_inline))
// For what is long and called often: a copy at each call is time to compile and no speed.
#define MAMLPP_APART __attribute__((noinline))

namespace mamlpp {
namespace MAMLPP_ISA {

// Vec<T>: `lanes` values. Mask<T>: one bit of truth a lane. Lane<T>: an index a lane, for `pick`.
template <class T> struct Vec;
template <class T> struct Mask;
template <class T> struct Lane;

#if defined(__AVX512F__)

constexpr int register_rows[] = {0, 14, 12, 9, 6}; // rows of accumulators for 1 to 4 vectors a row
constexpr int max_columns = 4;

template <> struct Vec<float> {
    static constexpr int lanes = 16;
    __m512 v;
    static MAMLPP_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static MAMLPP_INLINE Vec all(float x) { return {_mm512_set1_ps(x)}; }
    MAMLPP_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
};
template <> struct Vec<double> {
    static constexpr int lanes = 8;
    __m512d v;
    static MAMLPP_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static MAMLPP_INLINE Vec all(double x) { return {_mm512_set1_pd(x)}; }
    MAMLPP_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
};
template <class T> struct Mask {
    uint32_t m;
    static MAMLPP_INLINE Mask none() { return {0}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) { return {bits}; }
    MAMLPP_INLINE uint16_t pack() const { return static_cast<uint16_t>(m); }
};
template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) { return {a.m & b.m}; }
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) { return {a.m | b.m}; }
// a without b
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) { return {a.m & ~b.m}; }

MAMLPP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
MAMLPP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm512_div_ps(a.v, b.v)}; }
// The second one where either is no number.
MAMLPP_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
    return {_mm512_maskz_min_ps(0xffff, a.v, b.v)};
}
MAMLPP_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
    return {_mm512_maskz_max_ps(0xffff, a.v, b.v)};
}
MAMLPP_INLINE Mask<float> greater(Vec<float> a, Vec<float> b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)};
}
MAMLPP_INLINE Mask<float> unordered(Vec<float> a) { // not a number
    return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
MAMLPP_INLINE Vec<float> select(Mask<float> m, Vec<float> a, Vec<float> b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(m.m), b.v, a.v)};
}
template <> struct Lane<float> {
    __m512i v;
};
// 4·bit1 + bit0: where a winner lies in a window of rows of four
MAMLPP_INLINE Lane<float> lanes_at(Mask<float> bit0, Mask<float> bit1) {
    const __m512i one = _mm512_maskz_set1_epi32(static_cast<__mmask16>(bit0.m), 1);
    return {_mm512_mask_add_epi32(one, static_cast<__mmask16>(bit1.m), one, _mm512_set1_epi32(4))};
}
// p[lane], lanes below 6; reads 16 values from p
MAMLPP_INLINE Vec<float> pick(const float* p, Lane<float> lane) {
    return {_mm512_permutexvar_ps(lane.v, _mm512_loadu_ps(p))};
}

MAMLPP_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) {
    return {_mm512_add_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) {
    return {_mm512_sub_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) {
    return {_mm512_mul_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
MAMLPP_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) {
    return {_mm512_div_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) {
    return {_mm512_maskz_min_pd(0xff, a.v, b.v)};
}
MAMLPP_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) {
    return {_mm512_maskz_max_pd(0xff, a.v, b.v)};
}
MAMLPP_INLINE Mask<double> greater(Vec<double> a, Vec<double> b) {
    return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ)};
}
MAMLPP_INLINE Mask<double> unordered(Vec<double> a) {
    return {_mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q)};
}
MAMLPP_INLINE Vec<double> select(Mask<double> m, Vec<double> a, Vec<double> b) {
    return {_mm512_mask_blend_pd(static_cast<__mmask8>(m.m), b.v, a.v)};
}
template <> struct Lane<double> {
    __m512i v;
};
MAMLPP_INLINE Lane<double> lanes_at(Mask<double> bit0, Mask<double> bit1) {
    const __m512i one = _mm512_maskz_set1_epi64(static_cast<__mmask8>(bit0.m), 1);
    return {_mm512_mask_add_epi64(one, static_cast<__mmask8>(bit1.m), one, _mm512_set1_epi64(4))};
}
MAMLPP_INLINE Vec<double> pick(const double* p, Lane<double> lane) {
    return {_mm512_permutexvar_pd(lane.v, _mm512_loadu_pd(p))};
}

#elif defined(__AVX2__)

constexpr int register_rows[] = {0, 8, 6, 4, 2};
constexpr int max_columns = 3;

template <> struct Vec<float> {
    static constexpr int lanes = 8;
    __m256 v;
    static MAMLPP_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static MAMLPP_INLINE Vec all(float x) { return {_mm256_set1_ps(x)}; }
    MAMLPP_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};
template <> struct Vec<double> {
    static constexpr int lanes = 4;
    __m256d v;
    static MAMLPP_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static MAMLPP_INLINE Vec all(double x) { return {_mm256_set1_pd(x)}; }
    MAMLPP_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
};
template <> struct Mask<float> {
    __m256 m;
    static MAMLPP_INLINE Mask none() { return {_mm256_setzero_ps()}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits), lane);
        return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))};
    }
    MAMLPP_INLINE uint16_t pack() const { return static_cast<uint16_t>(_mm256_movemask_ps(m)); }
};
template <> struct Mask<double> {
    __m256d m;
    static MAMLPP_INLINE Mask none() { return {_mm256_setzero_pd()}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), lane);
        return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane))};
    }
    MAMLPP_INLINE uint16_t pack() const { return static_cast<uint16_t>(_mm256_movemask_pd(m)); }
};
MAMLPP_INLINE Mask<float> operator&(Mask<float> a, Mask<float> b) {
    return {_mm256_and_ps(a.m, b.m)};
}
MAMLPP_INLINE Mask<float> operator|(Mask<float> a, Mask<float> b) {
    return {_mm256_or_ps(a.m, b.m)};
}
MAMLPP_INLINE Mask<float> without(Mask<float> a, Mask<float> b) {
    return {_mm256_andnot_ps(b.m, a.m)};
}
MAMLPP_INLINE Mask<double> operator&(Mask<double> a, Mask<double> b) {
    return {_mm256_and_pd(a.m, b.m)};
}
MAMLPP_INLINE Mask<double> operator|(Mask<double> a, Mask<double> b) {
    return {_mm256_or_pd(a.m, b.m)};
}
MAMLPP_INLINE Mask<double> without(Mask<double> a, Mask<double> b) {
    return {_mm256_andnot_pd(b.m, a.m)};
}

MAMLPP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
MAMLPP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm256_div_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return {_mm256_min_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
MAMLPP_INLINE Mask<float> greater(Vec<float> a, Vec<float> b) {
    return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)};
}
MAMLPP_INLINE Mask<float> unordered(Vec<float> a) {
    return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)};
}
MAMLPP_INLINE Vec<float> select(Mask<float> m, Vec<float> a, Vec<float> b) {
    return {_mm256_blendv_ps(b.v, a.v, m.m)};
}
template <> struct Lane<float> {
    __m256i v;
};
MAMLPP_INLINE Lane<float> lanes_at(Mask<float> bit0, Mask<float> bit1) {
    const __m256i one = _mm256_and_si256(_mm256_castps_si256(bit0.m), _mm256_set1_epi32(1));
    const __m256i four = _mm256_and_si256(_mm256_castps_si256(bit1.m), _mm256_set1_epi32(4));
    return {_mm256_or_si256(one, four)};
}
MAMLPP_INLINE Vec<float> pick(const float* p, Lane<float> lane) {
    return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(p), lane.v)};
}

MAMLPP_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) {
    return {_mm256_add_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) {
    return {_mm256_sub_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) {
    return {_mm256_mul_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
MAMLPP_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) {
    return {_mm256_div_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) {
    return {_mm256_min_pd(a.v, b.v)};
}
MAMLPP_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
MAMLPP_INLINE Mask<double> greater(Vec<double> a, Vec<double> b) {
    return {_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)};
}
MAMLPP_INLINE Mask<double> unordered(Vec<double> a) {
    return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)};
}
MAMLPP_INLINE Vec<double> select(Mask<double> m, Vec<double> a, Vec<double> b) {
    return {_mm256_blendv_pd(b.v, a.v, m.m)};
}
template <> struct Lane<double> {
    __m256i v;
};
MAMLPP_INLINE Lane<double> lanes_at(Mask<double> bit0, Mask<double> bit1) {
    const __m256i one = _mm256_and_si256(_mm256_castpd_si256(bit0.m), _mm256_set1_epi64x(1));
    const __m256i four = _mm256_and_si256(_mm256_castpd_si256(bit1.m), _mm256_set1_epi64x(4));
    return {_mm256_or_si256(one, four)};
}
MAMLPP_INLINE Vec<double> pick(const double* p, Lane<double> lane) {
    return {_mm256_i64gather_pd(p, lane.v, 8)};
}

#elif defined(MAMLPP_NEON)

constexpr int register_rows[] = {0, 14, 12, 9, 6};
constexpr int max_columns = 4;

template <> struct Vec<float> {
    static constexpr int lanes = 4;
    float32x4_t v;
    static MAMLPP_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
    static MAMLPP_INLINE Vec all(float x) { return {vdupq_n_f32(x)}; }
    MAMLPP_INLINE void store(float* p) const { vst1q_f32(p, v); }
};
template <> struct Vec<double> {
    static constexpr int lanes = 2;
    float64x2_t v;
    static MAMLPP_INLINE Vec load(const double* p) { return {vld1q_f64(p)}; }
    static MAMLPP_INLINE Vec all(double x) { return {vdupq_n_f64(x)}; }
    MAMLPP_INLINE void store(double* p) const { vst1q_f64(p, v); }
};
template <> struct Mask<float> {
    uint32x4_t m;
    static MAMLPP_INLINE Mask none() { return {vdupq_n_u32(0)}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const uint32x4_t lane = {1, 2, 4, 8};
        return {vtstq_u32(vdupq_n_u32(bits), lane)};
    }
    MAMLPP_INLINE uint16_t pack() const {
        const uint32x4_t lane = {1, 2, 4, 8};
        return static_cast<uint16_t>(vaddvq_u32(m & lane));
    }
};
template <> struct Mask<double> {
    uint64x2_t m;
    static MAMLPP_INLINE Mask none() { return {vdupq_n_u64(0)}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const uint64x2_t lane = {1, 2};
        return {vtstq_u64(vdupq_n_u64(bits), lane)};
    }
    MAMLPP_INLINE uint16_t pack() const {
        const uint64x2_t lane = {1, 2};
        return static_cast<uint16_t>(vaddvq_u64(m & lane));
    }
};
template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) { return {a.m & b.m}; }
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) { return {a.m | b.m}; }
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) { return {a.m & ~b.m}; }

template <class T> MAMLPP_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) { return {a.v + b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) { return {a.v - b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) { return {a.v * b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) { return {a.v / b.v}; }

MAMLPP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return {vfmaq_f32(c.v, a.v, b.v)};
}
MAMLPP_INLINE Mask<float> greater(Vec<float> a, Vec<float> b) { return {vcgtq_f32(a.v, b.v)}; }
MAMLPP_INLINE Mask<float> unordered(Vec<float> a) { return {~vceqq_f32(a.v, a.v)}; }
MAMLPP_INLINE Vec<float> select(Mask<float> m, Vec<float> a, Vec<float> b) {
    return {vbslq_f32(m.m, a.v, b.v)};
}
// The bytes of a value among those that `pick` loads: it knows that lanes are 0, 1, 4 or 5.
template <> struct Lane<float> {
    uint8x16_t v;
};
MAMLPP_INLINE Lane<float> lanes_at(Mask<float> bit0, Mask<float> bit1) {
    const uint32x4_t one = bit0.m & vdupq_n_u32(0x04040404);
    const uint32x4_t four = bit1.m & vdupq_n_u32(0x10101010);
    return {vreinterpretq_u8_u32(one | four | vdupq_n_u32(0x03020100))};
}
MAMLPP_INLINE Vec<float> pick(const float* p, Lane<float> lane) {
    const uint8x16x2_t row = {
        {vreinterpretq_u8_f32(vld1q_f32(p)), vreinterpretq_u8_f32(vld1q_f32(p + 4))}};
    return {vreinterpretq_f32_u8(vqtbl2q_u8(row, lane.v))};
}

MAMLPP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {vfmaq_f64(c.v, a.v, b.v)};
}
MAMLPP_INLINE Mask<double> greater(Vec<double> a, Vec<double> b) { return {vcgtq_f64(a.v, b.v)}; }
MAMLPP_INLINE Mask<double> unordered(Vec<double> a) { return {~vceqq_f64(a.v, a.v)}; }
MAMLPP_INLINE Vec<double> select(Mask<double> m, Vec<double> a, Vec<double> b) {
    return {vbslq_f64(m.m, a.v, b.v)};
}
template <> struct Lane<double> {
    uint8x16_t v;
};
MAMLPP_INLINE Lane<double> lanes_at(Mask<double> bit0, Mask<double> bit1) {
    const uint64x2_t one = bit0.m & vdupq_n_u64(0x0808080808080808);
    const uint64x2_t four = bit1.m & vdupq_n_u64(0x1010101010101010);
    return {vreinterpretq_u8_u64(one | four | vdupq_n_u64(0x0706050403020100))};
}
MAMLPP_INLINE Vec<double> pick(const double* p, Lane<double> lane) {
    const uint8x16x2_t row = {
        {vreinterpretq_u8_f64(vld1q_f64(p)), vreinterpretq_u8_f64(vld1q_f64(p + 4))}};
    return {vreinterpretq_f64_u8(vqtbl2q_u8(row, lane.v))};
}

// The second one where either is no number.
template <class T> MAMLPP_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
    return select(greater(b, a), a, b);
}
template <class T> MAMLPP_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    return select(greater(a, b), a, b);
}

#else

constexpr int register_rows[] = {0, 8, 6, 4, 2};
constexpr int max_columns = 3;

template <class T> struct Vec {
    static constexpr int lanes = 4;
    T v[lanes];
    static MAMLPP_INLINE Vec load(const T* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static MAMLPP_INLINE Vec all(T x) { return {{x, x, x, x}}; }
    MAMLPP_INLINE void store(T* p) const {
        for (int i = 0; i < lanes; ++i)
            p[i] = v[i];
    }
};
template <class T> struct Mask {
    uint16_t m;
    static MAMLPP_INLINE Mask none() { return {0}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) { return {bits}; }
    MAMLPP_INLINE uint16_t pack() const { return m; }
};
template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m & b.m)};
}
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m | b.m)};
}
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m & ~b.m)};
}
template <class T> MAMLPP_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] += b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] -= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] *= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        c.v[i] += a.v[i] * b.v[i];
    return c;
}
template <class T> MAMLPP_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] /= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Mask<T> greater(Vec<T> a, Vec<T> b) {
    unsigned m = 0;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        m |= static_cast<unsigned>(a.v[i] > b.v[i]) << i;
    return {static_cast<uint16_t>(m)};
}
template <class T> MAMLPP_INLINE Mask<T> unordered(Vec<T> a) {
    unsigned m = 0;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        m |= static_cast<unsigned>(a.v[i] != a.v[i]) << i;
    return {static_cast<uint16_t>(m)};
}
template <class T> MAMLPP_INLINE Vec<T> select(Mask<T> m, Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = (m.m >> i) & 1 ? a.v[i] : b.v[i];
    return a;
}
template <class T> struct Lane {
    int v[Vec<T>::lanes];
};
template <class T> MAMLPP_INLINE Lane<T> lanes_at(Mask<T> bit0, Mask<T> bit1) {
    Lane<T> lane;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        lane.v[i] = ((bit0.m >> i) & 1) + 4 * ((bit1.m >> i) & 1);
    return lane;
}
template <class T> MAMLPP_INLINE Vec<T> pick(const T* p, Lane<T> lane) {
    Vec<T> result;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        result.v[i] = p[lane.v[i]];
    return result;
}

#endif

// Values that a read of `pick` may touch behind the last one it uses.
constexpr int pick_slack = 16;

template <class T> constexpr int lanes = Vec<T>::lanes;

// n rounded up to whole vectors: the pitch of a pixel's channels in memory.
template <class T> MAMLPP_INLINE int padded(int n) {
    return (n + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// A pooling window's winner in every lane: position 2·bit1 + bit0, in row-major order.
template <class T> struct Winner {
    Mask<T> bit0, bit1;
    static constexpr int words = 2; // uint16 each
    static MAMLPP_INLINE Winner load(const uint16_t* p) {
        return {Mask<T>::unpack(p[0]), Mask<T>::unpack(p[1])};
    }
    MAMLPP_INLINE void store(uint16_t* p) const {
        p[0] = bit0.pack();
        p[1] = bit1.pack();
    }
    // x where the winner is `position`, else y
    template <int position> MAMLPP_INLINE Vec<T> where(Vec<T> x, Vec<T> y) const {
        const Vec<T> low = position & 1 ? select(bit0, x, y) : select(bit0, y, x);
        return position & 2 ? select(bit1, low, y) : select(bit1, y, low);
    }
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
