// What Winograd's products read. Their sums are of the type of the data; their operands are too,
// or, in a namespace that is compiled with MAMLPP_PARTS, of float data pairs of bfloat16:
//
//   1 part   x ≈ high                 (bf16: the operands are rounded)
//   2 parts  x ≈ high + low           (bf16x3: high·high + high·low + low·high, close to float32;
//                                      Henry, Tang and Heinecke 2019, arXiv 1904.06376)
//
// A pair is two values that follow each other in a sum.
#pragma once

#include "bf16.h"
#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> struct OperandOf {
    using type = T;
    static constexpr int parts = 1, values = 1;
};
#ifdef MAMLPP_PARTS
template <> struct OperandOf<float> {
    using type = Bf16Pair;
    static constexpr int parts = MAMLPP_PARTS, values = 2;
};
#endif
template <class T> using Operand = typename OperandOf<T>::type;
template <class T> constexpr int parts = OperandOf<T>::parts;   // arrays that one is written in
template <class T> constexpr int values = OperandOf<T>::values; // of the data in one operand

// Whether filters lie in the panels of `multiply`.
template <class T> constexpr bool in_panels = values<T> == 1;

// Values c to c + lanes of a row along which sums run; `part` is from one part to the next.
template <class T>
MAMLPP_INLINE void store_along(Vec<T> v, Operand<T>* row, int c, ptrdiff_t part) {
    if constexpr (values<T> == 1) {
        v.store(row + c);
    } else {
        const auto high = round_bf16(v);
        high.store(row + c / 2);
        if constexpr (parts<T> > 1)
            round_bf16(v - high.wide()).store(row + part + c / 2);
    }
}

// Values of two rows over which sums run.
template <class T>
MAMLPP_INLINE void store_pair(Vec<T> even, Vec<T> odd, Operand<T>* to, ptrdiff_t part) {
    static_assert(values<T> == 2, "pairs");
    const auto first = round_bf16(even), second = round_bf16(odd);
    interleave(first, second).store(to);
    if constexpr (parts<T> > 1)
        interleave(round_bf16(even - first.wide()), round_bf16(odd - second.wide()))
            .store(to + part);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
