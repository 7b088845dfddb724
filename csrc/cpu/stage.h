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
    const T count = static_cast<T>(plan.n * plan.stages[s].window.dense * plan.stages[s].window.dense);
    const T share = kept.given[0] != 0 ? 0 : 1 / count;
    for (int c = 0; c < plan.pitch; ++c) {
        shares.a0[c] = k.gain[c] * k.rstd[c];
        shares.a1[c] = -shares.a0[c] * k.rstd[c] * k.s2[c] * share;
        shares.a2[c] = -shares.a0[c] * k.s1[c] * share;
    }
}

// One image's operands of a backward stage, with their borders: its input, unless it is the first
// stage, whose input is the image, and dz.
template <class T>
void build_operands(const Plan<T>& plan, const Kept<T>& kept, const Shares<T>& shares, int s, int image,
                    T* x, T* dz) {
    const Stage<T>& stage = plan.stages[s];
    const StageKept<T>& k = kept.stages[s];
    if (s > 0) {
        const StageKept<T>& below = kept.stages[s - 1];
        clear_border(x, stage.conv.side, plan.pitch);
        activate(stage.conv.side, plan.pitch,
                 below.x_hat + image * plan.stages[s - 1].window.pooled_image(), below.gain, below.bias,
                 plan.slope, x);
    }
    clear_border(dz, stage.window.dense, plan.pitch);
    const Addend<T> sparse[1] = {{k.delta + image * stage.window.pooled_image(), shares.a0, nullptr}};
    const Addend<T> dense[1] = {{k.z + image * stage.window.dense_image(), shares.a1, k.centre}};
    build_dz(stage.window, sparse, dense, shares.a2,
             k.winners + image * stage.window.template winner_words<T>(), dz);
}

// Σ of the chunks' shares of a weight gradient → the flat buffer, [filters][9][channels].
template <class T>
void store_filters(const Plan<T>& plan, int s, const T* shares, int parts, ptrdiff_t stride, T* gradient) {
    const Conv<T>& g = plan.stages[s].conv;
    const bool wide = g.pitch_in % lanes<T> == 0; // see conv_wgrad
    T* to = gradient + plan.stages[s].theta;
    for (int f = 0; f < g.filters; ++f)
        for (int t = 0; t < taps; ++t, to += g.channels)
            for (int c = 0; c < g.channels; ++c) {
                const T* from = shares + (wide ? (static_cast<ptrdiff_t>(f) * taps + t) * g.pitch_in + c
                                               : (static_cast<ptrdiff_t>(t) * g.channels + c) *
                                                         g.pitch_out +
                                                     f);
                T sum = from[0];
                for (int i = 1; i < parts; ++i)
                    sum += from[i * stride];
                to[c] = sum;
            }
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
