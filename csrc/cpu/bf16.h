// Pairs of bfloat16, whose products are summed in float (AVX512-BF16).
#pragma once

#include "simd.h"

#ifdef __AVX512BF16__

namespace mamlpp {
namespace MAMLPP_ISA {

// Two bfloat16, the first one in the low half.
struct Bf16Pair {
    uint32_t bits;
};
template <> struct Vec<Bf16Pair> {
    static constexpr int lanes = 16;
    __m512i v;
    static MAMLPP_INLINE Vec load(const Bf16Pair* p) { return {_mm512_loadu_si512(p)}; }
    static MAMLPP_INLINE Vec all(Bf16Pair x) {
        return {_mm512_set1_epi32(static_cast<int>(x.bits))};
    }
    MAMLPP_INLINE void store(Bf16Pair* p) const { _mm512_storeu_si512(p, v); }
};
// c + the sum over each pair of a·b
MAMLPP_INLINE Vec<float> fma(Vec<Bf16Pair> a, Vec<Bf16Pair> b, Vec<float> c) {
    return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}

struct Bf16 { // as many bfloat16 as a vector has floats
    __m256i v;
    MAMLPP_INLINE void store(Bf16Pair* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
    }
    MAMLPP_INLINE Vec<float> wide() const {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16))};
    }
};
// To the nearest, ties to even.
MAMLPP_INLINE Bf16 round_bf16(Vec<float> x) { return {(__m256i)_mm512_cvtneps_pbh(x.v)}; }
MAMLPP_INLINE Vec<Bf16Pair> interleave(Bf16 even, Bf16 odd) {
    return {_mm512_or_si512(_mm512_cvtepu16_epi32(even.v),
                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd.v), 16))};
}

} // namespace MAMLPP_ISA
} // namespace mamlpp

#endif
