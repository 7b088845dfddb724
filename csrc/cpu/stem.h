// The first stage, conv → batch norm → leaky ReLU → 2×2 max pool, from the moments of its patches
// (the formulas are those of kernels/plain/stem.py).
//
// Images are planar with a border, [channels][side + 2][side + 2], and have lost their mean over
// the task, border included: batch norm does not see it, and sums over patches lose no digits to
// it. A patch is [channels][9]. Work goes by rows of pooling windows: each needs 4×4 values a
// channel.
#pragma once

#include "conv.h"
#include "norm_act.h"

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int window_values = 16;

MAMLPP_INLINE ptrdiff_t plane(int side) { return static_cast<ptrdiff_t>(side + 2) * (side + 2); }

// Values that `windows` writes: one row of windows, and what `pick` may read behind it.
MAMLPP_INLINE ptrdiff_t windows_size(int side, int channels) {
    return static_cast<ptrdiff_t>(side / 2) * channels * window_values + pick_slack;
}

// The 4×4 values behind each pooling window of row i: [side / 2][channels][16]
template <class T> inline void windows(const T* image, int side, int channels, int i, T* to) {
    for (int c = 0; c < channels; ++c)
        for (int r = 0; r < 4; ++r) {
            const T* from =
                image + c * plane(side) + static_cast<ptrdiff_t>(2 * i + r) * (side + 2);
            T* out = to + c * window_values + 4 * r;
            for (int j = 0; j < side / 2; ++j, from += 2, out += channels * window_values)
                __builtin_memcpy(out, from, 4 * sizeof(T));
        }
}

// The four convolution values of a window for V vectors of filters.
template <class T, int V>
MAMLPP_INLINE void window_values_of(const T* window, int channels, const T* w, int pitch,
                                    Vec<T> (&z)[V][4]) {
    constexpr int L = lanes<T>;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            z[v][i] = Vec<T>::all(0);
    for (int c = 0; c < channels; ++c, window += window_values)
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
            for (int s = 0; s < 3; ++s, w += pitch) {
                Vec<T> row[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v)
                    row[v] = Vec<T>::load(w + v * L);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const Vec<T> x = Vec<T>::all(window[(r + i / 2) * 4 + s + i % 2]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v)
                        z[v][i] = fma(x, row[v], z[v][i]);
                }
            }
}

// Image → x̂ at the winners and the winners; w packed [channels · 9][pitch].
template <class T, int V>
inline void stem_fwd_columns(const Window& g, const T* image, int channels, const T* w,
                             const T* gain, const T* centre, const T* rstd, T* x_hat,
                             uint16_t* winners, int from, T* row) {
    constexpr int L = lanes<T>;
    for (int i = 0; i < g.pooled; ++i) {
        windows(image, g.dense, channels, i, row);
        for (int j = 0; j < g.pooled; ++j) {
            Vec<T> z[V][4];
            window_values_of<T, V>(row + static_cast<ptrdiff_t>(j) * channels * window_values,
                                   channels, w + from, g.pitch, z);
            const ptrdiff_t at = (static_cast<ptrdiff_t>(i) * g.pooled + j) * g.pitch + from;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const int c = from + v * L;
                Vec<T> value;
                compete(z[v], sign_of(Vec<T>::load(gain + c)), value)
                    .store(winners + (at / L + v) * Winner<T>::words);
                ((value - Vec<T>::load(centre + c)) * Vec<T>::load(rstd + c))
                    .store(x_hat + at + v * L);
            }
        }
    }
}

template <class T>
inline void stem_fwd(const Window& g, const T* image, int channels, const T* w, const T* gain,
                     const T* centre, const T* rstd, T* x_hat, uint16_t* winners, T* row) {
    constexpr int L = lanes<T>, most = max_columns < 4 ? 2 : 4;
    for (int c = 0; c < g.pitch;) {
        const int left = (g.pitch - c) / L, size = left < most ? left : most;
        if (size == 1)
            stem_fwd_columns<T, 1>(g, image, channels, w, gain, centre, rstd, x_hat, winners, c,
                                   row);
        if (size == 2)
            stem_fwd_columns<T, 2>(g, image, channels, w, gain, centre, rstd, x_hat, winners, c,
                                   row);
        if constexpr (most > 2) {
            if (size == 3)
                stem_fwd_columns<T, 3>(g, image, channels, w, gain, centre, rstd, x_hat, winners, c,
                                       row);
            if (size == 4)
                stem_fwd_columns<T, 4>(g, image, channels, w, gain, centre, rstd, x_hat, winners, c,
                                       row);
        }
        c += size * L;
    }
}

// sum[channels · 9][pitch] (+)= Σ over windows of values · (patch at the window's winner)
template <class T>
inline void stem_gradient(const Window& g, const T* image, int channels, const T* values,
                          const uint16_t* winners, T* sum, bool fresh, T* row) {
    constexpr int L = lanes<T>;
    for (int i = 0; i < g.pooled; ++i, fresh = false) {
        windows(image, g.dense, channels, i, row);
        for (int at = 0; at < g.pitch; at += L)
            for (int c = 0; c < channels; ++c) {
                T* to = sum + static_cast<ptrdiff_t>(c) * taps * g.pitch + at;
                Vec<T> acc[taps];
#pragma GCC unroll 9
                for (int t = 0; t < taps; ++t)
                    acc[t] = fresh ? Vec<T>::all(0) : Vec<T>::load(to + t * g.pitch);
                for (int j = 0; j < g.pooled; ++j) {
                    const ptrdiff_t pixel = static_cast<ptrdiff_t>(i) * g.pooled + j;
                    const ptrdiff_t k = (pixel * g.pitch + at) / L * Winner<T>::words;
                    const Winner<T> w = Winner<T>::load(winners + k);
                    const Lane<T> lane = lanes_at(w.bit0, w.bit1);
                    const Vec<T> value = Vec<T>::load(values + pixel * g.pitch + at);
                    const T* window =
                        row + (static_cast<ptrdiff_t>(j) * channels + c) * window_values;
#pragma GCC unroll 9
                    for (int t = 0; t < taps; ++t)
                        acc[t] = fma(value, pick(window + t / 3 * 4 + t % 3, lane), acc[t]);
                }
#pragma GCC unroll 9
                for (int t = 0; t < taps; ++t)
                    acc[t].store(to + t * g.pitch);
            }
    }
}

// Direction of x̂ at the winners along that of the filters: r(w_dot·patch − shift − x̂q)
template <class T>
inline void stem_dot(const Window& g, const T* image, int channels, const T* w_dot, const T* x_hat,
                     const uint16_t* winners, const T* rstd, const T* shift, const T* q,
                     T* x_hat_dot, T* row) {
    constexpr int L = lanes<T>;
    for (int i = 0; i < g.pooled; ++i) {
        windows(image, g.dense, channels, i, row);
        for (int j = 0; j < g.pooled; ++j)
            for (int at = 0; at < g.pitch; at += L) {
                const ptrdiff_t pixel = (static_cast<ptrdiff_t>(i) * g.pooled + j) * g.pitch + at;
                const Winner<T> win = Winner<T>::load(winners + pixel / L * Winner<T>::words);
                const Lane<T> lane = lanes_at(win.bit0, win.bit1);
                Vec<T> sum[3] = {Vec<T>::all(0) - Vec<T>::load(shift + at), Vec<T>::all(0),
                                 Vec<T>::all(0)};
                const T* w = w_dot + at;
                const T* window = row + static_cast<ptrdiff_t>(j) * channels * window_values;
                for (int c = 0; c < channels; ++c, window += window_values)
#pragma GCC unroll 9
                    for (int t = 0; t < taps; ++t, w += g.pitch)
                        sum[t % 3] = fma(Vec<T>::load(w), pick(window + t / 3 * 4 + t % 3, lane),
                                         sum[t % 3]);
                const Vec<T> centred =
                    sum[0] + sum[1] + sum[2] - Vec<T>::load(x_hat + pixel) * Vec<T>::load(q + at);
                (centred * Vec<T>::load(rstd + at)).store(x_hat_dot + pixel);
            }
    }
}

// The images of a task as the stem reads them, and the moments of their patches.
template <class T> struct StemImages {
    T* images;         // [n][channels][side + 2][side + 2], less `pivot`
    uint16_t* rounded; // [n][rounded_size], where the set in use rounds them
    ptrdiff_t rounded_size;
    double* pivot; // [channels]
    double* mean;  // [channels · 9] of the patches of `images`
    double* cov;   // [channels · 9][channels · 9]
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
