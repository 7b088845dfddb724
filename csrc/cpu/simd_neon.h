// NEON: 4 floats. Included by simd.h alone, which says what its functions do.
#pragma once

#include <arm_neon.h>

namespace mamlpp {
namespace MAMLPP_ISA {

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
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        const uint64x2_t lane = {1, 2};
        return {vtstq_u64(vdupq_n_u64(bits), lane)};
    }
    MAMLPP_INLINE uint16_t pack() const {
        const uint64x2_t lane = {1, 2};
        return static_cast<uint16_t>(vaddvq_u64(m & lane));
    }
};

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

} // namespace MAMLPP_ISA
} // namespace mamlpp
