// The gradient of norm_act and the tangent of that: sums over each task's pooled pixels, their
// merge into coefficients, then a value a pixel.
#pragma once

#include "norm_build.h"
#include "norm_work.h"

namespace mamlpp {
namespace cuda {

// Σδ and Σδx̂ of each tile and, of a tangent (K = 4), Σδ_dot and Σ(δ_dot·x̂ + δ·x̂_dot).
template <class T, int V, int K> struct Sums {
    static constexpr const char* name = K == 2 ? "norm_act bwd sums" : "norm_act tan_bwd sums";
    static constexpr int threads = block_threads, batch = sum_batch;
    Tiling g; // of pooled pixels
    int tasks;
    T slope;
    Rows<const T> gain, bias, x_hat, dy, dy_dot, x_hat_dot;
    double* part;

    Grid grid() const { return g.grid(tasks); }
    size_t shared() const { return tile_doubles<V>(g, K); }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const int task = block.z;
        block.each([&](int thread) {
            const Lane at = lane_of<V>(g, block, thread);
            double sums[K][V] = {};
            Pack<T, V> gains{}, biases{};
            if (at.works) {
                gains = vector_of<V>(gain, task, at.channel);
                biases = vector_of<V>(bias, task, at.channel);
            }
            for_batches<batch>(g, at, [&](int first, int count) {
                Pack<T, V> x[batch], d[batch], x_dot[batch] = {}, d_dot[batch] = {};
                load_batch(g, row_of(x_hat, task), first, count, at.channel, x);
                load_batch(g, row_of(dy, task), first, count, at.channel, d);
                if (K == 4 && x_hat_dot.data)
                    load_batch(g, row_of(x_hat_dot, task), first, count, at.channel, x_dot);
                if (K == 4 && dy_dot.data)
                    load_batch(g, row_of(dy_dot, task), first, count, at.channel, d_dot);
                MAMLPP_UNROLL
                for (int v = 0; v < V; ++v) {
                    T s[4] = {};
                    MAMLPP_UNROLL
                    for (int k = 0; k < batch; ++k) {
                        const T m = slope_at(x[k].v[v], gains.v[v], biases.v[v], slope);
                        const T delta = m * d[k].v[v], delta_dot = m * d_dot[k].v[v];
                        s[0] += delta;
                        s[1] = fma(delta, x[k].v[v], s[1]);
                        s[2] += delta_dot;
                        s[3] = fma(delta_dot, x[k].v[v], fma(delta, x_dot[k].v[v], s[3]));
                    }
                    MAMLPP_UNROLL
                    for (int k = 0; k < K; ++k)
                        sums[k][v] += s[k];
                }
            });
            take_seat(g, at, sums, shared);
        });
        leave_tile<K, V>(block, g, shared, part);
    }
};

// The gradients of gain and bias, and the coefficients of dz.
template <class T> struct Gradients {
    static constexpr const char* name = "norm_act bwd coefficients";
    static constexpr int threads = merge_rows * merge_columns;
    Tiling g;
    int tasks;
    const double* part;
    double per_value; // 1 / the values behind a statistic of the batch
    bool given;       // constants instead, whose sums may be infinite
    Rows<const T> gain, rstd;
    Rows<T> dgain, dbias;
    T* coef;

    Grid grid() const { return merge_grid(g, tasks); }
    size_t shared() const { return 2 * threads; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const int task = block.y;
        merge_tiles<2>(
            block, g, shared, parts_of<2>(g, part, task), [&](int c, const double(&s)[2]) {
                row_of(dbias, task)[c] = static_cast<T>(s[0]);
                row_of(dgain, task)[c] = static_cast<T>(s[1]);
                const double r = row_of(rstd, task)[c], scale = row_of(gain, task)[c] * r;
                T* const to = coefficients_of(coef, g, task, c);
                to[1 * g.channels] = static_cast<T>(scale);
                to[2 * g.channels] = given ? 0 : static_cast<T>(-scale * r * s[1] * per_value);
                to[4 * g.channels] = given ? 0 : static_cast<T>(-scale * s[0] * per_value);
            });
    }
};

// The directions of both, and the coefficients of dz_dot.
template <class T> struct GradientDots {
    static constexpr const char* name = "norm_act tan_bwd coefficients";
    static constexpr int threads = merge_rows * merge_columns;
    Tiling g;
    int tasks;
    const double* part;
    double per_value;
    bool given;
    Rows<const T> gain, rstd, gain_dot, q;
    Rows<T> dgain_dot, dbias_dot;
    T* coef;

    Grid grid() const { return merge_grid(g, tasks); }
    size_t shared() const { return 4 * threads; }

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double* shared) const {
        const int task = block.y;
        merge_tiles<4>(
            block, g, shared, parts_of<4>(g, part, task), [&](int c, const double(&s)[4]) {
                row_of(dbias_dot, task)[c] = static_cast<T>(s[2]);
                row_of(dgain_dot, task)[c] = static_cast<T>(s[3]);
                const double r = row_of(rstd, task)[c], scale = row_of(gain, task)[c] * r;
                const double slope = q.data ? row_of(q, task)[c] : 0;
                const double turn = gain_dot.data ? row_of(gain_dot, task)[c] : 0;
                const double scale_dot = turn * r - scale * r * slope;
                const double on_z_dot = -scale * r * s[1] * per_value;
                const double on_x_hat =
                    -(scale_dot * s[1] + scale * s[3]) * per_value - on_z_dot * slope;
                T* const to = coefficients_of(coef, g, task, c);
                to[0 * g.channels] = static_cast<T>(scale);
                to[1 * g.channels] = static_cast<T>(scale_dot);
                to[2 * g.channels] = given ? 0 : static_cast<T>(on_x_hat * r);
                to[3 * g.channels] = given ? 0 : static_cast<T>(on_z_dot);
                to[4 * g.channels] =
                    given ? 0 : static_cast<T>(-(scale_dot * s[0] + scale * s[2]) * per_value);
            });
    }
};

inline double per_value(const NormShape& s) {
    return 1 / static_cast<double>(squares(s.n, s.side));
}

template <class T, class Queue>
void norm_act_bwd_on(const NormShape& s, int tasks, const NormSaved<T>& saved, const NormBwd<T>& f,
                     void* block, const Queue& queue) {
    const Work<T> work(s, tasks, block);
    by_lanes<T>(s, [&](auto vector) {
        constexpr int V = decltype(vector)::value;
        using Program = Sums<T, V, 2>;
        const Tiling g = summed<V>(s, windows_of(s).pooled, Program::batch);
        queue(Program{g,
                      tasks,
                      static_cast<T>(s.slope),
                      saved.gain,
                      saved.bias,
                      saved.x_hat,
                      f.dy,
                      {},
                      {},
                      work.part});
        queue(Gradients<T>{g, tasks, work.part, per_value(s), saved.given, saved.gain, saved.rstd,
                           f.dgain, f.dbias, work.coef});
        queue(build<T, V>(s, tasks, saved, f.dy, work.coef, f.dz));
    });
}

template <class T, class Queue>
void norm_act_tan_bwd_on(const NormShape& s, int tasks, const NormSaved<T>& saved,
                         const NormTanBwd<T>& f, void* block, const Queue& queue) {
    const Work<T> work(s, tasks, block);
    by_lanes<T>(s, [&](auto vector) {
        constexpr int V = decltype(vector)::value;
        using Program = Sums<T, V, 4>;
        const Tiling g = summed<V>(s, windows_of(s).pooled, Program::batch);
        queue(Program{g, tasks, static_cast<T>(s.slope), saved.gain, saved.bias, saved.x_hat, f.dy,
                      f.dy_dot, f.x_hat_dot, work.part});
        queue(GradientDots<T>{g, tasks, work.part, per_value(s), saved.given, saved.gain,
                              saved.rstd, f.gain_dot, f.q, f.dgain_dot, f.dbias_dot, work.coef});
        Build<T, V> last = build<T, V>(s, tasks, saved, f.dy, work.coef, f.dz_dot);
        last.dy_dot = f.dy_dot;
        last.z_dot = f.z_dot;
        last.mean_dot = f.mean_dot;
        queue(last);
    });
}

} // namespace cuda
} // namespace mamlpp
