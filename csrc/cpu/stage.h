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

template <class T> void load_stem(const Plan<T>& plan, const T* theta, const Filters<T>& to) {
    if (plan.stages[0].stem)
        pack_stem(theta, plan.filters(), plan.stages[0].conv.channels, plan.pitch, to.stem);
}

// A stage's filters for its value, and for the gradient of its inputs; `buffer` is one of
// [9][channels or filters][pitch].
template <class T>
Packed<T> load_fwd(const Plan<T>& plan, int s, const T* theta, T* buffer, const Filters<T>& to) {
    const Conv<T>& g = plan.stages[s].conv;
    const Packed<T> packed = packed_in(g, to.room);
    pack_fwd(plan.winograd, g, {0, g.channels}, theta + plan.stages[s].theta, buffer, packed);
    return packed;
}
template <class T>
Packed<T> load_bwd(const Plan<T>& plan, int s, const T* theta, T* buffer, const Filters<T>& to) {
    if (s == 0)
        return {}; // images need none
    const Conv<T>& g = plan.stages[s].back;
    const Packed<T> packed = packed_in(g, to.room);
    pack_bwd(plan.winograd, g, {0, g.filters}, theta + plan.stages[s].theta, buffer, packed);
    return packed;
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
        T* const share = shares + static_cast<ptrdiff_t>(chunk) * size;
        for (int i = begin; i < chunk_begin(plan.n, chunk + 1); ++i) {
            const T* const of = values + i * stage.window.pooled_image();
            const uint16_t* const at = winners + i * stage.window.template winner_words<T>();
            if (plan.rounded)
                plan.rounded->gradient(g.side, g.channels,
                                       images.stem.rounded + i * images.stem.rounded_size,
                                       {plan.pitch, of, at, share, i == begin});
            else
                stem_gradient(stage.window, images.stem.images + i * g.channels * plane(g.side),
                              g.channels, of, at, share, i == begin, workers[worker].row);
        }
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

// How dz follows from δ and z: dz = a₀S(δ) + a₁(z − μ) + a₂, a₀ = gain·r. Of given statistics the
// first alone: the sums behind the others may be infinite.
template <class T>
void dz_coefficients(const Plan<T>& plan, const Kept<T>& kept, int s, const Shares<T>& shares) {
    const StageKept<T>& k = kept.stages[s];
    const T count =
        static_cast<T>(plan.n * plan.stages[s].window.dense * plan.stages[s].window.dense);
    const bool given = kept.given[0] != 0;
    const T share = 1 / count;
    for (int c = 0; c < plan.pitch; ++c) {
        shares.a0[c] = k.gain[c] * k.rstd[c];
        shares.a1[c] = given ? 0 : -shares.a0[c] * k.rstd[c] * k.s2[c] * share;
        shares.a2[c] = given ? 0 : -shares.a0[c] * k.s1[c] * share;
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
