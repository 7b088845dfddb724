// The way back through the steps of a block of coordinates, and the gradients of the rule's
// numbers.
#pragma once

#include "lstm.h"

namespace mamlpp {
namespace MAMLPP_ISA {
namespace lstm {

// a·(1 − b)·b
template <class T> MAMLPP_INLINE Vec<T> through_sigmoid(Vec<T> a, Vec<T> b) {
    return a * b * (Vec<T>::all(1) - b);
}
// a·(1 − b²)
template <class T> MAMLPP_INLINE Vec<T> through_tanh(Vec<T> a, Vec<T> b) {
    return fma(Vec<T>::all(0) - a * b, b, a);
}

template <class T> MAMLPP_INLINE void add(Vec<T> a, T* to) { (Vec<T>::load(to) + a).store(to); }

// Gradients of F and I, in the place of their sigmoids, and of what they were taken of but h.
template <class T> MAMLPP_APART void back_both(const Weights<T>& w, const Sheet<T>& s, int k) {
    const T* const own[2] = {w.gate(0), w.gate(1)};
    Vec<T> sum[2] = {Vec<T>::all(0), Vec<T>::all(0)};
    for (int at = 0; at < block<T>; at += lanes<T>) {
        const Vec<T> dc = Vec<T>::load(s.d_row(at_c) + at);
        const Vec<T> gradient = Vec<T>::load(s.row(at_gradient, k) + at);
        const Vec<T> by[2] = {Vec<T>::load(s.row(at_c, k) + at), Vec<T>::all(0) - gradient};
        Vec<T> to_c = dc * Vec<T>::load(s.row(at_open, k) + at);
        for (int j = 0; j < 2; ++j) {
            T *const both = s.d_row(at_both + j) + at, *const place = s.row(at_open + j, k) + at;
            const Vec<T> d = Vec<T>::load(both) + through_sigmoid(dc * by[j], Vec<T>::load(place));
            d.store(place);
            (d * Vec<T>::all(own[j][units + 1])).store(both);
            to_c = fma(d, Vec<T>::all(own[j][units]), to_c);
            sum[j] = sum[j] + d;
        }
        to_c.store(s.d_row(at_c) + at);
    }
    for (int j = 0; j < 2; ++j)
        add(sum[j], s.sum + (sum_gate + j) * lanes<T>);
}

// Gradients of one unit's gates, in their place, and of its cell before the step.
template <class T>
MAMLPP_APART void back_unit(const Weights<T>& w, const Sheet<T>& s, int u, int k) {
    constexpr int L = lanes<T>;
    const Vec<T> of_both[2] = {Vec<T>::all(w.gate(0)[u]), Vec<T>::all(w.gate(1)[u])};
    Vec<T> sum[kinds];
    for (Vec<T>& each : sum)
        each = Vec<T>::all(0);
    T *const gates = s.row(at_all + u, k), *const dh_row = s.d_row(at_h + u);
    T *const ds_row = s.d_row(at_s + u), *const d_both = s.row(at_open, k);
    const T *const tanh = s.row(at_tanh + u, k), *const before = s.row(at_s + u, k);
    const ptrdiff_t pitch = s.pitch(), kind = units * pitch;
    for (int at = 0; at < block<T>; at += L) {
        T* const gate = gates + at;
        const Vec<T> i = Vec<T>::load(gate), f = Vec<T>::load(gate + kind);
        const Vec<T> o = Vec<T>::load(gate + 2 * kind), g = Vec<T>::load(gate + 3 * kind);
        const Vec<T> t = Vec<T>::load(tanh + at);
        Vec<T> dh = Vec<T>::load(dh_row + at);
        dh = fma(of_both[0], Vec<T>::load(d_both + at), dh);
        dh = fma(of_both[1], Vec<T>::load(d_both + pitch + at), dh);
        const Vec<T> ds = Vec<T>::load(ds_row + at) + through_tanh(dh * o, t);
        const Vec<T> d[kinds] = {through_sigmoid(ds * g, i),
                                 through_sigmoid(ds * Vec<T>::load(before + at), f),
                                 through_sigmoid(dh * t, o), through_tanh(ds * i, g)};
#pragma GCC unroll 4
        for (int j = 0; j < kinds; ++j) {
            d[j].store(gate + j * kind);
            sum[j] = sum[j] + d[j];
        }
        (ds * f).store(ds_row + at);
    }
    for (int j = 0; j < kinds; ++j) {
        T* const to = s.sum + (sum_loss + (j * units + u) * 3) * L;
        add(sum[j] * Vec<T>::all(s.loss[2 * k]), to);
        add(sum[j] * Vec<T>::all(s.loss[2 * k + 1]), to + L);
        add(sum[j], to + 2 * L);
    }
}

// Gradients of four units of h before the step, of `group` vectors.
template <class T>
MAMLPP_INLINE void back_h(const Weights<T>& w, const Sheet<T>& s, int four, int k, int at) {
    constexpr int L = lanes<T>;
    const T* weight = w.back + four * kinds * units * 4;
    const T* in = s.row(at_all, k) + at;
    const ptrdiff_t pitch = s.pitch();
    Vec<T> sum[4][group];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u)
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            sum[u][v] = Vec<T>::all(0);
    for (int r = 0; r < kinds * units; ++r, in += pitch, weight += 4) {
        Vec<T> d[group];
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            d[v] = Vec<T>::load(in + v * L);
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
            const Vec<T> by = Vec<T>::all(weight[u]);
#pragma GCC unroll 3
            for (int v = 0; v < group; ++v)
                sum[u][v] = fma(by, d[v], sum[u][v]);
        }
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u)
#pragma GCC unroll 3
        for (int v = 0; v < group; ++v)
            sum[u][v].store(s.d_row(at_h + 4 * four + u) + at + v * L);
}

// sum[r·step + c] += Σ d[r]·x[c] over `count` values, for R and C rows that lie `pitch` apart.
template <class T, int R, int C>
MAMLPP_INLINE void products(const T* d, const T* x, ptrdiff_t pitch, ptrdiff_t count, T* sum,
                            int step) {
    constexpr int L = lanes<T>;
    Vec<T> acc[R][C];
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 5
        for (int c = 0; c < C; ++c)
            acc[r][c] = Vec<T>::all(0);
    for (ptrdiff_t i = 0; i < count; i += L) {
        Vec<T> by[C];
#pragma GCC unroll 5
        for (int c = 0; c < C; ++c)
            by[c] = Vec<T>::load(x + c * pitch + i);
#pragma GCC unroll 5
        for (int r = 0; r < R; ++r) {
            const Vec<T> a = Vec<T>::load(d + r * pitch + i);
#pragma GCC unroll 5
            for (int c = 0; c < C; ++c)
                acc[r][c] = fma(a, by[c], acc[r][c]);
        }
    }
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 5
        for (int c = 0; c < C; ++c)
            add(acc[r][c], sum + (r * step + c) * L);
}

// What a block's gradients give to those of the weights.
template <class T> MAMLPP_APART void add_products(const Sheet<T>& s, int steps) {
    constexpr int L = lanes<T>;
    const ptrdiff_t pitch = s.pitch();
    const ptrdiff_t all = static_cast<ptrdiff_t>(steps) * block<T>, later = all - block<T>;
    for (int ten = 0; ten < kinds * units; ten += 10) // which stay in the first-level cache
        for (int u = 0; u < units; u += 2)            // h is 0 before the first step
            for (int r = ten; r < ten + 10; r += 5)
                products<T, 5, 2>(s.row(at_all + r, 1), s.row(at_h + u, 1), pitch, later,
                                  s.sum + (sum_h + r * units + u) * L, units);
    for (int r = 0; r < kinds * units; r += 5)
        products<T, 5, 2>(s.row(at_all + r, 0), s.row(at_x, 0), pitch, all,
                          s.sum + (sum_x + r * 2) * L, 2);
    for (int u = 0; u < units; u += 5)
        products<T, 2, 5>(s.row(at_open, 0), s.row(at_h + u, 1), pitch, all,
                          s.sum + (sum_gate_h + u) * L, units);
    products<T, 2, 3>(s.row(at_open, 0), s.row(at_c, 0), pitch, all, s.sum + sum_gate_c * L, 3);
}

// The sums of a chunk as gradients of the rule's numbers.
template <class T> void fold(const T* sum, double* own) {
    const auto of = [&](int at) {
        double total = 0;
        for (int lane = 0; lane < lanes<T>; ++lane)
            total += static_cast<double>(sum[at * lanes<T> + lane]);
        return total;
    };
    for (int r = 0; r < kinds * units; ++r) {
        for (int j = 0; j < columns; ++j)
            own[r * columns + j] = of(j < 2   ? sum_loss + 3 * r + j
                                      : j < 4 ? sum_x + 2 * r + j - 2
                                              : sum_h + units * r + j - 4);
        own[kinds * units * columns + r] = of(sum_loss + 3 * r + 2);
    }
    for (int j = 0; j < 2; ++j) {
        double* const gate = own + kinds * units * (columns + 1) + j * (units + 3);
        for (int u = 0; u < units; ++u)
            gate[u] = of(sum_gate_h + j * units + u);
        gate[units] = of(sum_gate_c + 3 * j);
        gate[units + 1] = of(sum_gate_c + 3 * j + 1 + j);
        gate[units + 2] = of(sum_gate + j);
    }
}

} // namespace lstm
} // namespace MAMLPP_ISA
} // namespace mamlpp
