// What a pass over one task's images works on: sizes, and where its arrays lie in their blocks.
#pragma once

#include "../ops.h"
#include "convolve.h"
#include "head.h"
#include "stem.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// A worker takes a chunk of images through a stage at a time. The weight gradient of a chunk is one
// sum, and those of the chunks are added in order, so that the result does not depend on the team.
// Few, because their sums are as long as the filters; an even number, for an even number of
// workers.
constexpr int most_of_chunk = 6;
MAMLPP_INLINE int chunks(int n) {
    return n < 2 ? n : 2 * ((n + 2 * most_of_chunk - 1) / (2 * most_of_chunk));
}
MAMLPP_INLINE int chunk_begin(int n, int chunk) {
    return static_cast<int>(static_cast<ptrdiff_t>(n) * chunk / chunks(n));
}
// Bytes of a chunk's operands that a stage builds at once, so that they stay in the cache.
constexpr ptrdiff_t group_bytes = 512 * 1024;
template <class T> MAMLPP_INLINE int group_of(const Conv<T>& g) { // the images that makes
    const ptrdiff_t bytes = (g.in_image() + g.dz_image()) * static_cast<ptrdiff_t>(sizeof(T));
    const ptrdiff_t images = group_bytes / bytes;
    return images < 1 ? 1 : images > most_of_chunk ? most_of_chunk : static_cast<int>(images);
}

// Calls group(first, size) for the images of a chunk, as many at once as are built.
template <class T, class F>
MAMLPP_INLINE void for_groups(const Conv<T>& g, int n, int chunk, F group) {
    const int end = chunk_begin(n, chunk + 1), most = group_of(g);
    for (int first = chunk_begin(n, chunk); first < end; first += most)
        group(first, first + most < end ? most : end - first);
}

// The geometry of one stage, and of its part of the flat buffers.
template <class T> struct Stage {
    Conv<T> conv; // of the value, or its tangent
    Conv<T> back; // of the gradients
    Window window;
    bool stem;       // by its patch moments; only the first one, where it pools
    ptrdiff_t theta; // where its filters begin
};

constexpr int max_stages = 16;

// What takes the products of a pass in this precision: this set, or for it one of bfloat16.
template <class T> inline const Winograd<T>& winograd_of(Precision precision) {
    if constexpr (sizeof(T) == sizeof(float))
        if (precision != Precision::fp32)
            return rounded_winograd(precision);
    return winograd<T>();
}

template <class T> inline const RoundedStem<T>* rounded_stem_of(Precision precision) {
    if constexpr (sizeof(T) == sizeof(float))
        return rounded_stem(precision);
    return nullptr;
}

template <class T> struct Plan {
    const Winograd<T>& winograd;
    const RoundedStem<T>* rounded; // of a first stage that pools; null: by stem.h
    Stage<T> stages[max_stages] = {};
    int n, count, pitch;
    Head head;
    ptrdiff_t theta_head;
    T slope;

    // `decides`: what a pass computes; a tangent's winners are known.
    Plan(const Net& net, int images, Decides decides = Decides::winners)
        : winograd(winograd_of<T>(net.precision)), rounded(rounded_stem_of<T>(net.precision)),
          n(images), count(net.stages), pitch(padded<T>(net.filters)) {
        if (rounded && (!net.pool || net.channels < rounded->least_channels ||
                        net.channels > rounded->most_channels))
            rounded = nullptr;
        slope = static_cast<T>(net.slope);
        int side = net.side, channels = net.channels;
        ptrdiff_t theta = 0;
        for (int s = 0; s < count; ++s) {
            Stage<T>& stage = stages[s];
            const int stride = net.pool ? 1 : 2;
            const Conv<T> g{channels, s ? pitch : channels, side, stride, net.filters, pitch};
            stage.conv = tiled(g, images, winograd.most, decides);
            stage.back = tiled(g, images, winograd.most, Decides::nothing);
            const int dense = stage.conv.out();
            stage.window = {dense, net.pool ? dense / 2 : dense, pitch, net.pool};
            stage.stem = s == 0 && net.pool;
            stage.theta = theta;
            theta += static_cast<ptrdiff_t>(net.filters) * taps * channels;
            side = stage.window.pooled;
            channels = net.filters;
        }
        theta_head = theta;
        head = {images, net.filters * (net.pool ? side * side : 1), net.ways};
    }
    int filters() const { return stages[0].conv.filters; }
    bool mean_features() const { return !stages[0].window.pool; }
    int patch() const { return stages[0].conv.channels * taps; }
};

// Filters as they are read: the stem's, and room for another stage's in one order, which are packed
// when it is their turn: so they are read while the cache has them.
template <class T> struct Filters {
    T* stem; // [patch][pitch]
    T* room;

    Filters(const Plan<T>& plan, Carver& carver) {
        ptrdiff_t most = 0;
        for (int i = 0; i < plan.count; ++i) {
            const Stage<T>& s = plan.stages[i];
            const ptrdiff_t fwd = s.stem ? 0 : fwd_size(plan.winograd, s.conv);
            const ptrdiff_t bwd = i ? bwd_size(plan.winograd, s.back) : 0;
            const ptrdiff_t larger = fwd > bwd ? fwd : bwd;
            most = larger > most ? larger : most;
        }
        const ptrdiff_t patches = plan.stages[0].stem ? plan.patch() : 0;
        stem = carver.take<T>(patches * plan.pitch);
        room = carver.take<T>(most);
    }
};

// The images of a set: for a stem as it reads them, otherwise NHWC with a border.
template <class T> struct Images {
    StemImages<T> stem;
    T* bordered; // [n][span][span][channels]

    Images(const Plan<T>& plan, void* block, size_t* bytes = nullptr) : stem{}, bordered(nullptr) {
        Carver carver(block);
        const Stage<T>& s = plan.stages[0];
        const int d = plan.patch();
        if (s.stem) {
            stem.images =
                carver.take<T>(plan.n * s.conv.channels * plane(s.conv.side) + pick_slack);
            stem.rounded_size =
                plan.rounded ? plan.rounded->image_size(s.conv.side, s.conv.channels) : 0;
            stem.rounded = carver.take<uint16_t>(plan.n * stem.rounded_size);
            stem.pivot = carver.take<double>(s.conv.channels);
            stem.mean = carver.take<double>(d);
            stem.cov = carver.take<double>(static_cast<ptrdiff_t>(d) * d);
        } else {
            bordered = carver.take<T>(plan.n * s.conv.in_image());
        }
        if (bytes)
            *bytes = carver.bytes();
    }
};

// What a pass keeps of one stage. Vectors are [pitch].
template <class T> struct StageKept {
    T* z;              // [n] dense; the stem has none
    T* x_hat;          // [n] pooled
    uint16_t* winners; // [n]
    T* delta;          // [n] pooled, of the backward pass
    T *gain, *bias, *centre, *rstd, *s1, *s2;
};

template <class T> struct Kept {
    StageKept<T> stages[max_stages];
    T *h, *softmax, *residual; // of the head
    double* projected;         // [patch][filters] cov·w, of the stem
    T* outer;                  // [patch][pitch] Σ δ·patch, of the stem
    T* given;                  // [1] 1: statistics were given and are constants

    // What a tangent will not read shares its memory: δ of a pooled stage takes the place of the z
    // that it is computed from, image by image.
    Kept(const Plan<T>& plan, void* block, bool keep, size_t* bytes = nullptr) {
        Carver carver(block);
        for (int i = 0; i < plan.count; ++i) {
            const Stage<T>& s = plan.stages[i];
            StageKept<T>& k = stages[i];
            k.z = s.stem ? nullptr : carver.take<T>(plan.n * s.window.dense_image());
            k.x_hat = carver.take<T>(plan.n * s.window.pooled_image());
            k.winners = carver.take<uint16_t>(plan.n * s.window.template winner_words<T>());
            const bool shared = !keep && s.window.pool && i + 1 < plan.count;
            k.delta = shared ? nullptr : carver.take<T>(plan.n * s.window.pooled_image());
            if (i > 0 && !stages[i - 1].delta)
                stages[i - 1].delta = k.z;
            T** const vectors[] = {&k.gain, &k.bias, &k.centre, &k.rstd, &k.s1, &k.s2};
            for (T** v : vectors)
                *v = carver.take<T>(plan.pitch);
        }
        const Head& g = plan.head;
        h = carver.take<T>(static_cast<ptrdiff_t>(g.n) * g.d);
        softmax = carver.take<T>(g.n * g.ways);
        residual = carver.take<T>(g.n * g.ways);
        const bool stem = plan.stages[0].stem;
        projected = stem ? carver.take<double>(plan.patch() * plan.filters()) : nullptr;
        outer = stem ? carver.take<T>(static_cast<ptrdiff_t>(plan.patch()) * plan.pitch) : nullptr;
        given = carver.take<T>(1);
        if (bytes)
            *bytes = carver.bytes();
    }
};

// What a pass works with beside what it keeps: its filters, and of each sum a share for every image
// or chunk.
template <class T> struct Shares {
    Filters<T> packed;
    T* sums;    // [n][2][pitch]
    T* filters; // [chunks][filters · 9 · pitch, or channels · 9 · pitch for a first layer]
    T *a0, *a1, *a2, *b1, *b2, *b4, *mean_dot, *q, *s1_dot, *s2_dot; // [pitch]
    T* dh;                                                           // [n][d]

    Shares(const Plan<T>& plan, Carver& carver) : packed(plan, carver) {
        sums = carver.take<T>(static_cast<ptrdiff_t>(plan.n) * 2 * plan.pitch);
        filters = carver.take<T>(chunks(plan.n) * filters_size(plan));
        T** const vectors[] = {&a0, &a1, &a2, &b1, &b2, &b4, &mean_dot, &q, &s1_dot, &s2_dot};
        for (T** v : vectors)
            *v = carver.take<T>(plan.pitch);
        dh = carver.take<T>(static_cast<ptrdiff_t>(plan.head.n) * plan.head.d);
    }
    static ptrdiff_t filters_size(const Plan<T>& plan) {
        const int most = plan.filters() > plan.stages[0].conv.channels
                             ? plan.filters()
                             : plan.stages[0].conv.channels;
        return static_cast<ptrdiff_t>(taps) * most * plan.pitch;
    }
};

// What the images of a set give to the moments of their patches: the matrix of patch_products each.
template <class T> struct PatchShares {
    static ptrdiff_t size(const Plan<T>& plan) { return plan.patch() * (plan.patch() + 1); }
};

// What a tangent keeps of its forward half for its backward half.
template <class T> struct Dots {
    struct Stage {
        T *z, *x_hat, *delta;
    };
    Filters<T> packed; // the direction's
    Stage stages[max_stages];
    T *h, *logits, *residual;
    T* statistics; // [stages][2][pitch] mean of z_dot and q

    Dots(const Plan<T>& plan, Carver& carver) : packed(plan, carver) {
        for (int i = 0; i < plan.count; ++i) {
            const auto& s = plan.stages[i];
            stages[i].z = s.stem ? nullptr : carver.take<T>(plan.n * s.window.dense_image());
            stages[i].x_hat = carver.take<T>(plan.n * s.window.pooled_image());
            stages[i].delta = carver.take<T>(plan.n * s.window.pooled_image());
        }
        h = carver.take<T>(static_cast<ptrdiff_t>(plan.head.n) * plan.head.d);
        logits = carver.take<T>(plan.head.n * plan.head.ways);
        residual = carver.take<T>(plan.head.n * plan.head.ways);
        statistics = carver.take<T>(static_cast<ptrdiff_t>(plan.count) * 2 * plan.pitch);
    }
};

// One worker's buffers with a border, for a group of a chunk's images; room for the largest stage.
template <class T> struct Scratch {
    T *x, *x_dot, *dz, *dz_dot; // groups of inputs and of gradients
    Cells<T> cells_of;          // groups, and a chunk's weight gradient
    T* row;                     // of the stem's windows
    double* patches;            // of patch_products: the image and a plane of ones

    Scratch(const Plan<T>& plan, void* block, size_t* bytes = nullptr) {
        ptrdiff_t in = 0, out = 0;
        CellRoom<T> largest(plan.winograd);
        for (int i = 0; i < plan.count; ++i) {
            const Stage<T>& s = plan.stages[i];
            const ptrdiff_t group = group_of(s.conv);
            if (!s.stem) {
                in = i && group * s.conv.in_image() > in ? group * s.conv.in_image() : in;
                out = group * s.conv.dz_image() > out ? group * s.conv.dz_image() : out;
                largest.include(s.conv);
                largest.include(s.back);
            }
            const ptrdiff_t end = span(s.window.pooled); // the last activation, for the head
            in = end * end * plan.pitch > in ? end * end * plan.pitch : in;
        }
        Carver carver(block);
        x = carver.take<T>(in);
        x_dot = carver.take<T>(in);
        dz = carver.take<T>(out);
        dz_dot = carver.take<T>(out);
        cells_of = largest.take(carver);
        const Conv<T>& first = plan.stages[0].conv;
        row = carver.take<T>(windows_size(first.side, first.channels));
        patches = carver.take<double>((first.channels + 1) * plane(first.side));
        if (bytes)
            *bytes = carver.bytes();
    }
};

// team.each with a closure: f(item, worker)
template <class F> inline void each(Team& team, int items, F f) {
    team.each(
        items,
        [](void* context, int item, int worker) { (*static_cast<F*>(context))(item, worker); }, &f);
}

template <class T> struct Workers { // each worker's scratch
    const Plan<T>& plan;
    char* block;
    size_t bytes;

    Workers(const Plan<T>& p, void* scratch)
        : plan(p), block(static_cast<char*>(scratch)), bytes(0) {
        Scratch<T>(p, nullptr, &bytes);
    }
    Scratch<T> operator[](int worker) const { return {plan, block + worker * bytes}; }
};

// Σ over `count` shares of `size` values, `stride` apart, into the first `size` values of `to`.
template <class S, class T>
MAMLPP_APART void add_shares(const S* shares, int count, ptrdiff_t stride, int size, T* to) {
    for (int c = 0; c < size; ++c) {
        double sum = 0;
        for (int i = 0; i < count; ++i)
            sum += static_cast<double>(shares[i * stride + c]);
        to[c] = static_cast<T>(sum);
    }
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
