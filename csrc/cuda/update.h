// The inner update θ' = θ − α[segment]·g, or θ − α∘g, over the flat buffers of all tasks, its
// gradient and tangents, and Adam. A piece of a segment is one block's work and one term of the sum
// behind its rate. Rows begin anywhere, so that values are read one by one, as many at once as a
// thread has.
#pragma once

#include "program.h"

namespace mamlpp {
namespace cuda {

constexpr int per_thread = piece_values / block_threads;

// out = theta − rates·grad − rates_dot·grad_dot, without a term that misses its operands
template <class T> struct Descend {
    static constexpr const char* name = "update_fwd";
    static constexpr int threads = block_threads;
    UpdateFwd<T> u;
    Pieces pieces;
    int tasks;

    Grid grid() const { return {pieces.count, tasks, 1}; }
    size_t shared() const { return 0; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double*) const {
        const int32_t* const piece = pieces.table + 3 * static_cast<ptrdiff_t>(block.x);
        const int segment = piece[0], from = piece[1], to = piece[2];
        const T* const theta = row_of(u.theta, block.y);
        const T* const grad = row_of(u.grad, block.y);
        const T* const grad_dot = row_of(u.grad_dot, block.y);
        T* const out = row_of(u.out, block.y);
        block.each([&](int thread) {
            T values[per_thread];
            MAMLPP_UNROLL
            for (int k = 0; k < per_thread; ++k) {
                const int i = from + thread + k * threads;
                T value = 0;
                if (i < to && theta)
                    value = theta[i];
                if (i < to && grad)
                    value -= u.rates[u.each ? i : segment] * grad[i];
                if (i < to && grad_dot)
                    value -= u.rates_dot[u.each ? i : segment] * grad_dot[i];
                values[k] = value;
            }
            MAMLPP_UNROLL
            for (int k = 0; k < per_thread; ++k)
                if (const int i = from + thread + k * threads; i < to)
                    out[i] = values[k];
        });
    }
};

// d_grad = −rates·d_theta, and Σ d_theta·grad of each piece and task, or d_rates of each number
template <class T> struct Shares {
    static constexpr const char* name = "update_bwd";
    static constexpr int threads = block_threads;
    UpdateBwd<T> u;
    Pieces pieces;
    int tasks;

    Grid grid() const { return {pieces.count, tasks, 1}; }
    size_t shared() const { return threads; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const int32_t* const piece = pieces.table + 3 * static_cast<ptrdiff_t>(block.x);
        const int segment = piece[0], from = piece[1], to = piece[2];
        const T* const d_theta = row_of(u.d_theta, block.y);
        const T* const grad = row_of(u.grad, block.y);
        T* const d_grad = row_of(u.d_grad, block.y);
        T* const d_rates = u.each ? row_of(u.d_rates, block.y) : nullptr;
        block.each([&](int thread) {
            T d[per_thread], g[per_thread];
            MAMLPP_UNROLL
            for (int k = 0; k < per_thread; ++k) {
                const int i = from + thread + k * threads;
                d[k] = i < to ? d_theta[i] : 0;
                g[k] = i < to && grad ? grad[i] : 0;
            }
            double sum = 0;
            MAMLPP_UNROLL
            for (int k = 0; k < per_thread; ++k) {
                sum += static_cast<double>(d[k]) * static_cast<double>(g[k]);
                if (const int i = from + thread + k * threads; i < to) {
                    if (u.rates)
                        d_grad[i] = -u.rates[u.each ? i : segment] * d[k];
                    if (d_rates)
                        d_rates[i] = -d[k] * g[k];
                }
            }
            shared[thread] = sum;
        });
        if (!grad || d_rates)
            return;
        fold(block, shared, threads, 1);
        block.each([&](int thread) {
            if (thread == 0)
                u.shares[static_cast<ptrdiff_t>(block.y) * pieces.count + block.x] = shared[0];
        });
    }
};

// −Σ of the shares of each segment and task
template <class T> struct Segments {
    static constexpr const char* name = "update_bwd, segments";
    static constexpr int threads = 32;
    UpdateBwd<T> u;
    Pieces pieces;
    int tasks;

    Grid grid() const { return {pieces.segments, tasks, 1}; }
    size_t shared() const { return threads; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const double* const shares = u.shares + static_cast<ptrdiff_t>(block.y) * pieces.count;
        const int end = pieces.first[block.x + 1];
        block.each([&](int thread) {
            double sum = 0;
            for (int i = pieces.first[block.x] + thread; i < end; i += threads)
                sum += shares[i];
            shared[thread] = sum;
        });
        fold(block, shared, threads, 1);
        block.each([&](int thread) {
            if (thread == 0)
                row_of(u.d_rates, block.y)[block.x] = static_cast<T>(-shared[0]);
        });
    }
};

template <class T> struct Adam {
    static constexpr const char* name = "adam";
    static constexpr int threads = block_threads;
    AdamStep<T> a;
    ptrdiff_t n;

    Grid grid() const { return {ceil_div(n, threads), 1, 1}; }
    size_t shared() const { return 0; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double*) const {
        const T clamp = static_cast<T>(a.clamp), eps = static_cast<T>(a.eps);
        const T on_grad = static_cast<T>(1 - a.beta1), on_square = static_cast<T>(1 - a.beta2);
        const T rate = static_cast<T>(a.rate.at ? *a.rate.at : a.rate.value);
        const T correction =
            static_cast<T>(a.correction.at ? *a.correction.at : a.correction.value);
        block.each([&](int thread) {
            const ptrdiff_t i = static_cast<ptrdiff_t>(block.x) * threads + thread;
            if (i >= n)
                return;
            T g = a.grad[i];
            g = g > clamp ? clamp : g < -clamp ? -clamp : g; // leaves NaN as it is
            const T m = a.first[i] + on_grad * (g - a.first[i]);
            const T v = static_cast<T>(a.beta2) * a.second[i] + on_square * g * g;
            a.first_out[i] = m;
            a.second_out[i] = v;
            a.param_out[i] = a.param[i] - rate * m / (sqrt(v) * correction + eps);
        });
    }
};

template <class T, class Queue>
void update_bwd_on(const UpdateBwd<T>& u, int tasks, const Pieces& pieces, const Queue& queue) {
    queue(Shares<T>{u, pieces, tasks});
    if (u.grad.data && !u.each)
        queue(Segments<T>{u, pieces, tasks});
}

} // namespace cuda
} // namespace mamlpp
