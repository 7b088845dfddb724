// Per-task 3×3 convolution with padding 1, NHWC: the contractions of one trilinear form.
//
// Images are read from buffers with a border of zeros, [span][span][pitch], so that no loop asks
// where an edge is. `multiply` serves the value and the input gradient, `outer` the weight
// gradient; both take any number of terms, so that a tangent's two products are one longer sum. A
// channel that pads a pixel to whole vectors holds 0.
#pragma once

#include "cells.h"
#include "products.h"
#include "transpose.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// z row by row: Σ_pairs conv(image, w), w packed [9][channels][pitch_out]; then row(y, z row).
template <class T, class F>
inline void conv_fwd(const Conv<T>& g, const Pair<T>* pairs, int count, T* z, F row) {
    const ptrdiff_t z_row = static_cast<ptrdiff_t>(g.out()) * g.pitch_out;
    const ptrdiff_t w_tap = static_cast<ptrdiff_t>(g.channels) * g.pitch_out;
    for (int y = 0; y < g.out(); ++y) {
        Term<T> terms[2 * taps];
        int n = 0;
        for (int k = 0; k < count; ++k)
            for (int r = 0; r < 3; ++r) {
                const int from =
                    y * g.stride + r; // row of the buffer; its first and last are zeros
                if (from == 0 || from == g.side + 1)
                    continue;
                for (int s = 0; s < 3; ++s)
                    terms[n++] = {pairs[k].image + from * g.in_row() + s * g.pitch_in,
                                  pairs[k].w + (r * 3 + s) * w_tap};
            }
        multiply(terms, n, g.out(), static_cast<ptrdiff_t>(g.stride) * g.pitch_in, g.channels,
                 g.pitch_out, z + y * z_row, g.pitch_out);
        row(y, z + y * z_row);
    }
}

// dx row by row: Σ_pairs dgrad(dz, w), dz with its border, w packed [9][filters][pitch_in];
// then row(y, dx row). dx has pixels of pitch_in, which has to be whole vectors.
template <class T, class F>
inline void conv_dgrad(const Conv<T>& g, const Pair<T>* pairs, int count, T* dx, F row) {
    const ptrdiff_t dx_row = static_cast<ptrdiff_t>(g.side) * g.pitch_in;
    const ptrdiff_t w_tap = static_cast<ptrdiff_t>(g.filters) * g.pitch_in;
    for (int i = 0; i < g.side; ++i) {
        // Of a stride of 2, every second tap meets a pixel, in rows and in columns.
        for (int j = 0; j < g.stride; ++j) {
            Term<T> terms[2 * taps];
            int n = 0;
            for (int k = 0; k < count; ++k)
                for (int r = 0; r < 3; ++r) {
                    const int y = i + 1 - r;
                    if (y < 0 || y % g.stride || y / g.stride >= g.out())
                        continue;
                    for (int s = 0; s < 3; ++s) {
                        const int x = j + 1 - s + g.stride; // of the border's grid, never negative
                        if (x % g.stride)
                            continue;
                        terms[n++] = {pairs[k].image + (y / g.stride + 1) * g.dz_row() +
                                          x / g.stride * g.pitch_out,
                                      pairs[k].w + (r * 3 + s) * w_tap};
                    }
                }
            multiply(terms, n, (g.side - j + g.stride - 1) / g.stride, g.pitch_out, g.filters,
                     g.pitch_in, dx + i * dx_row + j * g.pitch_in,
                     static_cast<ptrdiff_t>(g.stride) * g.pitch_in);
        }
        row(i, dx + i * dx_row);
    }
}

// Bytes of operands that `conv_wgrad` sweeps once for each tap and block of filters.
constexpr int sweep_bytes = 40 * 1024;
constexpr int sweep_runs = 64;

// dw (+)= Σ_images Σ_pairs wgrad(x, dz). Of each pair, `image` is x with its border and `w` is dz
// with its border, `images` of them one behind the other.
//
// With whole vectors of input channels dw is [filters][9][pitch_in], as parameters lie; otherwise,
// for the few channels of a first layer, it is [9][channels][pitch_out].
template <class T>
inline void conv_wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, int images, T* dw,
                       bool fresh) {
    const bool wide = g.pitch_in % lanes<T> == 0;
    const ptrdiff_t row_bytes = (g.in_row() + g.dz_row()) * static_cast<ptrdiff_t>(sizeof(T));
    int block = static_cast<int>(sweep_bytes / row_bytes) - 1;
    block = block < 1 ? 1 : block > sweep_runs ? sweep_runs : block;
    const int rows = images * g.out();
    for (int k = 0; k < count; ++k)
        for (int first = 0; first < rows; first += block, fresh = false) {
            const int last = first + block < rows ? first + block : rows;
            for (int r = 0; r < 3; ++r) {
                Run<T> runs[sweep_runs];
                for (int s = 0; s < 3; ++s) {
                    int n = 0;
                    for (int row = first; row < last; ++row) {
                        const int image = row / g.out(), y = row % g.out();
                        const int from = y * g.stride + r;
                        if (from == 0 || from == g.side + 1)
                            continue;
                        const T* x = pairs[k].image + image * g.in_image() + from * g.in_row() +
                                     s * g.pitch_in;
                        const T* dz =
                            pairs[k].w + image * g.dz_image() + (y + 1) * g.dz_row() + g.pitch_out;
                        runs[n++] = wide ? Run<T>{dz, x} : Run<T>{x, dz};
                    }
                    const int tap = r * 3 + s;
                    const ptrdiff_t x_step = static_cast<ptrdiff_t>(g.stride) * g.pitch_in;
                    if (wide)
                        outer(runs, n, g.out(), g.filters, g.pitch_out, g.pitch_in, x_step,
                              dw + tap * g.pitch_in, static_cast<ptrdiff_t>(taps) * g.pitch_in,
                              fresh);
                    else
                        outer(runs, n, g.out(), g.channels, x_step, g.pitch_out, g.pitch_out,
                              dw + static_cast<ptrdiff_t>(tap) * g.channels * g.pitch_out,
                              g.pitch_out, fresh);
                }
            }
        }
}

// [9][pitch_out][pitch] → [filters][9][pitch]
template <class T> inline void taps_gradient(const Conv<T>& g, const T* sum, T* dw) {
    const ptrdiff_t tap = static_cast<ptrdiff_t>(g.pitch_out) * g.pitch_in;
    for (int f = 0; f < g.filters; ++f, sum += g.pitch_in)
        for (int t = 0; t < taps; ++t, dw += g.pitch_in)
            for (int c = 0; c < g.pitch_in; c += lanes<T>)
                Vec<T>::load(sum + t * tap + c).store(dw + c);
}

// Σ of `parts` results of conv_wgrad, `stride` apart, into the first → [filters][9][channels]: of
// some filters, or where those are not wide, of all
template <class T>
inline void store_filters(const Conv<T>& g, Span filters, T* shares, int parts, ptrdiff_t stride,
                          T* to) {
    constexpr int L = lanes<T>;
    const bool wide = g.pitch_in % L == 0; // see conv_wgrad
    const ptrdiff_t filter = static_cast<ptrdiff_t>(taps) * g.pitch_in;
    const ptrdiff_t begin = wide ? filters.begin * filter : 0;
    const ptrdiff_t end =
        wide ? filters.end * filter : static_cast<ptrdiff_t>(taps) * g.channels * g.pitch_out;
    const bool whole = wide && g.channels == g.pitch_in;
    T* const sums = whole ? to : shares;
    for (ptrdiff_t at = begin; at < end; at += L) {
        Vec<T> sum = Vec<T>::load(shares + at);
        for (int i = 1; i < parts; ++i)
            sum = sum + Vec<T>::load(shares + i * stride + at);
        sum.store(sums + at);
    }
    if (whole)
        return;
    to += static_cast<ptrdiff_t>(filters.begin) * taps * g.channels;
    for (int f = filters.begin; f < filters.end; ++f)
        for (int t = 0; t < taps; ++t, to += g.channels)
            for (int c = 0; c < g.channels; ++c)
                to[c] =
                    shares[wide ? (static_cast<ptrdiff_t>(f) * taps + t) * g.pitch_in + c
                                : (static_cast<ptrdiff_t>(t) * g.channels + c) * g.pitch_out + f];
}

// [filters][9][channels] → [9][channels][pitch], the order in which conv_fwd reads them, of some
// channels, which begin at a multiple of the lanes; or of another number of taps
template <class T>
inline void pack_filters(const T* theta, int filters, int channels, Span which, int pitch, T* w,
                         int count = taps) {
    constexpr int L = lanes<T>;
    const ptrdiff_t filter = static_cast<ptrdiff_t>(count) * channels;
    if (channels % L == 0 && filters == pitch) {
        for (int t = 0; t < count; ++t)
            for (int c = which.begin; c < which.end; c += L)
                for (int f = 0; f < filters; f += L) {
                    Vec<T> block[L];
#pragma GCC unroll 16
                    for (int i = 0; i < L; ++i)
                        block[i] = Vec<T>::load(theta + (f + i) * filter + t * channels + c);
                    transpose(block);
#pragma GCC unroll 16
                    for (int i = 0; i < L; ++i)
                        block[i].store(w + (static_cast<ptrdiff_t>(t) * channels + c + i) * pitch +
                                       f);
                }
        return;
    }
    for (int t = 0; t < count; ++t)
        for (int c = which.begin; c < which.end; ++c) {
            const T* from = theta + t * channels + c;
            T* const to = w + (static_cast<ptrdiff_t>(t) * channels + c) * pitch;
            for (int f = 0; f < filters; ++f)
                to[f] = from[f * filter];
            for (int f = filters; f < pitch; ++f)
                to[f] = 0;
        }
}

// [filters][9][channels] → [9][filters][pitch], the order in which conv_dgrad reads them, of some
// filters
template <class T>
inline void pack_filters_bwd(const T* theta, int filters, Span which, int channels, int pitch, T* w,
                             int count = taps) {
    theta += static_cast<ptrdiff_t>(which.begin) * count * channels;
    for (int f = which.begin; f < which.end; ++f)
        for (int t = 0; t < count; ++t, theta += channels) {
            T* const to = w + (static_cast<ptrdiff_t>(t) * filters + f) * pitch;
            for (int c = 0; c < channels; ++c)
                to[c] = theta[c];
            for (int c = channels; c < pitch; ++c)
                to[c] = 0;
        }
}

// Zeros around the images of a buffer.
template <class T> inline void clear_border(T* image, int side, int pitch) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(span(side)) * pitch;
    const ptrdiff_t inside = static_cast<ptrdiff_t>(side) * pitch;
    for (ptrdiff_t i = 0; i < row + pitch; ++i)
        image[i] = 0;
    for (int y = 1; y < side; ++y)
        for (ptrdiff_t i = y * row + pitch + inside; i < (y + 1) * row + pitch; ++i)
            image[i] = 0;
    for (ptrdiff_t i = side * row + pitch + inside; i < span(side) * row; ++i)
        image[i] = 0;
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
