// As many vectors as one has lanes, rows to columns.
#pragma once

#include "simd.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) &&                                                      \
    (defined(__AVX512F__) || defined(__AVX2__) || defined(MAMLPP_NEON))
#define MAMLPP_SHUFFLES
#endif
#endif

namespace mamlpp {
namespace MAMLPP_ISA {

#ifdef MAMLPP_SHUFFLES

template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> {
    using type = Indices<I...>;
};

// Swaps the upper right and the lower left S×S block of every 2S×2S one.
template <int S, class T, int... I>
MAMLPP_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, Indices<I...>) {
    constexpr int L = sizeof...(I);
    const auto x = a.v, y = b.v;
    a.v = __builtin_shufflevector(x, y, (I & S ? L + I - S : I)...);
    b.v = __builtin_shufflevector(x, y, (I & S ? L + I : I + S)...);
}
template <int S, class T, int L> MAMLPP_INLINE void transpose_from(Vec<T> (&rows)[L]) {
    if constexpr (S < L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            if (!(i & S))
                swap_blocks<S>(rows[i], rows[i + S], typename Count<L>::type{});
        transpose_from<2 * S>(rows);
    }
}
template <class T> MAMLPP_INLINE void transpose(Vec<T> (&rows)[Vec<T>::lanes]) {
    transpose_from<1>(rows);
}

#else

template <class T> MAMLPP_INLINE void transpose(Vec<T> (&rows)[Vec<T>::lanes]) {
    constexpr int L = Vec<T>::lanes;
    T values[L][L];
    for (int i = 0; i < L; ++i)
        rows[i].store(values[i]);
    for (int i = 0; i < L; ++i)
        for (int j = 0; j < i; ++j) {
            const T value = values[i][j];
            values[i][j] = values[j][i];
            values[j][i] = value;
        }
    for (int i = 0; i < L; ++i)
        rows[i] = Vec<T>::load(values[i]);
}

#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
