// Linear classifier and mean cross-entropy of one task; small, so that one worker does it.
#pragma once

#include <math.h>

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// Of one task: n samples of d features, `ways` classes.
struct Head {
    int n, d, ways;
};

template <class T> inline T dot(const T* a, const T* b, int n) {
    constexpr int L = lanes<T>;
    Vec<T> sum[4] = {Vec<T>::all(0), Vec<T>::all(0), Vec<T>::all(0), Vec<T>::all(0)};
    int i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
            sum[k] = fma(Vec<T>::load(a + i + k * L), Vec<T>::load(b + i + k * L), sum[k]);
    T parts[L], total = 0;
    ((sum[0] + sum[1]) + (sum[2] + sum[3])).store(parts);
    for (int k = 0; k < L; ++k)
        total += parts[k];
    for (; i < n; ++i)
        total += a[i] * b[i];
    return total;
}

// y += a·x
template <class T> inline void axpy(T a, const T* x, T* y, int n) {
    for (int i = 0; i < n; ++i)
        y[i] += a * x[i];
}

// logits = h·wᵀ + c
template <class T>
inline void head_logits(const Head& g, const T* h, const T* w, const T* c, T* logits) {
    for (int i = 0; i < g.n; ++i)
        for (int k = 0; k < g.ways; ++k)
            logits[i * g.ways + k] =
                dot(h + static_cast<ptrdiff_t>(i) * g.d, w + static_cast<ptrdiff_t>(k) * g.d, g.d) +
                c[k];
}

// Mean cross-entropy; softmax and residual = (softmax − one-hot) / n, [n][ways] each
template <class T>
inline T head_loss(const Head& g, const T* logits, const int64_t* labels, T* softmax, T* residual) {
    double loss = 0;
    for (int i = 0; i < g.n; ++i) {
        const T* l = logits + i * g.ways;
        double top = static_cast<double>(l[0]), sum = 0;
        for (int k = 1; k < g.ways; ++k)
            top = static_cast<double>(l[k]) > top ? static_cast<double>(l[k]) : top;
        for (int k = 0; k < g.ways; ++k)
            sum += exp(static_cast<double>(l[k]) - top);
        for (int k = 0; k < g.ways; ++k) {
            const double p = exp(static_cast<double>(l[k]) - top) / sum;
            softmax[i * g.ways + k] = static_cast<T>(p);
            residual[i * g.ways + k] = static_cast<T>((p - (labels[i] == k)) / g.n);
        }
        loss += log(sum) + top - static_cast<double>(l[labels[i]]);
    }
    return static_cast<T>(loss / g.n);
}

// The direction of `residual` along that of the logits.
template <class T>
inline void head_residual_dot(const Head& g, const T* softmax, const T* logits_dot,
                              T* residual_dot) {
    for (int i = 0; i < g.n * g.ways; i += g.ways) {
        T mean = 0;
        for (int k = 0; k < g.ways; ++k)
            mean += softmax[i + k] * logits_dot[i + k];
        for (int k = 0; k < g.ways; ++k)
            residual_dot[i + k] = softmax[i + k] * (logits_dot[i + k] - mean) / static_cast<T>(g.n);
    }
}

// dh (+)= residual·w
template <class T>
inline void head_dh(const Head& g, const T* residual, const T* w, T* dh, bool fresh) {
    for (int i = 0; i < g.n; ++i) {
        T* to = dh + static_cast<ptrdiff_t>(i) * g.d;
        if (fresh)
            for (int j = 0; j < g.d; ++j)
                to[j] = 0;
        for (int k = 0; k < g.ways; ++k)
            axpy(residual[i * g.ways + k], w + static_cast<ptrdiff_t>(k) * g.d, to, g.d);
    }
}

// dw (+)= residualᵀ·h, and the bias's gradient dc = Σ residual where it is asked for
template <class T>
inline void head_dw(const Head& g, const T* residual, const T* h, T* dw, T* dc, bool fresh) {
    for (int k = 0; k < g.ways; ++k) {
        T* to = dw + static_cast<ptrdiff_t>(k) * g.d;
        T sum = 0;
        if (fresh)
            for (int j = 0; j < g.d; ++j)
                to[j] = 0;
        for (int i = 0; i < g.n; ++i) {
            axpy(residual[i * g.ways + k], h + static_cast<ptrdiff_t>(i) * g.d, to, g.d);
            sum += residual[i * g.ways + k];
        }
        if (dc)
            dc[k] = sum;
    }
}

// Pixels with `filters` real channels of `pitch` → features [filters][pixels], or each filter's
// mean.
template <class T>
inline void features(const T* image, int side, int filters, int pitch, bool mean, T* h) {
    const int pixels = side * side;
    for (int f = 0; f < filters; ++f) {
        T sum = 0;
        for (int p = 0; p < pixels; ++p) {
            const T value =
                image[(static_cast<ptrdiff_t>(p / side + 1) * span(side) + p % side + 1) * pitch +
                      f];
            if (mean)
                sum += value;
            else
                h[f * pixels + p] = value;
        }
        if (mean)
            h[f] = sum / static_cast<T>(pixels);
    }
}

// The gradient of `features`: pixels without a border, padding channels 0
template <class T>
inline void features_bwd(const T* dh, int side, int filters, int pitch, bool mean, T* image) {
    const int pixels = side * side;
    for (int p = 0; p < pixels; ++p)
        for (int f = 0; f < pitch; ++f)
            image[static_cast<ptrdiff_t>(p) * pitch + f] = f >= filters ? 0
                                                           : mean ? dh[f] / static_cast<T>(pixels)
                                                                  : dh[f * pixels + p];
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
