// The tangent of norm_act's forward half: sums over each task's pixels, their merge, then a value a
// winner.
#pragma once

#include "norm_act.h"

namespace mamlpp {
namespace cuda {

// Σ z_dot and Σ z_dot(z − μ) of each tile.
template <class T, int V> struct Products {
    static constexpr const char* name = "norm_act tan_fwd sums";
    static constexpr int threads = block_threads, batch = sum_batch;
    Tiling g;
    int tasks;
    Rows<const T> z, centre, z_dot;
    double* part;

    Grid grid() const { return g.grid(tasks); }
    size_t shared() const { return tile_doubles<V>(g, 2); }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        block.each([&](int thread) {
            const Lane at = lane_of<V>(g, block, thread);
            double sums[2][V] = {};
            Pack<T, V> centres{};
            if (at.works)
                centres = vector_of<V>(centre, block.z, at.channel);
            for_batches<batch>(g, at, [&](int first, int count) {
                Pack<T, V> x[batch], x_dot[batch];
                load_batch(g, row_of(z, block.z), first, count, at.channel, x);
                load_batch(g, row_of(z_dot, block.z), first, count, at.channel, x_dot);
                MAMLPP_UNROLL
                for (int v = 0; v < V; ++v) {
                    T plain = 0, centred = 0;
                    MAMLPP_UNROLL
                    for (int k = 0; k < batch; ++k) {
                        plain += x_dot[k].v[v];
                        centred = fma(x_dot[k].v[v], x[k].v[v] - centres.v[v], centred);
                    }
                    sums[0][v] += plain;
                    sums[1][v] += centred;
                }
            });
            take_seat(g, at, sums, shared);
        });
        leave_tile<2, V>(block, g, shared, part);
    }
};

// μ_dot and q = mean(x̂·z_dot).
template <class T> struct ProductMeans {
    static constexpr const char* name = "norm_act tan_fwd means";
    static constexpr int threads = merge_rows * merge_columns;
    Tiling g;
    int tasks;
    const double* part;
    Rows<const T> rstd;
    Rows<T> mean_dot, q;

    Grid grid() const { return merge_grid(g, tasks); }
    size_t shared() const { return 2 * threads; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        merge_tiles<2>(block, g, shared, parts_of<2>(g, part, block.y),
                       [&](int c, const double(&sums)[2]) {
                           const double r = row_of(rstd, block.y)[c];
                           row_of(mean_dot, block.y)[c] = static_cast<T>(sums[0] / g.pixels);
                           row_of(q, block.y)[c] = static_cast<T>(sums[1] * r / g.pixels);
                       });
    }
};

// x̂_dot = r(z_dot − μ_dot − x̂q) at the winners, y_dot = m·(gain·x̂_dot + gain_dot·x̂ + bias_dot).
template <class T, int V> struct NormaliseDot {
    static constexpr const char* name = "norm_act tan_fwd";
    static constexpr int threads = block_threads;
    Tiling g; // of pooled pixels
    int tasks;
    Windows w;
    T slope;
    Rows<const T> z_dot, gain, bias, rstd, mean_dot, q, gain_dot, bias_dot, x_hat;
    Rows<const uint8_t> winners;
    Rows<T> y_dot, x_hat_dot;

    Grid grid() const { return g.grid(tasks); }
    size_t shared() const { return 0; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double*) const {
        const int task = block.z;
        block.each([&](int thread) {
            const Lane at = lane_of<V>(g, block, thread);
            if (!at.works)
                return;
            const auto gains = vector_of<V>(gain, task, at.channel);
            const auto biases = vector_of<V>(bias, task, at.channel);
            const auto scales = vector_of<V>(rstd, task, at.channel);
            const auto means = vector_of<V>(mean_dot, task, at.channel);
            const auto qs = vector_of<V>(q, task, at.channel);
            const auto gain_dots = vector_of<V>(gain_dot, task, at.channel);
            const auto bias_dots = vector_of<V>(bias_dot, task, at.channel);
            for (int pixel = at.from; pixel < at.to; pixel += g.rows) {
                const ptrdiff_t to = static_cast<ptrdiff_t>(pixel) * g.channels + at.channel;
                const Pack<T, V> x = load<V>(row_of(x_hat, task) + to);
                Pack<T, V> x_dot{}, out;
                if (z_dot.data)
                    x_dot = at_winner(task, pixel, at, to);
                MAMLPP_UNROLL
                for (int v = 0; v < V; ++v) {
                    if (z_dot.data)
                        x_dot.v[v] = (x_dot.v[v] - means.v[v] - x.v[v] * qs.v[v]) * scales.v[v];
                    const T sum =
                        fma(gains.v[v], x_dot.v[v], fma(gain_dots.v[v], x.v[v], bias_dots.v[v]));
                    out.v[v] = sum * slope_at(x.v[v], gains.v[v], biases.v[v], slope);
                }
                if (z_dot.data)
                    store<V>(row_of(x_hat_dot, task) + to, x_dot);
                store<V>(row_of(y_dot, task) + to, out);
            }
        });
    }

    // z_dot where z won; all of a window is read, as its memory comes in wider pieces anyway.
    MAMLPP_DEVICE Pack<T, V> at_winner(int task, int pixel, const Lane& at, ptrdiff_t to) const {
        const T* const images = row_of(z_dot, task);
        if (!w.pool)
            return load<V>(images + to);
        Pack<T, V> window[4], value;
        load_window(w, place_of(pixel, w.pooled), g.channels, images + at.channel, window);
        const Pack<uint8_t, V> positions = load<V>(row_of(winners, task) + to);
        MAMLPP_UNROLL
        for (int v = 0; v < V; ++v) {
            const bool right = positions.v[v] & 1, below = positions.v[v] & 2;
            const T upper = right ? window[1].v[v] : window[0].v[v];
            const T lower = right ? window[3].v[v] : window[2].v[v];
            value.v[v] = below ? lower : upper;
        }
        return value;
    }
};

template <class T, class Queue>
void norm_act_tan_fwd_on(const NormShape& s, int tasks, const NormSaved<T>& saved,
                         const NormTanFwd<T>& f, double* part, const Queue& queue) {
    by_lanes<T>(s, [&](auto vector) {
        constexpr int V = decltype(vector)::value;
        const Windows w = windows_of(s);
        if (f.z_dot.data && !saved.given) {
            const Tiling g = summed<V>(s, s.side, Products<T, V>::batch);
            queue(Products<T, V>{g, tasks, saved.z, saved.centre, f.z_dot, part});
            queue(ProductMeans<T>{g, tasks, part, saved.rstd, f.mean_dot, f.q});
        }
        queue(NormaliseDot<T, V>{passed<V>(s, w.pooled), tasks, w, static_cast<T>(s.slope), f.z_dot,
                                 saved.gain, saved.bias, saved.rstd, constant(f.mean_dot),
                                 constant(f.q), f.gain_dot, f.bias_dot, saved.x_hat, saved.winners,
                                 f.y_dot, f.x_hat_dot});
    });
}

} // namespace cuda
} // namespace mamlpp
