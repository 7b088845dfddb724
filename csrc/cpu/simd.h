// Vectors of the instruction set that this translation unit is compiled for: AVX-512, AVX2 with
// FMA, NEON, or whatever the compiler makes of vectors of 16 bytes. NEON is where CMake says so:
// any compiler for AArch64 has it, also for the portable set.
//
// The kernels are compiled once for each set, in a namespace of its own (MAMLPP_ISA), and include
// no standard header with inline functions of external linkage: the linker would merge those of an
// AVX-512 unit with everyone else's.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MAMLPP_INLINE inline __attribute__((always_inline))
#define MAMLPP_LAMBDA __attribute__((always_inline))
// For what is long and called often: a copy at each call is time to compile and no speed.
#define MAMLPP_APART __attribute__((noinline))

namespace mamlpp {
namespace MAMLPP_ISA {

// Vec<T>: `lanes` values. Mask<T>: one bit of truth a lane. Lane<T>: an index a lane, for `pick`.
// A set defines them, what is done with them, and the accumulators that fit its registers: rows for
// 1 to `max_columns` vectors a row. Of its functions
//   smaller, larger   the second one where either is no number
//   unordered         where it is no number
//   without           a and not b
//   lanes_at          4·bit1 + bit0: where a winner lies in a window of rows of four
//   pick              p[lane], of lanes below 6; reads up to `pick_slack` values from p
template <class T> struct Vec;
template <class T> struct Mask;
template <class T> struct Lane;

} // namespace MAMLPP_ISA
} // namespace mamlpp

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(MAMLPP_NEON)
#include "simd_neon.h"
#include "simd_vector.h"
#else
#include "simd_portable.h"
#include "simd_vector.h"
#endif

namespace mamlpp {
namespace MAMLPP_ISA {

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
