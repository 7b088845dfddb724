// AVX2 with FMA: 8 floats. Included by simd.h alone, which says what its functions do.
#pragma once

#include <immintrin.h>

namespace mamlpp {
namespace MAMLPP_ISA {

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
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits), lane);
        return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))};
    }
    MAMLPP_INLINE uint16_t pack() const { return static_cast<uint16_t>(_mm256_movemask_ps(m)); }
};
template <> struct Mask<double> {
    __m256d m;
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

} // namespace MAMLPP_ISA
} // namespace mamlpp
