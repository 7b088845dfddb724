// A step of the meta-learner LSTM's rule for a block of coordinates. The two inputs of the loss are
// the same for all coordinates: they are part of the bias.
#pragma once

#include <limits>

#include "lstm.h"

namespace mamlpp {
namespace MAMLPP_ISA {
namespace lstm {

// (log|u| / 10, sign u) where |u| ≥ e^−10, else (−1, e^10 u)
template <class T> MAMLPP_INLINE void preprocess(Vec<T> u, Vec<T>& magnitude, Vec<T>& sign) {
    const Vec<T> zeros = Vec<T>::all(0), one = Vec<T>::all(1);
    const Vec<T> size = larger(u, zeros - u);
    // What is smaller, or no number, has its own value taken below.
    const Mask<T> small = greater(Vec<T>::all(static_cast<T>(4.5399929762484851536e-5)), size);
    const Mask<T> other = small | unordered(u);
    magnitude = logarithm(select(other, one, size)) / Vec<T>::all(10);
    const Vec<T> infinite = Vec<T>::all(std::numeric_limits<T>::infinity());
    magnitude = select(greater(infinite, size), magnitude, infinite);
    magnitude = select(other, zeros - one, magnitude);
    sign = select(greater(zeros, u), zeros - one, one);
    sign = select(other, u * Vec<T>::all(static_cast<T>(22026.465794806716517)), sign);
}

// Biases [20][4] of a step, with the inputs of its loss, which are left in `seen`.
template <class T> void fold_loss(const Weights<T>& w, T loss, T* seen, T* bias) {
    Vec<T> parts[2];
    preprocess(Vec<T>::all(loss), parts[0], parts[1]);
    T lane[2][lanes<T>];
    for (int i = 0; i < 2; ++i) {
        parts[i].store(lane[i]);
        seen[i] = lane[i][0];
    }
    for (int r = 0; r < kinds * units; ++r) {
        const T* const row = w.own + r * columns;
        bias[r % units * kinds + r / units] =
            (w.bias()[r] + row[0] * seen[0] + row[1] * seen[1]) * scale_of<T>(r / units);
    }
}

// What the gates of one unit are functions of, for `group` vectors from `at` on. `seen`: of how
// many inputs.
template <class T>
MAMLPP_INLINE void unit(const Weights<T>& w, const Sheet<T>& s, int u, int k, int at, int seen) {
    constexpr int L = lanes<T>;
    const T* bias = s.bias + (k * units + u) * kinds;
    const T* weight = w.ahead + u * (columns - 2) * kinds;
    const T* in = s.row(at_x, k) + at;
    const ptrdiff_t pitch = s.pitch();
    Vec<T> sum[kinds][group];
#pragma GCC unroll 4
    for (int kind = 0; kind < kinds; ++kind)
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            sum[kind][v] = Vec<T>::all(bias[kind]);
    for (int j = 0; j < seen; ++j, in += pitch, weight += kinds) {
        Vec<T> x[group];
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            x[v] = Vec<T>::load(in + v * L);
#pragma GCC unroll 4
        for (int kind = 0; kind < kinds; ++kind) {
            const Vec<T> by = Vec<T>::all(weight[kind]);
#pragma GCC unroll 3
            for (int v = 0; v < group; ++v)
                sum[kind][v] = fma(by, x[v], sum[kind][v]);
        }
    }
#pragma GCC unroll 4
    for (int kind = 0; kind < kinds; ++kind)
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            sum[kind][v].store(s.row(at_all + kind * units + u, k) + at + v * L);
}

// f(from, place) for all vectors of `count` rows, `chains` at once: `from` is where the first of
// them lies behind the first row, and place(i) where the i-th lies behind that.
template <class T, class F> MAMLPP_INLINE void in_chains(const Sheet<T>& s, int count, F f) {
    constexpr int L = lanes<T>, V = block<T> / L, across = chains < V ? chains : V;
    const ptrdiff_t pitch = s.pitch();
    for (int row = 0; row < count; row += chains / across)
        for (int at = 0; at < V; at += across)
            f(row * pitch + at * L,
              [=](int i) MAMLPP_LAMBDA { return i / across * pitch + i % across * L; });
}

// f(vectors) in the place of all vectors of `count` rows of slot k from `row` on, `chains` at once
template <class T, class F>
MAMLPP_INLINE void in_place(const Sheet<T>& s, int row, int count, int k, F f) {
    T* const base = s.row(row, k);
    in_chains(s, count, [&](ptrdiff_t from, auto place) MAMLPP_LAMBDA {
        Vec<T> x[chains];
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i)
            x[i] = Vec<T>::load(base + from + place(i));
        f(x);
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i)
            x[i].store(base + from + place(i));
    });
}

// The gates themselves.
template <class T> MAMLPP_APART void squash(const Sheet<T>& s, int k) {
    in_place(s, at_all, 3 * units, k, [](Vec<T>* x) MAMLPP_LAMBDA { sigmoids<T, chains>(x); });
    in_place(s, at_all + 3 * units, units, k,
             [](Vec<T>* x) MAMLPP_LAMBDA { tangents<T, chains>(x); });
}

// The cells, and h of them.
template <class T> MAMLPP_APART void cells(const Sheet<T>& s, int k) {
    const Vec<T> scale = Vec<T>::all(scale_of<T>(kinds - 1));
    const T *const gates = s.row(at_all, k), *const before = s.row(at_s, k);
    T *const cell = s.row(at_s, k + 1), *const tanh = s.row(at_tanh, k),
             *const h = s.row(at_h, k + 1);
    const ptrdiff_t kind = units * s.pitch();
    in_chains(s, units, [&](ptrdiff_t from, auto place) MAMLPP_LAMBDA {
        Vec<T> x[chains];
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) {
            const ptrdiff_t at = from + place(i);
            const Vec<T> kept = Vec<T>::load(gates + kind + at) * Vec<T>::load(before + at);
            x[i] = fma(Vec<T>::load(gates + at), Vec<T>::load(gates + 3 * kind + at), kept);
            x[i].store(cell + at);
            x[i] = x[i] * scale;
        }
        tangents<T, chains>(x);
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) {
            const ptrdiff_t at = from + place(i);
            x[i].store(tanh + at);
            (Vec<T>::load(gates + 2 * kind + at) * x[i]).store(h + at);
        }
    });
}

// F and I, and what their sigmoids are functions of, for `group` vectors from `at` on.
template <class T> void both(const Weights<T>& w, const Sheet<T>& s, int k, int at) {
    constexpr int L = lanes<T>;
    Vec<T> sum[2][group];
    for (int j = 0; j < 2; ++j) {
        const T* const own = w.gate(j);
        for (int v = 0; v < group; ++v) {
            const Vec<T> c = Vec<T>::load(s.row(at_c, k) + at + v * L);
            const Vec<T> before = Vec<T>::load(s.row(at_both + j, k) + at + v * L);
            sum[j][v] = fma(c, Vec<T>::all(own[units]), Vec<T>::all(own[units + 2]));
            sum[j][v] = fma(before, Vec<T>::all(own[units + 1]), sum[j][v]);
        }
    }
    for (int u = 0; u < units; ++u)
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v) {
            const Vec<T> h = Vec<T>::load(s.row(at_h + u, k + 1) + at + v * L);
            for (int j = 0; j < 2; ++j)
                sum[j][v] = fma(h, Vec<T>::all(w.gate(j)[u]), sum[j][v]);
        }
    for (int j = 0; j < 2; ++j)
        for (int v = 0; v < group; ++v) {
            sum[j][v].store(s.row(at_both + j, k + 1) + at + v * L);
            const Vec<T> scaled = sum[j][v] * Vec<T>::all(static_cast<T>(-log2_e));
            scaled.store(s.row(at_open + j, k) + at + v * L);
        }
}

// From the state in slot k to that in slot k + 1, with the gradient of slot k. `first`: h is 0.
template <class T>
MAMLPP_APART void step(const Weights<T>& w, const Sheet<T>& s, int k, bool first) {
    for (int at = 0; at < block<T>; at += lanes<T>) {
        Vec<T> magnitude, sign;
        preprocess(Vec<T>::load(s.row(at_gradient, k) + at), magnitude, sign);
        magnitude.store(s.row(at_x, k) + at);
        sign.store(s.row(at_x + 1, k) + at);
    }
    for (int u = 0; u < units; ++u)
        for (int at = 0; at < block<T>; at += group * lanes<T>)
            unit(w, s, u, k, at, first ? 2 : 2 + units);
    squash(s, k);
    cells(s, k);
    for (int at = 0; at < block<T>; at += group * lanes<T>)
        both(w, s, k, at);
    in_place(s, at_open, 2, k, [](Vec<T>* x) MAMLPP_LAMBDA { sigmoids<T, chains>(x); });
    for (int at = 0; at < block<T>; at += lanes<T>) {
        const auto load = [&](int row) MAMLPP_LAMBDA { return Vec<T>::load(s.row(row, k) + at); };
        const Vec<T> c = load(at_open) * load(at_c) - load(at_open + 1) * load(at_gradient);
        c.store(s.row(at_c, k + 1) + at);
    }
}

} // namespace lstm
} // namespace MAMLPP_ISA
} // namespace mamlpp
