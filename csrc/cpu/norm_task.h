// One task's batch norm, activation and pooling on its way through the images: what the op's value,
// gradient and tangents share.
//
// What an image adds to a sum over the task is a share of its own, and the shares are added in
// order.
#pragma once

#include "images.h"
#include "norm_act.h"
#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int image_sums = 4; // Σδ, Σδx̂ and their directions
// Pixels that are added up before they join a sum over an image, against rounding.
constexpr int run_pixels = 64;

template <class T> struct NormWork {
    T* shares; // [n][image_sums][pitch]
    T* sums;   // [image_sums][pitch]
    // [pitch] each, 0 behind the last channel
    T *gain, *bias, *centre, *rstd, *gain_dot, *bias_dot, *mean_dot, *q, *b0, *b1, *b2, *b3, *b4;

    NormWork(int n, int pitch, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        shares = carver.take<T>(static_cast<ptrdiff_t>(n) * image_sums * pitch);
        sums = carver.take<T>(static_cast<ptrdiff_t>(image_sums) * pitch);
        T** const vectors[] = {&gain, &bias, &centre, &rstd, &gain_dot, &bias_dot, &mean_dot,
                               &q,    &b0,   &b1,     &b2,   &b3,       &b4};
        for (T** v : vectors)
            *v = carver.take<T>(pitch);
        if (bytes)
            *bytes = carver.bytes();
    }
};

// One worker's images; all but δ, and x̂ where it is not kept, are needed only where a pixel is not
// whole vectors.
template <class T> struct NormScratch {
    T *z, *z_dot, *out;                           // dense
    T *delta, *delta_dot, *x_hat, *x_hat_dot, *y; // pooled

    NormScratch(const Window& g, bool exact, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        T** const dense[] = {&z, &z_dot, &out};
        for (T** image : dense)
            *image = carver.take<T>(exact ? 0 : g.dense_image());
        T** const pooled[] = {&delta, &delta_dot, &x_hat, &x_hat_dot, &y};
        for (T** image : pooled)
            *image = carver.take<T>(exact && image != &delta && image != &delta_dot &&
                                            (g.pool || image != &x_hat)
                                        ? 0
                                        : g.pooled_image());
        if (bytes)
            *bytes = carver.bytes();
    }
};

MAMLPP_INLINE Window window_of(const NormShape& s, int pitch) {
    return {s.side, s.pool ? s.side / 2 : s.side, pitch, s.pool};
}

// y_dot = m·(gain·x̂_dot + gain_dot·x̂ + bias_dot) of one image; x̂_dot null: 0
template <class T>
inline void direction(ptrdiff_t values, const NormWork<T>& v, int pitch, T slope, const T* x_hat,
                      const T* x_hat_dot, T* y_dot) {
    constexpr int L = lanes<T>;
    for (int c = 0; c < pitch; c += L) {
        const Vec<T> gain = Vec<T>::load(v.gain + c), bias = Vec<T>::load(v.bias + c);
        const Vec<T> gain_dot = Vec<T>::load(v.gain_dot + c);
        const Vec<T> bias_dot = Vec<T>::load(v.bias_dot + c);
        for (ptrdiff_t i = c; i < values; i += pitch) {
            const Vec<T> x = Vec<T>::load(x_hat + i);
            Vec<T> d = fma(gain_dot, x, bias_dot);
            if (x_hat_dot)
                d = fma(gain, Vec<T>::load(x_hat_dot + i), d);
            (d * slope_at(x, gain, bias, Vec<T>::all(slope))).store(y_dot + i);
        }
    }
}

// sum += Σ a·b of these values; [pitch]
template <class T>
inline void add_product(ptrdiff_t values, int pitch, const T* a, const T* b, T* sum) {
    constexpr int L = lanes<T>;
    for (int c = 0; c < pitch; c += L) {
        Vec<T> s = Vec<T>::all(0);
        for (ptrdiff_t i = c; i < values; i += pitch)
            s = fma(Vec<T>::load(a + i), Vec<T>::load(b + i), s);
        (s + Vec<T>::load(sum + c)).store(sum + c);
    }
}

// One task's op on its way through the images.
template <class T> struct Norm {
    Window g;
    int n, channels, dense, pooled; // pixels of an image, of z and behind the pooling
    T slope;
    NormWork<T> v;
    void* scratch;
    Team& team;

    Norm(const NormShape& s, void* work, void* room, Team& workers)
        : g(window_of(s, padded<T>(s.channels))), n(s.n), channels(s.channels),
          dense(s.side * s.side), pooled(g.pooled * g.pooled), slope(static_cast<T>(s.slope)),
          v(n, g.pitch, work), scratch(room), team(workers) {}

    bool exact() const { return channels == g.pitch; }
    NormScratch<T> room(int worker) const {
        size_t bytes = 0;
        NormScratch<T>(g, exact(), nullptr, &bytes);
        return {g, exact(), static_cast<char*>(scratch) + worker * bytes};
    }
    // An image of a tensor with whole vectors, as it lies or copied into `to`; null stays null.
    MAMLPP_APART const T* read(const T* images, int image, int pixels, T* to) const {
        if (!images)
            return nullptr;
        const T* from = images + static_cast<ptrdiff_t>(image) * pixels * channels;
        if (exact())
            return from;
        copy_pixels(from, pixels, channels, g.pitch, to);
        return to;
    }
    // x̂ of an image at the winners; without pooling it is not kept, but made again.
    const T* standard(const NormSaved<T>& saved, int image, const NormScratch<T>& room) const {
        if (g.pool)
            return read(saved.x_hat, image, pooled, room.x_hat);
        normalise(g, read(saved.z, image, dense, room.z), v.gain, v.centre, v.rstd, room.x_hat,
                  nullptr);
        return room.x_hat;
    }
    // Where an image of a tensor is to be written, and its way from there into the tensor.
    T* target(T* images, int image, int pixels, T* room) const {
        return exact() ? images + static_cast<ptrdiff_t>(image) * pixels * channels : room;
    }
    void finish(const T* from, int pixels, T* images, int image) const {
        if (!exact())
            copy_pixels(from, pixels, g.pitch, channels,
                        images + static_cast<ptrdiff_t>(image) * pixels * channels);
    }
    template <class W> W* winners_of(W* winners, int image) const {
        return winners ? winners + image * g.template winner_words<T>() : nullptr;
    }
    T* share(int image, int which) const {
        return v.shares + (static_cast<ptrdiff_t>(image) * image_sums + which) * g.pitch;
    }
    T* sum(int which) const { return v.sums + which * g.pitch; }
    T per_value() const { // 1 / the values behind a statistic of the batch
        return static_cast<T>(1 / (static_cast<double>(n) * dense));
    }

    // A vector of the tensor [channels] with zeros behind it; null: zeros
    MAMLPP_APART void load(const T* from, T* to) const {
        for (int c = 0; c < g.pitch; ++c)
            to[c] = from && c < channels ? from[c] : 0;
    }
    void load(const NormSaved<T>& saved) const {
        load(saved.gain, v.gain);
        load(saved.bias, v.bias);
        load(saved.centre, v.centre);
        load(saved.rstd, v.rstd);
    }
    MAMLPP_APART void merge(int which) const {
        add_shares(share(0, which), n, static_cast<ptrdiff_t>(image_sums) * g.pitch, g.pitch,
                   sum(which));
    }
    void store_sum(int which, T* to) const {
        for (int c = 0; c < channels; ++c)
            to[c] = sum(which)[c];
    }
    // f(first, pixels) for each run of a pooled image
    template <class F> void runs(F f) const {
        for (int first = 0; first < pooled; first += run_pixels)
            f(first, pooled - first < run_pixels ? pooled - first : run_pixels);
    }
    // δ = m·dy into `delta`, and its two sums from `which` on
    void bend_image(const T* dy, int image, const T* x_hat, int which, T* delta) const {
        copy_pixels(dy + static_cast<ptrdiff_t>(image) * pooled * channels, pooled, channels,
                    g.pitch, delta);
        T* const sums[2] = {share(image, which), share(image, which + 1)};
        runs([&](int first, int pixels) {
            const ptrdiff_t at = static_cast<ptrdiff_t>(first) * g.pitch;
            bend(pixels, g.pitch, delta + at, x_hat + at, v.gain, v.bias, slope, sums, first == 0);
        });
    }

    // Statistics of the images' moments, shares 0 and 1, each of one image's pixels.
    void statistics(const NormFwd<T>& task, double eps) const {
        for (int c = 0; c < channels; ++c) {
            double mean = 0, m2 = 0;
            for (int i = 0; i < n; ++i)
                mean += static_cast<double>(share(i, 0)[c]);
            mean /= n;
            for (int i = 0; i < n; ++i) {
                const double d = static_cast<double>(share(i, 0)[c]) - mean;
                m2 += static_cast<double>(share(i, 1)[c]) + d * d * dense;
            }
            task.mean[c] = static_cast<T>(mean);
            task.var[c] = static_cast<T>(m2 / (static_cast<double>(n) * dense));
            const T var = task.given_mean ? task.given_var[c] : task.var[c];
            task.rstd[c] = static_cast<T>(1 / sqrt(static_cast<double>(var) + eps));
        }
        load(task.given_mean ? task.given_mean : task.mean, v.centre);
        load(task.rstd, v.rstd);
    }
    // dz_dot = b₀S(δ_dot) + b₁S(δ) + b₂(z − μ) + b₃(z_dot − μ_dot) + b₄, of given statistics the
    // first two alone: their sums may be infinite
    void dot_coefficients(bool given) const {
        const T part = per_value();
        const T *s1 = sum(0), *s2 = sum(1), *s1_dot = sum(2), *s2_dot = sum(3);
        for (int c = 0; c < g.pitch; ++c) {
            const T r = v.rstd[c], scale = v.gain[c] * r;
            const T scale_dot = v.gain_dot[c] * r - scale * r * v.q[c];
            v.b0[c] = scale;
            v.b1[c] = scale_dot;
            v.b3[c] = given ? 0 : -scale * r * s2[c] * part;
            v.b2[c] =
                given ? 0
                      : -r * ((scale_dot * s2[c] + scale * s2_dot[c]) * part + v.b3[c] * v.q[c]);
            v.b4[c] = given ? 0 : -(scale_dot * s1[c] + scale * s1_dot[c]) * part;
        }
    }
    void build_dot(const T* delta, const T* delta_dot, const T* z, const T* z_dot,
                   const uint16_t* winners, bool given, T* to) const {
        const Addend<T> pulse{delta, v.b1, nullptr}, pulse_dot{delta_dot, v.b0, nullptr};
        const Addend<T> plain{z, v.b2, v.centre}, dot{z_dot, v.b3, v.mean_dot};
        const Addend<T> sparse[2] = {pulse, pulse_dot}, one_sparse[1] = {pulse};
        const Addend<T> dense_terms[2] = {plain, dot}, one_dense[1] = {plain};
        if (given && delta_dot)
            build_dz<true>(g, sparse, one_dense, v.b4, winners, to, false);
        else if (given)
            build_dz<true>(g, one_sparse, one_dense, v.b4, winners, to, false);
        else if (delta_dot && z_dot)
            build_dz(g, sparse, dense_terms, v.b4, winners, to, false);
        else if (delta_dot)
            build_dz(g, sparse, one_dense, v.b4, winners, to, false);
        else if (z_dot)
            build_dz(g, one_sparse, dense_terms, v.b4, winners, to, false);
        else
            build_dz(g, one_sparse, one_dense, v.b4, winners, to, false);
    }
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
