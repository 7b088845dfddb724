// The two matrix products that all convolutions are made of. They are compiled once, in
// products.cpp, and where the processor has tiles in tiles.cpp. S is what they read, T what they
// sum: the same type, or pairs of bfloat16 and float; sizes and steps are then in pairs.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// A product of `multiply`: values of one tap, and the filter rows that they meet.
template <class S> struct Term {
    const S* in;
    const S* w;
};

// out[p][:pitch] = Σ_terms Σ_c in[p·in_step + c] · w[c][:pitch]
template <class S, class T>
void multiply(const Term<S>* terms, int count, int pixels, ptrdiff_t in_step, int channels,
              int pitch, T* out, ptrdiff_t out_step);

// One row of pixels for `outer`: the scalars and the vectors of its first pixel.
template <class S> struct Run {
    const S* scalars;
    const S* vectors;
};

// sum[i][:pitch] (+)= Σ_runs Σ_pixels scalars[p][i] · vectors[p][:pitch]; `fresh` starts from 0.
template <class S, class T>
void outer(const Run<S>* runs, int count, int pixels, int scalars, ptrdiff_t s_step, int pitch,
           ptrdiff_t v_step, T* sum, ptrdiff_t sum_step, bool fresh);

} // namespace MAMLPP_ISA
} // namespace mamlpp
