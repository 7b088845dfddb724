// Batch norm + affine + leaky ReLU + 2×2 max pool, one image at a time, between the sums over a
// task.
//
// With x̂ = (z − μ)r, m the slope of the activation at the winner of each window and δ = m·dp:
//
//   dz     = a₀S(δ) + a₁(z − μ) + a₂
//   dz_dot = b₀S(δ_dot) + b₁S(δ) + b₂(z − μ) + b₃(z_dot − μ_dot) + b₄
//
// where S scatters to the winners. Only x̂ at the winners is kept; the activation, and dz, are built
// in a buffer with a border, just before a convolution reads them.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// The sides of one stage's images, and a pixel's channels in memory.
struct Window {
    int dense;  // side of z
    int pooled; // side behind the pooling; the same without one
    int pitch;  // whole vectors
    bool pool;

    MAMLPP_INLINE ptrdiff_t dense_image() const {
        return static_cast<ptrdiff_t>(dense) * dense * pitch;
    }
    MAMLPP_INLINE ptrdiff_t pooled_image() const {
        return static_cast<ptrdiff_t>(pooled) * pooled * pitch;
    }
    template <class T> MAMLPP_INLINE ptrdiff_t winner_words() const { // uint16 an image
        return pool ? pooled_image() / lanes<T> * Winner<T>::words : 0;
    }
};

// Mean and M2 of rows of pixels, merged as Chan et al. (1979) do. Arrays of `pitch` each.
template <class T> struct Moments {
    T* mean;
    T* m2;
};

// Merges `pixels` more into moments that stand for `seen` pixels.
template <class T>
inline void add_moments(Moments<T> sum, const T* row, int pixels, int pitch, int seen) {
    constexpr int L = lanes<T>;
    const T n = static_cast<T>(pixels), total = n + static_cast<T>(seen);
    for (int c = 0; c < pitch; c += L) {
        Vec<T> mean = Vec<T>::all(0), m2 = Vec<T>::all(0);
        for (int p = 0; p < pixels; ++p)
            mean = mean + Vec<T>::load(row + p * pitch + c);
        mean = mean * Vec<T>::all(1 / n);
        for (int p = 0; p < pixels; ++p) {
            const Vec<T> d = Vec<T>::load(row + p * pitch + c) - mean;
            m2 = fma(d, d, m2);
        }
        if (seen) {
            const Vec<T> old = Vec<T>::load(sum.mean + c), d = mean - old;
            mean = fma(d, Vec<T>::all(n / total), old);
            m2 = m2 + fma(d * d, Vec<T>::all(n * static_cast<T>(seen) / total),
                          Vec<T>::load(sum.m2 + c));
        }
        mean.store(sum.mean + c);
        m2.store(sum.m2 + c);
    }
}

// sums[0] (+)= Σ z_dot, sums[1] (+)= Σ z_dot(z − μ) of a row of pixels; arrays of `pitch`.
template <class T>
inline void add_products(T* const sums[2], const T* z_dot, const T* z, const T* mean, int pixels,
                         int pitch, bool fresh) {
    constexpr int L = lanes<T>;
    for (int c = 0; c < pitch; c += L) {
        const Vec<T> mu = Vec<T>::load(mean + c);
        Vec<T> plain = Vec<T>::all(0), centred = Vec<T>::all(0);
        for (int p = 0; p < pixels; ++p) {
            const Vec<T> d = Vec<T>::load(z_dot + p * pitch + c);
            plain = plain + d;
            centred = fma(d, Vec<T>::load(z + p * pitch + c) - mu, centred);
        }
        if (!fresh) {
            plain = plain + Vec<T>::load(sums[0] + c);
            centred = centred + Vec<T>::load(sums[1] + c);
        }
        plain.store(sums[0] + c);
        centred.store(sums[1] + c);
    }
}

// The winner of four values, the first one of equals, and its value. What is not a number wins.
template <class T>
MAMLPP_INLINE Winner<T> compete(const Vec<T> (&z)[4], Vec<T> sign, Vec<T>& value) {
    Vec<T> keys[2], values[2];
    Mask<T> right[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) { // of a row
        const Vec<T> key = z[2 * i] * sign, other = z[2 * i + 1] * sign;
        right[i] = greater(other, key) | unordered(other);
        keys[i] = select(right[i], other, key);
        values[i] = select(right[i], z[2 * i + 1], z[2 * i]);
    }
    const Mask<T> below = greater(keys[1], keys[0]) | unordered(keys[1]);
    value = select(below, values[1], values[0]);
    return {without(right[0], below) | (right[1] & below), below};
}

// −1, 0 or 1 in every lane: with a gain of 0 all values of a window are equal, the first one wins.
template <class T> MAMLPP_INLINE Vec<T> sign_of(Vec<T> gain) {
    const Vec<T> zero = Vec<T>::all(0), one = Vec<T>::all(1);
    return select(greater(gain, zero), one, select(greater(zero, gain), zero - one, zero));
}

// z → x̂ at the winners, and the winners
template <class T>
inline void normalise(const Window& g, const T* z, const T* gain, const T* mean, const T* rstd,
                      T* x_hat, uint16_t* winners) {
    constexpr int L = lanes<T>;
    if (!g.pool) {
        for (ptrdiff_t i = 0; i < g.dense_image(); i += g.pitch)
            for (int c = 0; c < g.pitch; c += L)
                ((Vec<T>::load(z + i + c) - Vec<T>::load(mean + c)) * Vec<T>::load(rstd + c))
                    .store(x_hat + i + c);
        return;
    }
    const ptrdiff_t row = static_cast<ptrdiff_t>(g.dense) * g.pitch;
    for (int i = 0; i < g.pooled; ++i)
        for (int j = 0; j < g.pooled; ++j, x_hat += g.pitch) {
            const T* at = z + 2 * i * row + static_cast<ptrdiff_t>(2) * j * g.pitch;
            for (int c = 0; c < g.pitch; c += L, winners += Winner<T>::words) {
                const Vec<T> window[4] = {Vec<T>::load(at + c), Vec<T>::load(at + g.pitch + c),
                                          Vec<T>::load(at + row + c),
                                          Vec<T>::load(at + row + g.pitch + c)};
                Vec<T> value;
                compete(window, sign_of(Vec<T>::load(gain + c)), value).store(winners);
                ((value - Vec<T>::load(mean + c)) * Vec<T>::load(rstd + c)).store(x_hat + c);
            }
        }
}

// The slope of the activation where x̂ is what it got.
template <class T>
MAMLPP_INLINE Vec<T> slope_at(Vec<T> x_hat, Vec<T> gain, Vec<T> bias, Vec<T> slope) {
    return select(greater(fma(gain, x_hat, bias), Vec<T>::all(0)), Vec<T>::all(1), slope);
}

// x̂ → activation, into the inside of a buffer with a border, or into one without
template <class T>
inline void activate(int side, int pitch, const T* x_hat, const T* gain, const T* bias, T slope,
                     T* p, bool border = true) {
    constexpr int L = lanes<T>;
    for (int y = 0; y < side; ++y) {
        T* to = p + (border ? (static_cast<ptrdiff_t>(y + 1) * span(side) + 1) * pitch
                            : static_cast<ptrdiff_t>(y) * side * pitch);
        for (int x = 0; x < side; ++x, x_hat += pitch, to += pitch)
            for (int c = 0; c < pitch; c += L) {
                const Vec<T> v =
                    fma(Vec<T>::load(gain + c), Vec<T>::load(x_hat + c), Vec<T>::load(bias + c));
                select(greater(v, Vec<T>::all(0)), v, v * Vec<T>::all(slope)).store(to + c);
            }
    }
}

// x̂_dot → direction of the activation, m·gain·x̂_dot, into the inside of a buffer with a border
template <class T>
inline void activate_dot(int side, int pitch, const T* x_hat, const T* x_hat_dot, const T* gain,
                         const T* bias, T slope, T* p) {
    constexpr int L = lanes<T>;
    for (int y = 0; y < side; ++y) {
        T* to = p + (static_cast<ptrdiff_t>(y + 1) * span(side) + 1) * pitch;
        for (int x = 0; x < side; ++x, x_hat += pitch, x_hat_dot += pitch, to += pitch)
            for (int c = 0; c < pitch; c += L) {
                const Vec<T> scale = Vec<T>::load(gain + c);
                const Vec<T> m = slope_at(Vec<T>::load(x_hat + c), scale, Vec<T>::load(bias + c),
                                          Vec<T>::all(slope));
                (Vec<T>::load(x_hat_dot + c) * scale * m).store(to + c);
            }
    }
}

// z_dot → x̂_dot at the winners: r(z_dot − μ_dot − x̂q)
template <class T>
inline void normalise_dot(const Window& g, const T* z_dot, const T* x_hat, const uint16_t* winners,
                          const T* rstd, const T* mean_dot, const T* q, T* x_hat_dot) {
    constexpr int L = lanes<T>;
    const ptrdiff_t row = static_cast<ptrdiff_t>(g.dense) * g.pitch;
    for (int i = 0; i < g.pooled; ++i)
        for (int j = 0; j < g.pooled; ++j, x_hat += g.pitch, x_hat_dot += g.pitch) {
            const int scale = g.pool ? 2 : 1;
            const T* at = z_dot + scale * i * row + static_cast<ptrdiff_t>(scale) * j * g.pitch;
            for (int c = 0; c < g.pitch; c += L) {
                Vec<T> value = Vec<T>::load(at + c);
                if (g.pool) {
                    const Winner<T> w = Winner<T>::load(winners);
                    winners += Winner<T>::words;
                    value = select(w.bit0, Vec<T>::load(at + g.pitch + c), value);
                    const Vec<T> below = select(w.bit0, Vec<T>::load(at + row + g.pitch + c),
                                                Vec<T>::load(at + row + c));
                    value = select(w.bit1, below, value);
                }
                const Vec<T> centred = value - Vec<T>::load(mean_dot + c) -
                                       Vec<T>::load(x_hat + c) * Vec<T>::load(q + c);
                (centred * Vec<T>::load(rstd + c)).store(x_hat_dot + c);
            }
        }
}

// dp → δ = m·dp in place, and the sums Σδ, Σδx̂ of these pixels; arrays of `pitch`. A call's pixels
// are added up before they join the sums, so that rounding grows with the rows and not with the
// image.
template <class T>
inline void bend(int pixels, int pitch, T* delta, const T* x_hat, const T* gain, const T* bias,
                 T slope, T* const sums[2], bool fresh) {
    constexpr int L = lanes<T>;
    for (int c = 0; c < pitch; c += L) {
        const Vec<T> scale = Vec<T>::load(gain + c), shift = Vec<T>::load(bias + c);
        Vec<T> s1 = Vec<T>::all(0), s2 = s1;
        for (ptrdiff_t i = c; i < static_cast<ptrdiff_t>(pixels) * pitch; i += pitch) {
            const Vec<T> x = Vec<T>::load(x_hat + i);
            const Vec<T> d =
                Vec<T>::load(delta + i) * slope_at(x, scale, shift, Vec<T>::all(slope));
            d.store(delta + i);
            s1 = s1 + d;
            s2 = fma(d, x, s2);
        }
        (fresh ? s1 : s1 + Vec<T>::load(sums[0] + c)).store(sums[0] + c);
        (fresh ? s2 : s2 + Vec<T>::load(sums[1] + c)).store(sums[1] + c);
    }
}

// dp_dot → δ_dot = m·dp_dot in place, and Σδ_dot, Σ(δ_dot·x̂ + δ·x̂_dot)
template <class T>
inline void bend_dot(int pixels, int pitch, T* delta_dot, const T* delta, const T* x_hat,
                     const T* x_hat_dot, const T* gain, const T* bias, T slope, T* const sums[2],
                     bool fresh) {
    constexpr int L = lanes<T>;
    for (int c = 0; c < pitch; c += L) {
        const Vec<T> scale = Vec<T>::load(gain + c), shift = Vec<T>::load(bias + c);
        Vec<T> s1 = Vec<T>::all(0), s2 = s1;
        for (ptrdiff_t i = c; i < static_cast<ptrdiff_t>(pixels) * pitch; i += pitch) {
            const Vec<T> x = Vec<T>::load(x_hat + i);
            const Vec<T> d =
                Vec<T>::load(delta_dot + i) * slope_at(x, scale, shift, Vec<T>::all(slope));
            d.store(delta_dot + i);
            s1 = s1 + d;
            s2 = fma(d, x, fma(Vec<T>::load(delta + i), Vec<T>::load(x_hat_dot + i), s2));
        }
        (fresh ? s1 : s1 + Vec<T>::load(sums[0] + c)).store(sums[0] + c);
        (fresh ? s2 : s2 + Vec<T>::load(sums[1] + c)).store(sums[1] + c);
    }
}

// One term of dz: values at the winners, or dense ones, and what they are multiplied by.
template <class T> struct Addend {
    const T* values;
    const T* scale;  // [pitch]
    const T* centre; // [pitch], of dense ones
};

// Σ_sparse scale·S(values) + Σ_dense scale·(values − centre) + constant, into the inside of a
// buffer with a border, or into one without. What is not inside a window, behind the last whole
// one, gets the dense terms alone. SPARSE_ALONE: their scales are 0, and what they are of may be
// infinite.
template <bool SPARSE_ALONE = false, class T, int SPARSE, int DENSE>
inline void build_dz(const Window& g, const Addend<T> (&sparse)[SPARSE],
                     const Addend<T> (&dense)[DENSE], const T* constant, const uint16_t* winners,
                     T* dz, bool border = true) {
    constexpr int L = lanes<T>;
    const ptrdiff_t row = static_cast<ptrdiff_t>(g.dense) * g.pitch;
    const ptrdiff_t to_row = border ? static_cast<ptrdiff_t>(span(g.dense)) * g.pitch : row;
    const auto base = [&](ptrdiff_t at, int c) MAMLPP_LAMBDA {
        Vec<T> sum = Vec<T>::load(constant + c);
#pragma GCC unroll 2
        for (int k = 0; k < (SPARSE_ALONE ? 0 : DENSE); ++k)
            sum = fma(Vec<T>::load(dense[k].values + at + c) - Vec<T>::load(dense[k].centre + c),
                      Vec<T>::load(dense[k].scale + c), sum);
        return sum;
    };
    const auto impulse = [&](ptrdiff_t at, int c) MAMLPP_LAMBDA {
        Vec<T> sum = Vec<T>::load(sparse[0].values + at + c) * Vec<T>::load(sparse[0].scale + c);
#pragma GCC unroll 2
        for (int k = 1; k < SPARSE; ++k)
            sum = fma(Vec<T>::load(sparse[k].values + at + c), Vec<T>::load(sparse[k].scale + c),
                      sum);
        return sum;
    };
    T* inside = dz + (border ? to_row + g.pitch : 0);
    if (!g.pool) {
        for (int y = 0; y < g.dense; ++y)
            for (int x = 0; x < g.dense; ++x)
                for (int c = 0; c < g.pitch; c += L) {
                    const ptrdiff_t at = y * row + static_cast<ptrdiff_t>(x) * g.pitch;
                    (base(at, c) + impulse(at, c)).store(inside + at + y * (to_row - row) + c);
                }
        return;
    }
    const Vec<T> zero = Vec<T>::all(0);
    ptrdiff_t pooled = 0;
    for (int i = 0; i < g.pooled; ++i)
        for (int j = 0; j < g.pooled; ++j, pooled += g.pitch) {
            const ptrdiff_t at = 2 * i * row + static_cast<ptrdiff_t>(2) * j * g.pitch;
            T* to = inside + 2 * i * to_row + static_cast<ptrdiff_t>(2) * j * g.pitch;
            for (int c = 0; c < g.pitch; c += L, winners += Winner<T>::words) {
                const Winner<T> w = Winner<T>::load(winners);
                const Vec<T> d = impulse(pooled, c);
                (base(at, c) + w.template where<0>(d, zero)).store(to + c);
                (base(at + g.pitch, c) + w.template where<1>(d, zero)).store(to + g.pitch + c);
                (base(at + row, c) + w.template where<2>(d, zero)).store(to + to_row + c);
                (base(at + row + g.pitch, c) + w.template where<3>(d, zero))
                    .store(to + to_row + g.pitch + c);
            }
        }
    for (int y = 0; y < g.dense; ++y)
        for (int x = y < 2 * g.pooled ? 2 * g.pooled : 0; x < g.dense; ++x)
            for (int c = 0; c < g.pitch; c += L)
                base(y * row + static_cast<ptrdiff_t>(x) * g.pitch, c)
                    .store(inside + y * to_row + static_cast<ptrdiff_t>(x) * g.pitch + c);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
