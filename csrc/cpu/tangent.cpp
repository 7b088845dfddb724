// The tangent of a pass: directions of its gradient along a direction of its parameters, forward
// over reverse. What it computes in both halves are the pass's own two products, each with one
// operand replaced by its direction (symbols as in kernels/plain/norm_act.py and stem.py).
#include "cpu.h"
#include "stage.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

template <class T> struct Tangent {
    const Plan<T>& plan;
    const Images<T>& images;
    const Kept<T>& kept;
    const Dots<T>& dots;
    const Shares<T>& shares;
    const TangentTask<T>& task;
    const Workers<T>& workers;
    Team& team;

    bool given() const { return kept.given[0] != 0; }
    ptrdiff_t pitch() const { return plan.pitch; }
    const T* stem_image(int i) const {
        const Conv<T>& g = plan.stages[0].conv;
        return images.stem.images + i * g.channels * plane(g.side);
    }

    // shift and q of the stem; q is mean(x̂·z_dot) = r·wᵀG·w_dot.
    void stem_statistics() const {
        const int d = plan.patch(), filters = plan.filters();
        const T* w_dot = dots.packed.stem;
        for (int f = 0; f < plan.pitch; ++f) {
            double shift = 0, q = 0;
            for (int i = 0; f < filters && i < d; ++i) {
                const double w = static_cast<double>(w_dot[i * plan.pitch + f]);
                shift += w * (given() ? -images.stem.pivot[i / taps] : images.stem.mean[i]);
                q += w * kept.projected[i * filters + f];
            }
            shares.mean_dot[f] = static_cast<T>(shift);
            shares.q[f] =
                given() ? 0 : static_cast<T>(q * static_cast<double>(kept.stages[0].rstd[f]));
        }
    }

    // μ_dot and q of a stage from the images' sums of z_dot and z_dot(z − μ).
    void merge_products(int s) const {
        const ptrdiff_t stride = 2 * static_cast<ptrdiff_t>(plan.pitch);
        const int side = plan.stages[s].window.dense;
        const T share = 1 / static_cast<T>(plan.n * side * side);
        add_shares(shares.sums, plan.n, stride, plan.pitch, shares.mean_dot);
        add_shares(shares.sums + plan.pitch, plan.n, stride, plan.pitch, shares.q);
        for (int c = 0; c < plan.pitch; ++c) {
            shares.mean_dot[c] = given() ? 0 : shares.mean_dot[c] * share;
            shares.q[c] = given() ? 0 : shares.q[c] * (share * kept.stages[s].rstd[c]);
        }
    }

    void normalise_image(int s, int image, const Scratch<T>& scratch) const {
        const Stage<T>& stage = plan.stages[s];
        const StageKept<T>& k = kept.stages[s];
        const ptrdiff_t at = image * stage.window.pooled_image();
        const uint16_t* winners = k.winners + image * stage.window.template winner_words<T>();
        const T *mean_dot = statistic(s, 0), *q = statistic(s, 1);
        T* to = dots.stages[s].x_hat + at;
        if (stage.stem)
            stem_dot(stage.window, stem_image(image), stage.conv.channels, dots.packed.stem,
                     k.x_hat + at, winners, k.rstd, mean_dot, q, to, scratch.row);
        else
            normalise_dot(stage.window, dots.stages[s].z + image * stage.window.dense_image(),
                          k.x_hat + at, winners, k.rstd, mean_dot, q, to);
    }

    // The direction of one image's activation behind stage s, into a buffer with a border.
    void activate_image(int s, int image, T* to) const {
        const StageKept<T>& k = kept.stages[s];
        const ptrdiff_t at = image * plan.stages[s].window.pooled_image();
        activate_dot(plan.stages[s].window.pooled, plan.pitch, k.x_hat + at,
                     dots.stages[s].x_hat + at, k.gain, k.bias, plan.slope, to);
    }

    void forward() const {
        if (plan.stages[0].stem) {
            stem_statistics();
            keep_statistics(0);
        }
        for (int s = plan.stages[0].stem ? 1 : 0; s < plan.count; ++s) {
            const Stage<T>& stage = plan.stages[s];
            const StageKept<T>& k = kept.stages[s];
            const int width = stage.window.dense;
            Packed<T> w{}; // images have no direction
            if (s > 0)
                w = load_fwd(plan, s, task.theta, shares.filters, shares.packed);
            const Packed<T> w_dot = load_fwd(plan, s, task.direction, shares.filters, dots.packed);
            each(team, chunks(plan.n), [&](int chunk, int worker) {
                const Scratch<T> scratch = workers[worker];
                for_groups(stage.conv, plan.n, chunk, [&](int first, int size) {
                    for (int i = 0; s > 0 && i < size; ++i) {
                        T* const x_dot = scratch.x_dot + i * stage.conv.in_image();
                        normalise_image(s - 1, first + i, scratch);
                        build_input(plan, kept, s, first + i,
                                    scratch.x + i * stage.conv.in_image());
                        clear_border(x_dot, stage.conv.side, plan.pitch);
                        activate_image(s - 1, first + i, x_dot);
                    }
                    const T* x =
                        s > 0 ? scratch.x : images.bordered + first * stage.conv.in_image();
                    const Factors<T> pairs[2] = {{x, w_dot}, {scratch.x_dot, w}};
                    const ptrdiff_t at = first * stage.window.dense_image();
                    convolve_fwd(plan.winograd, stage.conv, pairs, s > 0 ? 2 : 1,
                                 all_of(stage.conv, size), scratch.cells_of, dots.stages[s].z + at,
                                 each_row<T>([&](int i, int y, const T* row) {
                                     T* share = shares.sums + (first + i) * 2 * pitch();
                                     T* const sums[2] = {share, share + pitch()};
                                     const T* z = k.z + at + i * stage.window.dense_image();
                                     add_products(sums, row, z + y * width * pitch(), k.centre,
                                                  width, plan.pitch, y == 0);
                                 }));
                });
            });
            merge_products(s);
            keep_statistics(s);
        }
        const int last = plan.count - 1, side = plan.stages[last].window.pooled;
        each(team, plan.n, [&](int image, int worker) {
            const Scratch<T> scratch = workers[worker];
            normalise_image(last, image, scratch);
            activate_image(last, image, scratch.x);
            features(scratch.x, side, plan.filters(), plan.pitch, plan.mean_features(),
                     dots.h + static_cast<ptrdiff_t>(image) * plan.head.d);
        });
    }

    void head() const {
        const Head& g = plan.head;
        const T* w = task.theta + plan.theta_head;
        const T* w_dot = task.direction + plan.theta_head;
        T* dw = task.product + plan.theta_head;
        const T* c_dot = w_dot + static_cast<ptrdiff_t>(g.ways) * g.d;
        T* const logits = dots.logits;
        head_logits(g, kept.h, w_dot, c_dot, logits);
        for (int i = 0; i < g.n; ++i)
            for (int k = 0; k < g.ways; ++k)
                logits[i * g.ways + k] += dot(dots.h + static_cast<ptrdiff_t>(i) * g.d,
                                              w + static_cast<ptrdiff_t>(k) * g.d, g.d);
        head_residual_dot(g, kept.softmax, logits, dots.residual);
        head_dh(g, dots.residual, w, shares.dh, true);
        head_dh(g, kept.residual, w_dot, shares.dh, false);
        head_dw(g, dots.residual, kept.h, dw, dw + static_cast<ptrdiff_t>(g.ways) * g.d, true);
        head_dw<T>(g, kept.residual, dots.h, dw, nullptr, false);
    }

    // b₀ is a₀ and b₃ is a₁ of dz_coefficients.
    void coefficients(int s) const {
        const StageKept<T>& k = kept.stages[s];
        const int side = plan.stages[s].window.dense;
        const T share = 1 / static_cast<T>(plan.n * side * side);
        const T* q = statistic(s, 1);
        dz_coefficients(plan, kept, s, shares);
        for (int c = 0; c < plan.pitch; ++c) {
            const T rq = k.rstd[c] * q[c], a0 = shares.a0[c];
            shares.b1[c] = -rq * a0;
            shares.b2[c] =
                given() ? 0 : -2 * rq * shares.a1[c] - a0 * k.rstd[c] * shares.s2_dot[c] * share;
            shares.b4[c] = given() ? 0 : -rq * shares.a2[c] - a0 * shares.s1_dot[c] * share;
        }
    }

    void build_image(int s, int image, T* x_dot, T* dz_dot) const {
        const Stage<T>& stage = plan.stages[s];
        const StageKept<T>& k = kept.stages[s];
        if (s > 0) {
            clear_border(x_dot, stage.conv.side, plan.pitch);
            activate_image(s - 1, image, x_dot);
        }
        clear_border(dz_dot, stage.window.dense, plan.pitch);
        const ptrdiff_t pooled = image * stage.window.pooled_image();
        const ptrdiff_t dense_at = image * stage.window.dense_image();
        const Addend<T> sparse[2] = {{dots.stages[s].delta + pooled, shares.a0, nullptr},
                                     {k.delta + pooled, shares.b1, nullptr}};
        const Addend<T> dense[2] = {{k.z + dense_at, shares.b2, k.centre},
                                    {dots.stages[s].z + dense_at, shares.a1, statistic(s, 0)}};
        build_dz(stage.window, sparse, dense, shares.b4,
                 k.winners + image * stage.window.template winner_words<T>(), dz_dot);
    }

    void bend_image(int s, int image, int from, int pixels, T* delta_dot, bool fresh) const {
        const StageKept<T>& k = kept.stages[s];
        const ptrdiff_t at = image * plan.stages[s].window.pooled_image() +
                             static_cast<ptrdiff_t>(from) * plan.pitch;
        T* share = shares.sums + static_cast<ptrdiff_t>(image) * 2 * plan.pitch;
        T* const sums[2] = {share, share + plan.pitch};
        bend_dot(pixels, plan.pitch, delta_dot, k.delta + at, k.x_hat + at,
                 dots.stages[s].x_hat + at, k.gain, k.bias, plan.slope, sums, fresh);
    }

    // d(gain·r·(A − s₁m − s₂r·Gw)) with r_dot = −r²q
    void stem_filters(const T* outer_dot) const {
        const StageKept<T>& k = kept.stages[0];
        const StemImages<T>& stem = images.stem;
        const int d = plan.patch(), filters = plan.filters(),
                  channels = plan.stages[0].conv.channels;
        const T* w_dot = dots.packed.stem;
        for (int f = 0; f < filters; ++f) {
            const double r = static_cast<double>(k.rstd[f]), gain = static_cast<double>(k.gain[f]);
            const double s1 = static_cast<double>(k.s1[f]), s2 = static_cast<double>(k.s2[f]);
            const double s1_dot = static_cast<double>(shares.s1_dot[f]);
            const double s2_dot = static_cast<double>(shares.s2_dot[f]);
            const double r_dot = -r * r * static_cast<double>(statistic(0, 1)[f]);
            for (int i = 0; i < d; ++i) {
                const ptrdiff_t at = static_cast<ptrdiff_t>(i) * plan.pitch + f;
                const double a_dot = static_cast<double>(outer_dot[at]);
                double value;
                if (given()) {
                    value = gain * r * (a_dot + s1_dot * stem.pivot[i / taps]);
                } else {
                    const double gw = kept.projected[i * filters + f];
                    double gw_dot = 0;
                    for (int j = 0; j < d; ++j)
                        gw_dot +=
                            stem.cov[i * d + j] * static_cast<double>(w_dot[j * plan.pitch + f]);
                    const double a = static_cast<double>(kept.outer[at]);
                    value = gain * r_dot * (a - s1 * stem.mean[i] - s2 * r * gw) +
                            gain * r *
                                (a_dot - s1_dot * stem.mean[i] - s2_dot * r * gw -
                                 s2 * (r_dot * gw + r * gw_dot));
                }
                task.product[(f * taps + i % taps) * channels + i / taps] = static_cast<T>(value);
            }
        }
    }

    void backward_chunk(int s, int chunk, const Packed<T>& w, const Packed<T>& w_dot,
                        const Scratch<T>& scratch, T* share) const {
        const Stage<T>& stage = plan.stages[s];
        for_groups(stage.conv, plan.n, chunk, [&](int first, int size) {
            for (int i = 0; i < size; ++i) {
                const ptrdiff_t in = i * stage.conv.in_image(), out = i * stage.conv.dz_image();
                build_operands(plan, kept, shares, s, first + i, scratch.x + in, scratch.dz + out);
                build_image(s, first + i, scratch.x_dot + in, scratch.dz_dot + out);
            }
            if (s > 0) {
                const Factors<T> pairs[2] = {{scratch.dz_dot, w}, {scratch.dz, w_dot}};
                const int side = stage.conv.side;
                T* to = dots.stages[s - 1].delta + first * plan.stages[s - 1].window.pooled_image();
                convolve_bwd(plan.winograd, stage.back, pairs, 2, all_of(stage.back, size),
                             scratch.cells_of, to, each_row<T>([&](int i, int y, T* row) {
                                 bend_image(s - 1, first + i, y * side, side, row, y == 0);
                             }));
            }
            const T* x = s > 0 ? scratch.x : images.bordered + first * stage.conv.in_image();
            const Pair<T> pairs[2] = {{x, scratch.dz_dot}, {scratch.x_dot, scratch.dz}};
            add_wgrad(plan.winograd, stage.back, pairs, s > 0 ? 2 : 1, all_of(stage.back, size),
                      first == chunk_begin(plan.n, chunk), scratch.cells_of, share);
        });
        finish_wgrad(stage.back, scratch.cells_of, share);
    }

    void backward() const {
        const int last = plan.count - 1, parts = chunks(plan.n);
        each(team, plan.n, [&](int image, int) {
            const Window& g = plan.stages[last].window;
            T* to = dots.stages[last].delta + image * g.pooled_image();
            features_bwd(shares.dh + static_cast<ptrdiff_t>(image) * plan.head.d, g.pooled,
                         plan.filters(), plan.pitch, plan.mean_features(), to);
            bend_image(last, image, 0, g.pooled * g.pooled, to, true);
        });
        for (int s = last; s >= 0; --s) {
            const Stage<T>& stage = plan.stages[s];
            merge_sums(plan, shares.sums, s, shares.s1_dot, shares.s2_dot, task.norm_product);
            if (stage.stem) {
                stem_outer(plan, images, kept.stages[0].winners, dots.stages[0].delta,
                           shares.filters, workers, team, shares.filters);
                stem_filters(shares.filters);
                return;
            }
            coefficients(s);
            const Packed<T> w = load_bwd(plan, s, task.theta, shares.filters, shares.packed);
            const Packed<T> w_dot = load_bwd(plan, s, task.direction, shares.filters, dots.packed);
            const ptrdiff_t share = Shares<T>::filters_size(plan);
            each(team, parts, [&](int chunk, int worker) {
                backward_chunk(s, chunk, w, w_dot, workers[worker], shares.filters + chunk * share);
            });
            store_filters(stage.conv, {0, stage.conv.filters}, shares.filters, parts, share,
                          task.product + stage.theta);
        }
    }

    // Each stage's own, for the backward half.
    T* statistic(int s, int which) const {
        return dots.statistics + (static_cast<ptrdiff_t>(s) * 2 + which) * plan.pitch;
    }
    void keep_statistics(int s) const {
        for (int c = 0; c < plan.pitch; ++c) {
            statistic(s, 0)[c] = shares.mean_dot[c];
            statistic(s, 1)[c] = shares.q[c];
        }
    }
};

} // namespace

template <class T>
void tangent(const Net& net, int n, const TangentTask<T>& task, void* work, void* scratch,
             Team& team) {
    const Plan<T> plan(net, n, Decides::nothing);
    const Images<T> images(plan, const_cast<void*>(task.images));
    const Kept<T> kept(plan, const_cast<void*>(task.kept), true);
    Carver carver(work);
    const Shares<T> shares(plan, carver);
    const Dots<T> dots(plan, carver);
    const Workers<T> workers(plan, scratch);
    const Tangent<T> tangent{plan, images, kept, dots, shares, task, workers, team};
    load_stem(plan, task.direction, dots.packed);
    tangent.forward();
    tangent.head();
    tangent.backward();
}

template void tangent(const Net&, int, const TangentTask<float>&, void*, void*, Team&);
template void tangent(const Net&, int, const TangentTask<double>&, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
