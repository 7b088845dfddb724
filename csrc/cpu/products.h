// The two matrix products that all convolutions are made of. They are compiled once, in products.cpp.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// A product of `multiply`: values of one tap, and the filter rows that they meet.
template <class T> struct Term {
    const T* in;
    const T* w;
};

// out[p][:pitch] = Σ_terms Σ_c in[p·in_step + c] · w[c·w_step + :pitch]
template <class T>
void multiply(const Term<T>* terms, int count, int pixels, ptrdiff_t in_step, ptrdiff_t w_step,
              int channels, int pitch, T* out, ptrdiff_t out_step);

// One row of pixels for `outer`: the scalars and the vectors of its first pixel.
template <class T> struct Run {
    const T* scalars;
    const T* vectors;
};

// sum[i][:pitch] (+)= Σ_runs Σ_pixels scalars[p][i] · vectors[p][:pitch]; `fresh` starts from 0.
template <class T>
void outer(const Run<T>* runs, int count, int pixels, int scalars, ptrdiff_t s_step, int pitch,
           ptrdiff_t v_step, T* sum, ptrdiff_t sum_step, bool fresh);

} // namespace MAMLPP_ISA
} // namespace mamlpp
