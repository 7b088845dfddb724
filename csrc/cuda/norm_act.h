// Batch norm + affine + leaky ReLU + 2×2 max pool of all tasks: moments of each task's pixels,
// their merge, then a value a winner (formulas in kernels/plain/norm_act.py).
#pragma once

#include <type_traits>

#include "tiles.h"

namespace mamlpp {
namespace cuda {

// The windows of square images; without pooling each pixel is one.
struct Windows {
    int side, pooled; // of z, and behind the pooling
    int cover;        // with the windows that an odd side cuts
    bool pool;
};

inline Windows windows_of(const NormShape& s) {
    const int pooled = s.pool ? s.side / 2 : s.side;
    return {s.side, pooled, s.pool ? s.side - pooled : s.side, s.pool};
}

inline ptrdiff_t squares(int n, int side) { return static_cast<ptrdiff_t>(n) * side * side; }

struct Place {
    int image, i, j;
};

MAMLPP_DEVICE Place place_of(int index, int side) {
    const int line = index / side, image = line / side;
    return {image, line - image * side, index - line * side};
}

// The pixel of z in position 0…3 of a window.
MAMLPP_DEVICE ptrdiff_t pixel_of(const Windows& w, const Place& p, int position) {
    const ptrdiff_t line = static_cast<ptrdiff_t>(p.image) * w.side + 2 * p.i + position / 2;
    return line * w.side + 2 * p.j + position % 2;
}

template <int V, class T>
MAMLPP_DEVICE void load_window(const Windows& w, const Place& p, int channels, const T* images,
                               Pack<T, V> (&to)[4]) {
    MAMLPP_UNROLL
    for (int d = 0; d < 4; ++d)
        to[d] = load<V>(images + pixel_of(w, p, d) * channels);
}

// −1, 0 or 1: with a gain of 0 all values of a window are equal, the first one wins.
template <class T> MAMLPP_DEVICE T sign_of(T gain) {
    return static_cast<T>(gain > 0 ? 1 : gain < 0 ? -1 : 0);
}

// The winner of a window, the first one of equals; what is not a number wins.
template <class T> MAMLPP_DEVICE int compete(const T (&z)[4], T sign, T& value) {
    int winner = 0;
    T key = z[0] * sign;
    value = z[0];
    MAMLPP_UNROLL
    for (int d = 1; d < 4; ++d) {
        const T other = z[d] * sign;
        if (other > key || other != other) {
            key = other;
            value = z[d];
            winner = d;
        }
    }
    return winner;
}

// The slope of the activation where x̂ is what it got; bent alike in every kernel.
template <class T> MAMLPP_DEVICE T slope_at(T x_hat, T gain, T bias, T slope) {
    return fma(gain, x_hat, bias) > 0 ? static_cast<T>(1) : slope;
}

// Mean and M2 of the pixels of each tile, by two passes over a batch and merges as Chan et al.
// (1979) do; part is [T][tiles][2][C].
template <class T, int V> struct Moments {
    static constexpr const char* name = "norm_act moments";
    static constexpr int threads = block_threads, batch = 8;
    Tiling g;
    int tasks;
    Rows<const T> z;
    double* part;

    Grid grid() const { return g.grid(tasks); }
    size_t shared() const { return tile_doubles<V>(g, 3); }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const T* const images = row_of(z, block.z);
        const int width = g.columns * V, size = g.rows * width;
        double *const mean = shared, *const m2 = shared + size, *const sum = shared + 2 * size;
        block.each([&](int thread) {
            const Lane at = lane_of<V>(g, block, thread);
            double means[V] = {}, m2s[V] = {};
            int seen = 0;
            for_batches<batch>(g, at, [&](int first, int count) {
                add(images, at, first, count, seen, means, m2s);
                seen += count;
            });
            if (!at.seat)
                return;
            MAMLPP_UNROLL
            for (int v = 0; v < V; ++v) {
                const int i = at.row * width + at.shared + v;
                mean[i] = means[v];
                m2[i] = m2s[v];
                sum[i] = means[v] * seen;
            }
        });
        fold(block, sum, g.rows, width);
        const int begin = block.x * g.per_tile;
        const int count = g.pixels - begin < g.per_tile ? g.pixels - begin : g.per_tile;
        block.each([&](int thread) {
            for (int i = thread; i < size; i += threads) {
                const int row = i / width;
                const double apart = mean[i] - sum[i - row * width] / count;
                m2[i] += apart * apart * ((count - row + g.rows - 1) / g.rows);
            }
        });
        fold(block, m2, g.rows, width);
        double* const to =
            part + (static_cast<ptrdiff_t>(block.z) * g.tiles + block.x) * 2 * g.channels;
        block.each([&](int thread) {
            for (int i = thread; i < width; i += threads)
                if (const int channel = block.y * width + i; channel < g.channels) {
                    to[channel] = sum[i] / count;
                    to[g.channels + channel] = m2[i];
                }
        });
    }

    // Merges `count` more pixels into moments that stand for `seen` ones.
    MAMLPP_DEVICE void add(const T* images, const Lane& at, int first, int count, int seen,
                           double (&means)[V], double (&m2s)[V]) const {
        Pack<T, V> x[batch];
        load_batch(g, images, first, count, at.channel, x);
        const T share = 1 / static_cast<T>(count);
        const double weight = static_cast<double>(count) / (seen + count);
        MAMLPP_UNROLL
        for (int v = 0; v < V; ++v) {
            T total = 0, rest = 0, squares = 0;
            MAMLPP_UNROLL
            for (int k = 0; k < batch; ++k)
                total += x[k].v[v];
            const T centre = total * share;
            MAMLPP_UNROLL
            for (int k = 0; k < batch; ++k) {
                const T apart = k < count ? x[k].v[v] - centre : 0;
                rest += apart; // what rounding left out of the mean
                squares = fma(apart, apart, squares);
            }
            const double apart = static_cast<double>(centre) + rest * share - means[v];
            means[v] += apart * weight;
            m2s[v] +=
                static_cast<double>(squares - rest * rest * share) + apart * apart * weight * seen;
        }
    }
};

// Statistics of the tiles' moments.
template <class T> struct Statistics {
    static constexpr const char* name = "norm_act statistics";
    static constexpr int threads = merge_rows * merge_columns;
    Tiling g;
    int tasks;
    const double* part;
    Rows<const T> given_var;
    Rows<T> mean, var, rstd;
    double eps;

    Grid grid() const { return merge_grid(g, tasks); }
    size_t shared() const { return threads + merge_columns; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const Parts<2> parts = parts_of<2>(g, part, block.y);
        double* const centres = shared + threads; // of the block's channels
        const auto pixels = [&](int tile) {
            const int left = g.pixels - tile * g.per_tile;
            return left < g.per_tile ? left : g.per_tile;
        };
        merge_tiles<1>(
            block, g, shared,
            [&](int tile, int c, int) { return parts(tile, c, 0) * pixels(tile); },
            [&](int c, const double(&sum)[1]) { centres[c % merge_columns] = sum[0] / g.pixels; });
        merge_tiles<1>(
            block, g, shared,
            [&](int tile, int c, int) {
                const double apart = parts(tile, c, 0) - centres[c % merge_columns];
                return parts(tile, c, 1) + apart * apart * pixels(tile);
            },
            [&](int c, const double(&sum)[1]) {
                const T batch_var = static_cast<T>(sum[0] / g.pixels);
                const T* const given = row_of(given_var, block.y);
                row_of(mean, block.y)[c] = static_cast<T>(centres[c % merge_columns]);
                row_of(var, block.y)[c] = batch_var;
                row_of(rstd, block.y)[c] = static_cast<T>(
                    1 / sqrt(static_cast<double>(given ? given[c] : batch_var) + eps));
            });
    }
};

// x̂ at the winners, the winners, and the activation.
template <class T, int V> struct Normalise {
    static constexpr const char* name = "norm_act fwd";
    static constexpr int threads = block_threads;
    Tiling g; // of pooled pixels
    int tasks;
    Windows w;
    T slope;
    Rows<const T> z, gain, bias, centre, rstd;
    Rows<T> y, x_hat;
    Rows<uint8_t> winners;

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
            const auto centres = vector_of<V>(centre, task, at.channel);
            const auto scales = vector_of<V>(rstd, task, at.channel);
            for (int pixel = at.from; pixel < at.to; pixel += g.rows) {
                const ptrdiff_t to = static_cast<ptrdiff_t>(pixel) * g.channels + at.channel;
                const Pack<T, V> value = winner(row_of(z, task), task, pixel, at, gains, to);
                Pack<T, V> x, out;
                MAMLPP_UNROLL
                for (int v = 0; v < V; ++v) {
                    x.v[v] = (value.v[v] - centres.v[v]) * scales.v[v];
                    const T affine = fma(gains.v[v], x.v[v], biases.v[v]);
                    out.v[v] = affine > 0 ? affine : slope * affine;
                }
                store<V>(row_of(x_hat, task) + to, x);
                store<V>(row_of(y, task) + to, out);
            }
        });
    }

    MAMLPP_DEVICE Pack<T, V> winner(const T* images, int task, int pixel, const Lane& at,
                                    const Pack<T, V>& gains, ptrdiff_t to) const {
        if (!w.pool)
            return load<V>(images + to);
        Pack<T, V> window[4], value;
        load_window(w, place_of(pixel, w.pooled), g.channels, images + at.channel, window);
        Pack<uint8_t, V> positions;
        MAMLPP_UNROLL
        for (int v = 0; v < V; ++v) {
            const T z4[4] = {window[0].v[v], window[1].v[v], window[2].v[v], window[3].v[v]};
            positions.v[v] = static_cast<uint8_t>(compete(z4, sign_of(gains.v[v]), value.v[v]));
        }
        store<V>(row_of(winners, task) + to, positions);
        return value;
    }
};

// f(std::integral_constant<int, V>) with the widest vectors that fill a pixel's channels.
template <class T, class F> void by_lanes(const NormShape& shape, F f) {
    if (shape.channels % lanes<T> == 0)
        f(std::integral_constant<int, lanes<T>>());
    else
        f(std::integral_constant<int, 1>());
}

// Of `n` square images: tiles of which sums are left, and tiles that only pass through, of enough
// pixels that a thread's constants are read for more than one.
constexpr int pass_batch = 4;
template <int V> Tiling summed(const NormShape& s, int side, int batch) {
    return tiling(squares(s.n, side), s.channels, V, batch, most_tiles);
}
template <int V> Tiling passed(const NormShape& s, int side) {
    const ptrdiff_t pixels = squares(s.n, side);
    return tiling(pixels, s.channels, V, pass_batch, pixels);
}

template <class T, class Queue>
void norm_act_fwd_on(const NormShape& s, int tasks, const NormFwd<T>& f, double* part,
                     const Queue& queue) {
    by_lanes<T>(s, [&](auto vector) {
        constexpr int V = decltype(vector)::value;
        const Windows w = windows_of(s);
        const Tiling g = summed<V>(s, s.side, Moments<T, V>::batch);
        queue(Moments<T, V>{g, tasks, f.z, part});
        queue(Statistics<T>{g, tasks, part, f.given_var, f.mean, f.var, f.rstd, s.eps});
        queue(Normalise<T, V>{passed<V>(s, w.pooled), tasks, w, static_cast<T>(s.slope), f.z,
                              f.gain, f.bias, f.given_mean.data ? f.given_mean : constant(f.mean),
                              constant(f.rstd), f.y, f.x_hat, f.winners});
    });
}

} // namespace cuda
} // namespace mamlpp
