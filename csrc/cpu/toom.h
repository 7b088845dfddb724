// One dimension of Winograd's F(m, 3), by Toom and Cook: two polynomials are multiplied through
// their values at m + 2 points (Lavin and Gray 2016, section 5.1; Blahut 2010, chapter 5). Bᵀ, A,
// G, Aᵀ and Gᵀ in the order of the functions.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T, int m> struct Toom;

// At 0, 1, −1 and ∞.
template <class T> struct Toom<T, 2> {
    using V = Vec<T>;
    static MAMLPP_INLINE void input(const V* x, V* to) {
        to[0] = x[0] - x[2], to[1] = x[1] + x[2], to[2] = x[2] - x[1], to[3] = x[1] - x[3];
    }
    static MAMLPP_INLINE void gradient(const V* dz, V* to) {
        to[0] = dz[0], to[1] = dz[0] + dz[1], to[2] = dz[0] - dz[1], to[3] = V::all(0) - dz[1];
    }
    static MAMLPP_INLINE void filter(const V* w, V* to) {
        const V half = V::all(static_cast<T>(0.5));
        const V even = (w[0] + w[2]) * half, odd = w[1] * half;
        to[0] = w[0], to[1] = even + odd, to[2] = even - odd, to[3] = w[2];
    }
    static MAMLPP_INLINE void output(const V* sum, V* to) {
        to[0] = sum[0] + sum[1] + sum[2], to[1] = sum[1] - sum[2] - sum[3];
    }
    static MAMLPP_INLINE void filter_gradient(const V* sum, V* to) {
        const V half = V::all(static_cast<T>(0.5));
        const V b = sum[1] * half, d = sum[2] * half;
        to[0] = sum[0] + b + d, to[1] = b - d, to[2] = b + d + sum[3];
    }
};

// At 0, ±3/4, ±3/2 and ∞: of the points tried those of the smallest error, 2.4 times that of the
// plain sum in float32; with 0, ±1, ±2 and ∞, which are common, it is 4.9.
template <class T> struct Toom<T, 4> {
    using V = Vec<T>;
    static constexpr T a = T(0.75), b = T(1.5), a2 = a * a, b2 = b * b;
    // 1 / Π (point − another)
    static constexpr T of_0 = 1 / (a2 * b2), of_a = 1 / (2 * a2 * (a2 - b2)),
                       of_b = 1 / (2 * b2 * (b2 - a2));

    static MAMLPP_INLINE V times(T factor, V x) { return V::all(factor) * x; }
    static MAMLPP_INLINE V plus(V sum, T factor, V x) { return fma(V::all(factor), x, sum); }

    static MAMLPP_INLINE void input(const V* x, V* to) {
        const V even_a = plus(x[4], -b2, x[2]), odd_a = plus(x[3], -b2, x[1]);
        const V even_b = plus(x[4], -a2, x[2]), odd_b = plus(x[3], -a2, x[1]);
        to[0] = plus(plus(x[4], -a2 - b2, x[2]), a2 * b2, x[0]);
        to[1] = plus(even_a, a, odd_a), to[2] = plus(even_a, -a, odd_a);
        to[3] = plus(even_b, b, odd_b), to[4] = plus(even_b, -b, odd_b);
        to[5] = plus(plus(x[5], -a2 - b2, x[3]), a2 * b2, x[1]);
    }
    static MAMLPP_INLINE void gradient(const V* dz, V* to) {
        const V even_a = plus(dz[0], a2, dz[2]), odd_a = plus(dz[1], a2, dz[3]);
        const V even_b = plus(dz[0], b2, dz[2]), odd_b = plus(dz[1], b2, dz[3]);
        to[0] = dz[0];
        to[1] = plus(even_a, a, odd_a), to[2] = plus(even_a, -a, odd_a);
        to[3] = plus(even_b, b, odd_b), to[4] = plus(even_b, -b, odd_b);
        to[5] = dz[3];
    }
    static MAMLPP_INLINE void filter(const V* w, V* to) {
        const V even_a = times(of_a, plus(w[0], a2, w[2])), odd_a = times(of_a * a, w[1]);
        const V even_b = times(of_b, plus(w[0], b2, w[2])), odd_b = times(of_b * b, w[1]);
        to[0] = times(of_0, w[0]);
        to[1] = even_a + odd_a, to[2] = even_a - odd_a;
        to[3] = even_b + odd_b, to[4] = even_b - odd_b;
        to[5] = w[2];
    }
    static MAMLPP_INLINE void output(const V* sum, V* to) {
        const V even_a = sum[1] + sum[2], odd_a = sum[1] - sum[2];
        const V even_b = sum[3] + sum[4], odd_b = sum[3] - sum[4];
        to[0] = sum[0] + even_a + even_b;
        to[1] = plus(times(a, odd_a), b, odd_b);
        to[2] = plus(times(a2, even_a), b2, even_b);
        to[3] = plus(plus(sum[5], a2 * a, odd_a), b2 * b, odd_b);
    }
    static MAMLPP_INLINE void filter_gradient(const V* sum, V* to) {
        const V even_a = times(of_a, sum[1] + sum[2]), odd_a = sum[1] - sum[2];
        const V even_b = times(of_b, sum[3] + sum[4]), odd_b = sum[3] - sum[4];
        to[0] = plus(even_a + even_b, of_0, sum[0]);
        to[1] = plus(times(of_a * a, odd_a), of_b * b, odd_b);
        to[2] = plus(plus(sum[5], a2, even_a), b2, even_b);
    }
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
