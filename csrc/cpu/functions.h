// Elementary functions of vectors, as accurate as the type, by series; what is no number stays
// none.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> struct Number;
template <> struct Number<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr int exp_terms = 7, log_terms = 5;
};
template <> struct Number<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr int exp_terms = 13, log_terms = 11;
};
constexpr double log2_e = 1.44269504088896340736, ln_2 = 0.693147180559945309417;

// The bits of a vector, with the shifts and ands of the language.
template <class T> struct Raw {
    using Bits = typename Number<T>::Bits;
    typedef Bits Lanes __attribute__((vector_size(sizeof(Vec<T>))));
    Lanes bits;
    MAMLPP_INLINE explicit Raw(Vec<T> a) { __builtin_memcpy(&bits, &a, sizeof a); }
    MAMLPP_INLINE Vec<T> value() const {
        Vec<T> a;
        __builtin_memcpy(&a, &bits, sizeof a);
        return a;
    }
    static MAMLPP_INLINE Bits of(T x) {
        Bits b;
        __builtin_memcpy(&b, &x, sizeof x);
        return b;
    }
};

// 2^y = scale · (1 + rest), for N vectors: step by step for all of them, as one alone waits for the
// result of each step.
template <class T, int N> struct Powers {
    Vec<T> scale[N], rest[N];

    MAMLPP_INLINE explicit Powers(const Vec<T>* y) {
        using F = Number<T>;
        // Added to this, y is rounded, and lies with the bias in the lowest bits.
        const Vec<T> large =
            Vec<T>::all(static_cast<T>(3 * (typename F::Bits{1} << (F::mantissa - 1))) + F::bias);
        const Vec<T> most = Vec<T>::all(F::bias - 2), least = Vec<T>::all(2 - F::bias);
        Vec<T> f[N], sum[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
            f[i] = smaller(most, larger(least, y[i]));
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
            scale[i] = f[i] + large;
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
            f[i] = f[i] - (scale[i] - large);
        // Taylor's series, of |f| ≤ 1/2, from its second term on
        double term = 1; // (ln 2)^k / k!
        for (int k = 1; k <= F::exp_terms; ++k)
            term *= ln_2 / k;
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
            sum[i] = Vec<T>::all(static_cast<T>(term));
#pragma GCC unroll 16
        for (int k = F::exp_terms; k > 1; --k) {
            term *= k / ln_2;
            const Vec<T> next = Vec<T>::all(static_cast<T>(term));
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                sum[i] = fma(sum[i], f[i], next);
        }
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
            rest[i] = sum[i] * f[i];
            Raw<T> exponent(scale[i]);
            exponent.bits <<= F::mantissa;
            scale[i] = exponent.value();
        }
    }
};

// 1 / (1 + e^−x) of y = −x / ln 2, in its place
template <class T, int N> MAMLPP_INLINE void sigmoids(Vec<T>* y) {
    const Vec<T> one = Vec<T>::all(1);
    const Powers<T, N> e(y);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
        y[i] = one / (one + fma(e.scale[i], e.rest[i], e.scale[i]));
}

// tanh x = (e^2x − 1) / (e^2x + 1) of y = 2x / ln 2, in its place
template <class T, int N> MAMLPP_INLINE void tangents(Vec<T>* y) {
    const Vec<T> one = Vec<T>::all(1), two = Vec<T>::all(2);
    const Powers<T, N> e(y);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        const Vec<T> less = fma(e.scale[i], e.rest[i], e.scale[i] - one);
        y[i] = less / (less + two);
    }
}

template <class T> MAMLPP_INLINE Vec<T> logarithm(Vec<T> x) { // of normal numbers above 0
    using N = Number<T>;
    constexpr T whole = static_cast<T>(typename N::Bits{1} << N::mantissa);
    const Vec<T> one = Vec<T>::all(1);
    Raw<T> fraction(x), exponent(x);
    fraction.bits = (fraction.bits & ((typename N::Bits{1} << N::mantissa) - 1)) | Raw<T>::of(1);
    exponent.bits = (exponent.bits >> N::mantissa) | Raw<T>::of(whole);
    Vec<T> m = fraction.value(), n = exponent.value() - Vec<T>::all(whole + N::bias);
    const Mask<T> upper = greater(m, Vec<T>::all(static_cast<T>(1.41421356237309504880)));
    m = select(upper, m * Vec<T>::all(static_cast<T>(0.5)), m);
    n = select(upper, n + one, n);
    // ln m = 2 artanh q, of |q| ≤ 0.172
    const Vec<T> q = (m - one) / (m + one), square = q * q;
    Vec<T> sum = Vec<T>::all(static_cast<T>(2.0 / (2 * N::log_terms - 1)));
#pragma GCC unroll 16
    for (int i = N::log_terms - 1; i > 0; --i)
        sum = fma(sum, square, Vec<T>::all(static_cast<T>(2.0 / (2 * i - 1))));
    return fma(n, Vec<T>::all(static_cast<T>(ln_2)), q * sum);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
