// The last step of norm_act's gradient and of its tangent, with δ = m·dy and S scattering to the
// winners:
//
//   dz     = a₀S(δ) + a₁(z − μ) + a₂
//   dz_dot = b₀S(δ_dot) + b₁S(δ) + b₂(z − μ) + b₃(z_dot − μ_dot) + b₄
//
// by one program: a₀, a₁ and a₂ stand for b₁, b₂ and b₄.
#pragma once

#include "norm_act.h"

namespace mamlpp {
namespace cuda {

constexpr int coefficients = 5;

// Where the coefficients of a task and channel lie, C apart.
template <class T>
MAMLPP_DEVICE T* coefficients_of(T* coef, const Tiling& g, int task, int channel) {
    return coef + static_cast<ptrdiff_t>(task) * coefficients * g.channels + channel;
}

// dz or dz_dot, a window at a time; what no whole window covers gets the dense terms alone.
template <class T, int V> struct Build {
    static constexpr const char* name = "norm_act bwd";
    static constexpr int threads = block_threads;
    Tiling g; // of windows, those that an odd side cuts too
    int tasks;
    Windows w;
    T slope;
    bool dense; // the statistics depend on z
    Rows<const T> gain, bias, centre, x_hat, dy, dy_dot, z, z_dot, mean_dot;
    Rows<const uint8_t> winners;
    const T* coef;
    Rows<T> out;

    Grid grid() const { return g.grid(tasks); }
    size_t shared() const { return 0; }

    struct Vectors {
        Pack<T, V> gain, bias, centre, mean_dot, on_pulse_dot, on_pulse, on_z, on_z_dot, constant;
    };

    template <class Block> MAMLPP_DEVICE void operator()(const Block& block, double*) const {
        const int task = block.z;
        block.each([&](int thread) {
            const Lane at = lane_of<V>(g, block, thread);
            if (!at.works)
                return;
            const T* const from = coefficients_of(coef, g, task, 0);
            const auto on = [&](int k) {
                return vector_of<V>(Rows<const T>{from + k * g.channels, 0}, 0, at.channel);
            };
            Vectors c{};
            c.gain = vector_of<V>(gain, task, at.channel);
            c.bias = vector_of<V>(bias, task, at.channel);
            c.centre = vector_of<V>(centre, task, at.channel);
            c.mean_dot = vector_of<V>(mean_dot, task, at.channel);
            c.on_pulse = on(1);
            if (dy_dot.data)
                c.on_pulse_dot = on(0);
            if (dense) {
                c.on_z = on(2);
                c.constant = on(4);
                if (z_dot.data)
                    c.on_z_dot = on(3);
            }
            for (int window = at.from; window < at.to; window += g.rows)
                if (w.pool) {
                    pooled(task, place_of(window, w.cover), at.channel, c);
                } else {
                    const ptrdiff_t i = static_cast<ptrdiff_t>(window) * g.channels + at.channel;
                    store<V>(row_of(out, task) + i, sum(base(task, i, c), pulse(task, i, c)));
                }
        });
    }

    MAMLPP_DEVICE void pooled(int task, const Place& p, int channel, const Vectors& c) const {
        const bool whole = p.i < w.pooled && p.j < w.pooled;
        Pack<T, V> spike{}, values[4];
        Pack<uint8_t, V> winner{};
        if (whole) {
            const ptrdiff_t line = static_cast<ptrdiff_t>(p.image) * w.pooled + p.i;
            const ptrdiff_t i = (line * w.pooled + p.j) * g.channels + channel;
            spike = pulse(task, i, c);
            winner = load<V>(row_of(winners, task) + i);
        }
        const auto inside = [&](int d) {
            return 2 * p.i + d / 2 < w.side && 2 * p.j + d % 2 < w.side;
        };
        MAMLPP_UNROLL
        for (int d = 0; d < 4; ++d)
            if (inside(d))
                values[d] = base(task, pixel_of(w, p, d) * g.channels + channel, c);
        MAMLPP_UNROLL
        for (int d = 0; d < 4; ++d) {
            MAMLPP_UNROLL
            for (int v = 0; v < V; ++v)
                values[d].v[v] += whole && winner.v[v] == d ? spike.v[v] : 0;
            if (inside(d))
                store<V>(row_of(out, task) + pixel_of(w, p, d) * g.channels + channel, values[d]);
        }
    }

    // The dense terms at a value of z.
    MAMLPP_DEVICE Pack<T, V> base(int task, ptrdiff_t i, const Vectors& c) const {
        Pack<T, V> values = c.constant;
        if (dense) {
            const Pack<T, V> x = load<V>(row_of(z, task) + i);
            MAMLPP_UNROLL
            for (int v = 0; v < V; ++v)
                values.v[v] = fma(x.v[v] - c.centre.v[v], c.on_z.v[v], values.v[v]);
        }
        if (dense && z_dot.data) {
            const Pack<T, V> x = load<V>(row_of(z_dot, task) + i);
            MAMLPP_UNROLL
            for (int v = 0; v < V; ++v)
                values.v[v] = fma(x.v[v] - c.mean_dot.v[v], c.on_z_dot.v[v], values.v[v]);
        }
        return values;
    }

    // What a winner gets on top, at a pooled value.
    MAMLPP_DEVICE Pack<T, V> pulse(int task, ptrdiff_t i, const Vectors& c) const {
        const Pack<T, V> x = load<V>(row_of(x_hat, task) + i);
        Pack<T, V> values = load<V>(row_of(dy, task) + i), other{};
        if (dy_dot.data)
            other = load<V>(row_of(dy_dot, task) + i);
        MAMLPP_UNROLL
        for (int v = 0; v < V; ++v) {
            const T m = slope_at(x.v[v], c.gain.v[v], c.bias.v[v], slope);
            values.v[v] *= m * c.on_pulse.v[v];
            values.v[v] = fma(m * other.v[v], c.on_pulse_dot.v[v], values.v[v]);
        }
        return values;
    }

    MAMLPP_DEVICE static Pack<T, V> sum(Pack<T, V> a, const Pack<T, V>& b) {
        MAMLPP_UNROLL
        for (int v = 0; v < V; ++v)
            a.v[v] += b.v[v];
        return a;
    }
};

template <class T, int V>
Build<T, V> build(const NormShape& s, int tasks, const NormSaved<T>& saved, const Rows<const T>& dy,
                  const T* coef, const Rows<T>& out) {
    const Windows w = windows_of(s);
    return {passed<V>(s, w.cover),
            tasks,
            w,
            static_cast<T>(s.slope),
            !saved.given,
            saved.gain,
            saved.bias,
            saved.centre,
            saved.x_hat,
            dy,
            {},
            saved.z,
            {},
            {},
            saved.winners,
            coef,
            out};
}

} // namespace cuda
} // namespace mamlpp
