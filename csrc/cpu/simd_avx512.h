// AVX-512: 16 floats. Included by simd.h alone, which says what its functions do.
#pragma once

#include <immintrin.h>

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int register_rows[] = {0, 14, 12, 9, 6};
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
    static MAMLPP_INLINE Mask unpack(uint16_t bits) { return {bits}; }
    MAMLPP_INLINE uint16_t pack() const { return static_cast<uint16_t>(m); }
};
template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) { return {a.m & b.m}; }
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) { return {a.m | b.m}; }
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) { return {a.m & ~b.m}; }

MAMLPP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
MAMLPP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm512_div_ps(a.v, b.v)}; }
MAMLPP_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
    return {_mm512_maskz_min_ps(0xffff, a.v, b.v)};
}
MAMLPP_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
    return {_mm512_maskz_max_ps(0xffff, a.v, b.v)};
}
MAMLPP_INLINE Mask<float> greater(Vec<float> a, Vec<float> b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)};
}
MAMLPP_INLINE Mask<float> unordered(Vec<float> a) {
    return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
MAMLPP_INLINE Vec<float> select(Mask<float> m, Vec<float> a, Vec<float> b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(m.m), b.v, a.v)};
}
template <> struct Lane<float> {
    __m512i v;
};
MAMLPP_INLINE Lane<float> lanes_at(Mask<float> bit0, Mask<float> bit1) {
    const __m512i one = _mm512_maskz_set1_epi32(static_cast<__mmask16>(bit0.m), 1);
    return {_mm512_mask_add_epi32(one, static_cast<__mmask16>(bit1.m), one, _mm512_set1_epi32(4))};
}
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

} // namespace MAMLPP_ISA
} // namespace mamlpp
