// A convolution of one task's images as an op of its own: the value, the two gradients, and the
// tangents of all three, which are sums of two such products.
#include "cpu.h"
#include "images.h"
#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

template <class T> struct ConvPlan {
    Conv<T> g;      // of conv_fwd and conv_wgrad: pixels of the input as they are
    Conv<T> inward; // of conv_dgrad: pixels of the input are whole vectors
    int n;

    explicit ConvPlan(const ConvShape& s)
        : g{s.channels, s.channels, s.side, s.stride, s.filters, padded<T>(s.filters)}, inward(g),
          n(s.n) {
        inward.pitch_in = padded<T>(s.channels);
    }
    bool wide() const { return g.pitch_in % lanes<T> == 0; } // see conv_wgrad
    ptrdiff_t x_image() const { return static_cast<ptrdiff_t>(g.side) * g.side * g.channels; }
    ptrdiff_t z_image() const { return static_cast<ptrdiff_t>(g.out()) * g.out() * g.filters; }
    ptrdiff_t packed() const { // values of the filters of one product, in either order
        const ptrdiff_t fwd = static_cast<ptrdiff_t>(g.channels) * g.pitch_out;
        const ptrdiff_t bwd = static_cast<ptrdiff_t>(g.filters) * inward.pitch_in;
        return taps * (fwd > bwd ? fwd : bwd);
    }
    ptrdiff_t share() const { // of a weight gradient
        return taps * (wide() ? static_cast<ptrdiff_t>(g.filters) * g.pitch_in
                              : static_cast<ptrdiff_t>(g.channels) * g.pitch_out);
    }
};

template <class T> struct ConvWork {
    T* w[2];
    T* shares; // [chunks][share]

    ConvWork(const ConvPlan<T>& plan, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        for (T*& packed : w)
            packed = carver.take<T>(plan.packed());
        shares = carver.take<T>(chunks(plan.n) * plan.share());
        if (bytes)
            *bytes = carver.bytes();
    }
};

// One worker's: operands with their borders, and an image whose pixels are whole vectors.
template <class T> struct ConvScratch {
    T *x[2], *dz[2], *image;

    ConvScratch(const ConvPlan<T>& plan, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        for (int k = 0; k < 2; ++k) {
            x[k] = carver.take<T>(group_of(plan.g) * plan.g.in_image());
            dz[k] = carver.take<T>(group_of(plan.g) * plan.g.dz_image());
        }
        const ptrdiff_t out =
            static_cast<ptrdiff_t>(plan.g.out()) * plan.g.out() * plan.g.pitch_out;
        const ptrdiff_t in =
            static_cast<ptrdiff_t>(plan.g.side) * plan.g.side * plan.inward.pitch_in;
        image = carver.take<T>(in > out ? in : out);
        if (bytes)
            *bytes = carver.bytes();
    }
};

template <class T> ConvScratch<T> scratch_of(const ConvPlan<T>& plan, void* scratch, int worker) {
    size_t bytes = 0;
    ConvScratch<T>(plan, nullptr, &bytes);
    return {plan, static_cast<char*>(scratch) + worker * bytes};
}

// The gradients' share of images first … first + size − 1, with filters packed in `work`.
template <class T>
void group_bwd(const ConvPlan<T>& plan, const ConvTask<T>& task, const ConvWork<T>& work,
               const ConvScratch<T>& scratch, int first, int size, T* share, bool fresh) {
    const Conv<T>& g = plan.g;
    Pair<T> outer_pairs[2];
    int products = 0;
    for (int k = 0; k < 2; ++k) {
        const ConvPair<T>& pair = task.pairs[k];
        const bool weighs = task.dw && pair.x && pair.dz;
        for (int i = 0; i < size; ++i) {
            if (pair.dz)
                border_image(pair.dz + (first + i) * plan.z_image(), g.out(), g.filters,
                             g.pitch_out, scratch.dz[k] + i * g.dz_image());
            if (weighs)
                border_image(pair.x + (first + i) * plan.x_image(), g.side, g.channels, g.channels,
                             scratch.x[k] + i * g.in_image());
        }
        if (weighs)
            outer_pairs[products++] = {scratch.x[k], scratch.dz[k]};
    }
    for (int i = 0; task.dx && i < size; ++i) {
        Pair<T> pairs[2];
        int count = 0;
        for (int k = 0; k < 2; ++k)
            if (task.pairs[k].dz && task.pairs[k].w)
                pairs[count++] = {scratch.dz[k] + i * g.dz_image(), work.w[k]};
        T* to = task.dx + (first + i) * plan.x_image();
        const bool exact = plan.inward.pitch_in == g.channels;
        conv_dgrad(plan.inward, pairs, count, exact ? to : scratch.image, [](int, const T*) {});
        if (!exact)
            copy_pixels(scratch.image, static_cast<ptrdiff_t>(g.side) * g.side,
                        plan.inward.pitch_in, g.channels, to);
    }
    if (task.dw)
        conv_wgrad(g, outer_pairs, products, size, share, fresh);
}

} // namespace

template <class T> size_t conv_work_bytes(const ConvShape& shape) {
    size_t bytes = 0;
    ConvWork<T>(ConvPlan<T>(shape), nullptr, &bytes);
    return bytes;
}

template <class T> size_t conv_scratch_bytes(const ConvShape& shape) {
    size_t bytes = 0;
    ConvScratch<T>(ConvPlan<T>(shape), nullptr, &bytes);
    return bytes;
}

template <class T>
void task_conv_fwd(const ConvShape& shape, const ConvTask<T>& task, void* block, void* scratch,
                   Team& team) {
    const ConvPlan<T> plan(shape);
    const ConvWork<T> work(plan, block);
    const Conv<T>& g = plan.g;
    for (int k = 0; k < 2; ++k)
        if (task.pairs[k].w)
            pack_filters(task.pairs[k].w, g.filters, g.channels, g.pitch_out, work.w[k]);
    each(team, plan.n, [&](int image, int worker) {
        const ConvScratch<T> room = scratch_of(plan, scratch, worker);
        Pair<T> pairs[2];
        int count = 0;
        for (int k = 0; k < 2; ++k)
            if (task.pairs[k].w) {
                border_image(task.pairs[k].x + image * plan.x_image(), g.side, g.channels,
                             g.channels, room.x[k]);
                pairs[count++] = {room.x[k], work.w[k]};
            }
        T* to = task.z + image * plan.z_image();
        const bool exact = g.pitch_out == g.filters;
        conv_fwd(g, pairs, count, exact ? to : room.image, [](int, const T*) {});
        if (!exact)
            copy_pixels(room.image, static_cast<ptrdiff_t>(g.out()) * g.out(), g.pitch_out,
                        g.filters, to);
    });
}

template <class T>
void task_conv_bwd(const ConvShape& shape, const ConvTask<T>& task, void* block, void* scratch,
                   Team& team) {
    const ConvPlan<T> plan(shape);
    const ConvWork<T> work(plan, block);
    for (int k = 0; k < 2; ++k)
        if (task.dx && task.pairs[k].w && task.pairs[k].dz)
            pack_filters_bwd(task.pairs[k].w, plan.g.filters, plan.g.channels, plan.inward.pitch_in,
                             work.w[k]);
    const int parts = chunks(plan.n), most = group_of(plan.g);
    each(team, parts, [&](int part, int worker) {
        const ConvScratch<T> room = scratch_of(plan, scratch, worker);
        const int begin = chunk_begin(plan.n, part), end = chunk_begin(plan.n, part + 1);
        for (int first = begin; first < end; first += most)
            group_bwd(plan, task, work, room, first, first + most < end ? most : end - first,
                      work.shares + part * plan.share(), first == begin);
    });
    if (task.dw)
        store_filters(plan.g, work.shares, parts, plan.share(), task.dw);
}

template size_t conv_work_bytes<float>(const ConvShape&);
template size_t conv_work_bytes<double>(const ConvShape&);
template size_t conv_scratch_bytes<float>(const ConvShape&);
template size_t conv_scratch_bytes<double>(const ConvShape&);
template void task_conv_fwd(const ConvShape&, const ConvTask<float>&, void*, void*, Team&);
template void task_conv_fwd(const ConvShape&, const ConvTask<double>&, void*, void*, Team&);
template void task_conv_bwd(const ConvShape&, const ConvTask<float>&, void*, void*, Team&);
template void task_conv_bwd(const ConvShape&, const ConvTask<double>&, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
