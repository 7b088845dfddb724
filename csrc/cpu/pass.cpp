// A pass over one task's images: forward, and backward to the gradient of every parameter, from the
// loss or from the features
// (engine/model.py holds the same in terms of single ops; kernels/plain the formulas).
#include <algorithm>

#include "cpu.h"
#include "stage.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// x̂ and winners of one image behind stage s, from z or, for a stem, from the image.
template <class T>
void normalise_image(const Plan<T>& plan, const Images<T>& images, const Kept<T>& kept,
                     const Shares<T>& shares, int s, int image, const Scratch<T>& scratch) {
    const Stage<T>& stage = plan.stages[s];
    const StageKept<T>& k = kept.stages[s];
    T* x_hat = k.x_hat + image * stage.window.pooled_image();
    uint16_t* winners = k.winners + image * stage.window.template winner_words<T>();
    if (s == 0 && plan.rounded)
        plan.rounded->fwd(
            stage.conv.side, stage.conv.channels,
            images.stem.rounded + image * images.stem.rounded_size,
            {plan.pitch, shares.packed.stem, k.gain, k.centre, k.rstd, x_hat, winners});
    else if (stage.stem)
        stem_fwd(stage.window,
                 images.stem.images + image * stage.conv.channels * plane(stage.conv.side),
                 stage.conv.channels, shares.packed.stem, k.gain, k.centre, k.rstd, x_hat, winners,
                 scratch.row);
    else
        normalise(stage.window, k.z + image * stage.window.dense_image(), k.gain, k.centre, k.rstd,
                  x_hat, winners);
}

// Statistics of the stem from the moments of its patches, filters packed as [patch][pitch].
template <class T>
void stem_statistics(const Plan<T>& plan, const Images<T>& images, const Kept<T>& kept,
                     const T* packed, const PassTask<T>& task) {
    const StageKept<T>& k = kept.stages[0];
    const StemImages<T>& stem = images.stem;
    const int d = plan.patch(), filters = plan.filters();
    for (int f = 0; f < filters; ++f) {
        double mean = 0, offset = 0, var = 0;
        for (int i = 0; i < d; ++i) {
            double projected = 0;
            for (int j = 0; j < d; ++j)
                projected += stem.cov[i * d + j] * static_cast<double>(packed[j * plan.pitch + f]);
            const double w = static_cast<double>(packed[i * plan.pitch + f]);
            kept.projected[i * filters + f] = projected;
            var += w * projected;
            mean += w * stem.mean[i];
            offset += w * stem.pivot[i / taps];
        }
        var = var < 0 ? 0 : var;
        task.mean[f] = static_cast<T>(mean + offset);
        task.var[f] = static_cast<T>(var);
        const bool given = task.given_mean != nullptr;
        k.centre[f] = given ? static_cast<T>(static_cast<double>(task.given_mean[f]) - offset)
                            : static_cast<T>(mean);
        k.rstd[f] = given ? task.given_var[f] : task.var[f];
    }
}

// Merges the moments of the images, [n][2][pitch] each of `pixels`, into the stage's statistics.
template <class T>
void merge_statistics(const Plan<T>& plan, const StageKept<T>& k, const T* shares, int pixels,
                      int s, const PassTask<T>& task) {
    for (int f = 0; f < plan.filters(); ++f) {
        double mean = 0, m2 = 0;
        for (int i = 0; i < plan.n; ++i)
            mean += static_cast<double>(shares[static_cast<ptrdiff_t>(i) * 2 * plan.pitch + f]);
        mean /= plan.n;
        for (int i = 0; i < plan.n; ++i) {
            const T* share = shares + static_cast<ptrdiff_t>(i) * 2 * plan.pitch + f;
            const double d = static_cast<double>(share[0]) - mean;
            m2 += static_cast<double>(share[plan.pitch]) + d * d * pixels;
        }
        const int at = s * plan.filters() + f;
        task.mean[at] = static_cast<T>(mean);
        task.var[at] = static_cast<T>(m2 / (static_cast<double>(plan.n) * pixels));
        k.centre[f] = task.given_mean ? task.given_mean[at] : task.mean[at];
        k.rstd[f] = task.given_mean ? task.given_var[at] : task.var[at];
    }
}

// Variance → 1/√(variance + eps); channels that only pad get 0.
template <class T> void finish_rstd(const Plan<T>& plan, const StageKept<T>& k, double eps) {
    for (int f = 0; f < plan.pitch; ++f)
        k.rstd[f] = f < plan.filters()
                        ? static_cast<T>(1 / sqrt(static_cast<double>(k.rstd[f]) + eps))
                        : static_cast<T>(0);
}

template <class T>
void load_parameters(const Plan<T>& plan, const Kept<T>& kept, const Shares<T>& shares,
                     const PassTask<T>& task) {
    const int filters = plan.filters();
    kept.given[0] = task.given_mean ? 1 : 0;
    load_stem(plan, task.theta, shares.packed);
    for (int s = 0; s < plan.count; ++s) {
        const StageKept<T>& k = kept.stages[s];
        const T* affine = task.row + static_cast<ptrdiff_t>(s) * 2 * filters;
        for (int f = 0; f < plan.pitch; ++f) {
            k.gain[f] = f < filters ? affine[f] : 0;
            k.bias[f] = f < filters ? affine[filters + f] : 0;
            k.centre[f] = 0;
        }
    }
}

template <class T>
void forward(const Net& net, const Plan<T>& plan, const Images<T>& images, const Kept<T>& kept,
             const Shares<T>& shares, const PassTask<T>& task, const Workers<T>& workers,
             Team& team) {
    const ptrdiff_t share_size = 2 * static_cast<ptrdiff_t>(plan.pitch);
    if (plan.stages[0].stem) {
        stem_statistics(plan, images, kept, shares.packed.stem, task);
        finish_rstd(plan, kept.stages[0], net.eps);
    }
    for (int s = plan.stages[0].stem ? 1 : 0; s < plan.count; ++s) {
        const Stage<T>& stage = plan.stages[s];
        const StageKept<T>& k = kept.stages[s];
        const int width = stage.window.dense;
        const Packed<T> w = load_fwd(plan, s, task.theta, shares.filters, shares.packed);
        each(team, chunks(plan.n), [&](int chunk, int worker) {
            const Scratch<T> scratch = workers[worker];
            for_groups(stage.conv, plan.n, chunk, [&](int first, int size) {
                for (int i = 0; s > 0 && i < size; ++i) {
                    normalise_image(plan, images, kept, shares, s - 1, first + i, scratch);
                    build_input(plan, kept, s, first + i, scratch.x + i * stage.conv.in_image());
                }
                const T* x = s > 0 ? scratch.x : images.bordered + first * stage.conv.in_image();
                const Factors<T> pair{x, w};
                convolve_fwd(plan.winograd, stage.conv, &pair, 1, all_of(stage.conv, size),
                             scratch.cells_of, k.z + first * stage.window.dense_image(),
                             each_row<T>([&](int i, int y, const T* row) {
                                 T* share = shares.sums + (first + i) * share_size;
                                 add_moments<T>({share, share + plan.pitch}, row, width, plan.pitch,
                                                y * width);
                             }));
            });
        });
        merge_statistics(plan, k, shares.sums, stage.window.dense * stage.window.dense, s, task);
        finish_rstd(plan, k, net.eps);
    }
    const int last = plan.count - 1, side = plan.stages[last].window.pooled;
    const StageKept<T>& k = kept.stages[last];
    each(team, plan.n, [&](int image, int worker) {
        const Scratch<T> scratch = workers[worker];
        normalise_image(plan, images, kept, shares, last, image, scratch);
        activate(side, plan.pitch, k.x_hat + image * plan.stages[last].window.pooled_image(),
                 k.gain, k.bias, plan.slope, scratch.x);
        features(scratch.x, side, plan.filters(), plan.pitch, plan.mean_features(),
                 kept.h + static_cast<ptrdiff_t>(image) * plan.head.d);
    });
    const T* w = task.theta + plan.theta_head;
    if (task.logits)
        head_logits(plan.head, kept.h, w, w + static_cast<ptrdiff_t>(plan.head.ways) * plan.head.d,
                    task.logits);
    if (task.features)
        std::copy_n(kept.h, static_cast<ptrdiff_t>(plan.head.n) * plan.head.d, task.features);
}

// The stem's gradient: gain·r·(A − s₁m − s₂r·Gw), per filter and value of a patch.
template <class T>
void stem_filters(const Plan<T>& plan, const Images<T>& images, const Kept<T>& kept, T* gradient) {
    const StageKept<T>& k = kept.stages[0];
    const int d = plan.patch(), filters = plan.filters(), channels = plan.stages[0].conv.channels;
    const bool given = kept.given[0] != 0;
    for (int f = 0; f < filters; ++f) {
        const double r = static_cast<double>(k.rstd[f]), scale = static_cast<double>(k.gain[f]) * r;
        const double s1 = static_cast<double>(k.s1[f]), s2 = static_cast<double>(k.s2[f]);
        for (int i = 0; i < d; ++i) {
            double a = static_cast<double>(kept.outer[static_cast<ptrdiff_t>(i) * plan.pitch + f]);
            if (given)
                a += s1 * images.stem.pivot[i / taps];
            else
                a -= s1 * images.stem.mean[i] + s2 * r * kept.projected[i * filters + f];
            gradient[(f * taps + i % taps) * channels + i / taps] = static_cast<T>(scale * a);
        }
    }
}

// The loss, and its gradient in the classifier and in the features, shares.dh.
template <class T>
void head_backward(const Plan<T>& plan, const Kept<T>& kept, const Shares<T>& shares,
                   const PassTask<T>& task) {
    const Head& g = plan.head;
    T* dw = task.gradient + plan.theta_head;
    *task.loss = head_loss(g, task.logits, task.labels, kept.softmax, kept.residual);
    head_dh(g, kept.residual, task.theta + plan.theta_head, shares.dh, true);
    head_dw(g, kept.residual, kept.h, dw, dw + static_cast<ptrdiff_t>(g.ways) * g.d, true);
}

// From shares.dh to the gradient of all filters, gains and biases.
template <class T>
void backward(const Plan<T>& plan, const Images<T>& images, const Kept<T>& kept,
              const Shares<T>& shares, const T* theta, T* gradient, T* norm_gradient,
              const Workers<T>& workers, Team& team) {
    const int last = plan.count - 1;
    const ptrdiff_t pitch = plan.pitch;
    each(team, plan.n, [&](int image, int) {
        const Stage<T>& stage = plan.stages[last];
        const StageKept<T>& k = kept.stages[last];
        const int side = stage.window.pooled;
        const ptrdiff_t at = image * stage.window.pooled_image();
        T* share = shares.sums + static_cast<ptrdiff_t>(image) * 2 * pitch;
        T* const sums[2] = {share, share + pitch};
        features_bwd(shares.dh + static_cast<ptrdiff_t>(image) * plan.head.d, side, plan.filters(),
                     plan.pitch, plan.mean_features(), k.delta + at);
        bend(side * side, plan.pitch, k.delta + at, k.x_hat + at, k.gain, k.bias, plan.slope, sums,
             true);
    });
    for (int s = last; s >= 0; --s) {
        const Stage<T>& stage = plan.stages[s];
        const StageKept<T>& k = kept.stages[s];
        merge_sums(plan, shares.sums, s, k.s1, k.s2, norm_gradient);
        const int parts = chunks(plan.n);
        if (stage.stem) {
            stem_outer(plan, images, k.winners, k.delta, shares.filters, workers, team, kept.outer);
            stem_filters(plan, images, kept, gradient);
            break;
        }
        dz_coefficients(plan, kept, s, shares);
        const Packed<T> w = load_bwd(plan, s, theta, shares.filters, shares.packed);
        const ptrdiff_t share = Shares<T>::filters_size(plan);
        each(team, parts, [&](int chunk, int worker) {
            const Scratch<T> scratch = workers[worker];
            T* const sum = shares.filters + chunk * share;
            for_groups(stage.conv, plan.n, chunk, [&](int first, int size) {
                for (int i = 0; i < size; ++i)
                    build_operands(plan, kept, shares, s, first + i,
                                   scratch.x + i * stage.conv.in_image(),
                                   scratch.dz + i * stage.conv.dz_image());
                if (s > 0) {
                    const StageKept<T>& below = kept.stages[s - 1];
                    const ptrdiff_t image = plan.stages[s - 1].window.pooled_image();
                    const int side = stage.conv.side;
                    const Factors<T> pair{scratch.dz, w};
                    convolve_bwd(plan.winograd, stage.back, &pair, 1, all_of(stage.back, size),
                                 scratch.cells_of, below.delta + first * image,
                                 each_row<T>([&](int i, int y, T* row) {
                                     T* to = shares.sums + (first + i) * 2 * pitch;
                                     T* const sums[2] = {to, to + pitch};
                                     bend(side, plan.pitch, row,
                                          below.x_hat + (first + i) * image + y * side * pitch,
                                          below.gain, below.bias, plan.slope, sums, y == 0);
                                 }));
                }
                const T* x = s > 0 ? scratch.x : images.bordered + first * stage.conv.in_image();
                const Pair<T> pair{x, scratch.dz};
                add_wgrad(plan.winograd, stage.back, &pair, 1, all_of(stage.back, size),
                          first == chunk_begin(plan.n, chunk), scratch.cells_of, sum);
            });
            finish_wgrad(stage.back, scratch.cells_of, sum);
        });
        store_filters(stage.conv, {0, stage.conv.filters}, shares.filters, parts, share,
                      gradient + stage.theta);
    }
}

} // namespace

template <class T>
void pass(const Net& net, int n, const PassTask<T>& task, void* work, void* scratch, Team& team) {
    const Plan<T> plan(net, n);
    const Images<T> images(plan, const_cast<void*>(task.images));
    const Kept<T> kept(plan, task.kept, task.keep);
    Carver carver(work);
    const Shares<T> shares(plan, carver);
    const Workers<T> workers(plan, scratch);
    load_parameters(plan, kept, shares, task);
    forward(net, plan, images, kept, shares, task, workers, team);
    if (task.gradient) {
        head_backward(plan, kept, shares, task);
        backward(plan, images, kept, shares, task.theta, task.gradient, task.norm_gradient, workers,
                 team);
    }
}

template <class T>
void pullback(const Net& net, int n, const PullbackTask<T>& task, void* work, void* scratch,
              Team& team) {
    const Plan<T> plan(net, n);
    const Images<T> images(plan, const_cast<void*>(task.images));
    const Kept<T> kept(plan, task.kept, true);
    Carver carver(work);
    const Shares<T> shares(plan, carver);
    const Workers<T> workers(plan, scratch);
    const ptrdiff_t d = plan.head.d;
    std::copy_n(task.d_features, plan.head.n * d, shares.dh);
    std::fill_n(task.gradient + plan.theta_head, plan.head.ways * (d + 1), static_cast<T>(0));
    backward(plan, images, kept, shares, task.theta, task.gradient, task.norm_gradient, workers,
             team);
}

template void pass(const Net&, int, const PassTask<float>&, void*, void*, Team&);
template void pass(const Net&, int, const PassTask<double>&, void*, void*, Team&);
template void pullback(const Net&, int, const PullbackTask<float>&, void*, void*, Team&);
template void pullback(const Net&, int, const PullbackTask<double>&, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
