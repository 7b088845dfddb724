// The two matrix products that all convolutions are made of, but those of AMX (amx.cpp). They are
// compiled once, in products.cpp. S is what they read, T what they sum: the same type, or pairs of
// bfloat16 and float; sizes and steps are then in pairs.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// Calls f(first, size) for the vectors that a product sweeps at once, of a row of `pitch` values.
template <class T, class F> MAMLPP_INLINE void for_panels(int pitch, F f) {
    const int vectors = pitch / lanes<T>, panels = (vectors + max_columns - 1) / max_columns;
    for (int i = 0, first = 0; i < panels; ++i) {
        const int size = vectors / panels + (i < vectors % panels);
        f(first, size);
        first += size;
    }
}

// A product of `multiply`: values of one tap, and the filter rows that they meet.
template <class S> struct Term {
    const S* in;
    const S* w;
};

// out[p][:pitch] = Σ_terms Σ_c in[p·in_step + c] · w[c][:pitch], by sums of at most `longest_sum`
// products, for the error of a sum grows with the root of its length; by `panels`, w is the rows of
// one panel behind those of the other, which long rows are read faster from.
template <class S, class T>
void multiply(const Term<S>* terms, int count, int pixels, ptrdiff_t in_step, int channels,
              int pitch, T* out, ptrdiff_t out_step, bool panels = false);

// One row of pixels for `outer`: the scalars and the vectors of its first pixel.
template <class S> struct Run {
    const S* scalars;
    const S* vectors;
};

// sum[i][:pitch] (+)= Σ_runs Σ_pixels scalars[p][i] · vectors[p][:pitch]; `fresh`: what is there
// does not count. The products of a call are a sum of their own, as those of `multiply`.
template <class S, class T>
void outer(const Run<S>* runs, int count, int pixels, int scalars, ptrdiff_t s_step, int pitch,
           ptrdiff_t v_step, T* sum, ptrdiff_t sum_step, bool fresh);

} // namespace MAMLPP_ISA
} // namespace mamlpp
