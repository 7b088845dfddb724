// Steps of a backward stage that the pass and its tangent share.
#pragma once

#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// [filters][9][channels] → [channels · 9][pitch], the order of a patch
template <class T>
inline void pack_stem(const T* theta, int filters, int channels, int pitch, T* w) {
    for (int c = 0; c < channels; ++c)
        for (int t = 0; t < taps; ++t, w += pitch)
            for (int f = 0; f < pitch; ++f)
                w[f] = f < filters ? theta[(f * taps + t) * channels + c] : 0;
}

// Calls group(first, size) for the images of a chunk, as many at once as a stage builds.
template <class T, class F>
MAMLPP_INLINE void for_groups(const Plan<T>& plan, const Stage<T>& stage, int chunk, F group) {
    const int end = chunk_begin(plan.n, chunk + 1), most = group_of(stage.conv);
    for (int first = chunk_begin(plan.n, chunk); first < end; first += most)
        group(first, first + most < end ? most : end - first);
}

// A stage's filters for its convolutions, without `backward` for the value alone; `packed` is a
// buffer of [9][channels or filters][pitch].
template <class T>
void load_filters(const Plan<T>& plan, int s, const T* theta, bool backward, T* packed,
                  const Filters<T>& to) {
    const Stage<T>& stage = plan.stages[s];
    const int filters = plan.filters(), channels = stage.conv.channels, pitch = plan.pitch;
    theta += stage.theta;
    if (stage.stem) {
        pack_stem(theta, filters, channels, pitch, to.fwd.taps);
        return;
    }
    if (!stage.winograd) {
        pack_filters(theta, filters, channels, pitch, to.fwd.taps);
        if (backward && s > 0)
            pack_filters_bwd(theta, filters, channels, pitch, to.bwd.taps);
        return;
    }
    pack_filters(theta, filters, channels, pitch, packed);
    pack_cells(packed, channels, pitch, static_cast<ptrdiff_t>(channels) * pitch, pitch, false,
               to.fwd.cells);
    if (!backward || s == 0)
        return;
    ptrdiff_t row = static_cast<ptrdiff_t>(taps) * channels, tap = channels; // as theta lies
    if (channels != pitch) {
        pack_filters_bwd(theta, filters, channels, pitch, packed);
        theta = packed, row = pitch, tap = static_cast<ptrdiff_t>(filters) * pitch;
    }
    pack_cells(theta, filters, row, tap, pitch, true, to.bwd.cells);
}

// A pair of operands of a stage's convolution: images with their borders, and filters.
template <class T> struct Factors {
    const T* image;
    Packed<T> w;
};

// A convolution g of `images` images, Σ_pairs, by Winograd; then row(image, y, z row).
template <class T, class F>
void convolve_cells(const Conv<T>& g, const Factors<T>* pairs, int count, int images,
                    const Scratch<T>& scratch, T* z, F row) {
    CellPair<T> each[2];
    for (int k = 0; k < count; ++k)
        each[k] = {pairs[k].image, pairs[k].w.cells};
    winograd_fwd(g, each, count, images, scratch.tiles, z, row);
}

// z of `images` images: Σ_pairs conv(image, w); then row(image, y, z row).
template <class T, class F>
void stage_fwd(const Stage<T>& stage, const Factors<T>* pairs, int count, int images,
               const Scratch<T>& scratch, T* z, F row) {
    if (stage.winograd) {
        convolve_cells(stage.conv, pairs, count, images, scratch, z, row);
        return;
    }
    for (int i = 0; i < images; ++i) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * stage.conv.in_image(), pairs[k].w.taps};
        conv_fwd(stage.conv, each, count, z + i * stage.window.dense_image(),
                 [&](int y, T* at) { row(i, y, at); });
    }
}

// The gradient of `images` inputs: Σ_pairs dgrad(dz, w); then row(image, y, dx row).
template <class T, class F>
void stage_dgrad(const Stage<T>& stage, const Factors<T>* pairs, int count, int images,
                 const Scratch<T>& scratch, T* dx, F row) {
    const Conv<T>& g = stage.conv;
    if (stage.winograd) {
        convolve_cells(g.mirrored(), pairs, count, images, scratch, dx, row);
        return;
    }
    for (int i = 0; i < images; ++i) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * g.dz_image(), pairs[k].w.taps};
        conv_dgrad(g, each, count, dx + static_cast<ptrdiff_t>(i) * g.side * g.side * g.pitch_in,
                   [&](int y, T* at) { row(i, y, at); });
    }
}

// The weight gradient of a group of a chunk: its own sums, or in the cells those of the worker.
template <class T>
void stage_wgrad(const Stage<T>& stage, const Pair<T>* pairs, int count, int images, bool fresh,
                 const Scratch<T>& scratch, T* share) {
    if (stage.winograd)
        winograd_wgrad(stage.conv, pairs, count, images, scratch.tiles, scratch.sum, fresh);
    else
        conv_wgrad(stage.conv, pairs, count, images, share, fresh);
}

// The end of a chunk's weight gradient.
template <class T> void finish_wgrad(const Stage<T>& stage, const Scratch<T>& scratch, T* share) {
    if (stage.winograd)
        filter_gradient(scratch.sum, stage.conv.filters, stage.conv.pitch_in, share);
}

// Σ values·patch over the winners of all images, [patch][pitch]; `shares` is one of these a chunk.
template <class T>
void stem_outer(const Plan<T>& plan, const Images<T>& images, const uint16_t* winners,
                const T* values, T* shares, const Workers<T>& workers, Team& team, T* sum) {
    const Stage<T>& stage = plan.stages[0];
    const Conv<T>& g = stage.conv;
    const int size = plan.patch() * plan.pitch, parts = chunks(plan.n);
    each(team, parts, [&](int chunk, int worker) {
        const int begin = chunk_begin(plan.n, chunk);
        for (int i = begin; i < chunk_begin(plan.n, chunk + 1); ++i)
            stem_gradient(stage.window, images.stem.images + i * g.channels * plane<T>(g.side),
                          g.channels, values + i * stage.window.pooled_image(),
                          winners + i * stage.window.template winner_words<T>(),
                          shares + static_cast<ptrdiff_t>(chunk) * size, i == begin,
                          workers[worker].row);
    });
    add_shares(shares, parts, size, size, sum);
}

// Sums of the images' shares → s₁ and s₂ of a stage, and its gradient of gain and bias.
template <class T>
void merge_sums(const Plan<T>& plan, const T* shares, int s, T* s1, T* s2, T* norm_gradient) {
    const ptrdiff_t stride = 2 * static_cast<ptrdiff_t>(plan.pitch);
    add_shares(shares, plan.n, stride, plan.pitch, s1);
    add_shares(shares + plan.pitch, plan.n, stride, plan.pitch, s2);
    T* to = norm_gradient + static_cast<ptrdiff_t>(s) * 2 * plan.filters();
    for (int f = 0; f < plan.filters(); ++f) {
        to[f] = s2[f];
        to[plan.filters() + f] = s1[f];
    }
}

// How dz follows from δ and z: dz = a₀S(δ) + a₁(z − μ) + a₂, a₀ = gain·r.
template <class T>
void dz_coefficients(const Plan<T>& plan, const Kept<T>& kept, int s, const Shares<T>& shares) {
    const StageKept<T>& k = kept.stages[s];
    const T count =
        static_cast<T>(plan.n * plan.stages[s].window.dense * plan.stages[s].window.dense);
    const T share = kept.given[0] != 0 ? 0 : 1 / count;
    for (int c = 0; c < plan.pitch; ++c) {
        shares.a0[c] = k.gain[c] * k.rstd[c];
        shares.a1[c] = -shares.a0[c] * k.rstd[c] * k.s2[c] * share;
        shares.a2[c] = -shares.a0[c] * k.s1[c] * share;
    }
}

// The activation of one image that a stage behind the first takes, with its border.
template <class T>
void build_input(const Plan<T>& plan, const Kept<T>& kept, int s, int image, T* x) {
    const StageKept<T>& below = kept.stages[s - 1];
    const Window& g = plan.stages[s - 1].window;
    clear_border(x, g.pooled, plan.pitch);
    activate(g.pooled, plan.pitch, below.x_hat + image * g.pooled_image(), below.gain, below.bias,
             plan.slope, x);
}

// One image's operands of a backward stage, with their borders: its input, unless it is the first
// stage, whose input is the image, and dz.
template <class T>
void build_operands(const Plan<T>& plan, const Kept<T>& kept, const Shares<T>& shares, int s,
                    int image, T* x, T* dz) {
    const Stage<T>& stage = plan.stages[s];
    const StageKept<T>& k = kept.stages[s];
    if (s > 0)
        build_input(plan, kept, s, image, x);
    clear_border(dz, stage.window.dense, plan.pitch);
    const Addend<T> sparse[1] = {
        {k.delta + image * stage.window.pooled_image(), shares.a0, nullptr}};
    const Addend<T> dense[1] = {{k.z + image * stage.window.dense_image(), shares.a1, k.centre}};
    build_dz(stage.window, sparse, dense, shares.a2,
             k.winners + image * stage.window.template winner_words<T>(), dz);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
