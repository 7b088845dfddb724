// A convolution of one task's images as an op of its own: the value, the two gradients, and the
// tangents of all three, which are sums of two such products. 3×3 filters are here, others in
// sized.cpp.
#include "cpu.h"
#include "images.h"
#include "pass.h"
#include "sized.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// Sums of a weight gradient are as long as the filters: of many bytes, few.
constexpr ptrdiff_t many_bytes = 1024 * 1024;
constexpr int few_parts = 4;
// What the filters are shared out in to be packed and stored.
constexpr int piece = 32;
inline int pieces(int rows) { return (rows + piece - 1) / piece; }
inline Span rows_of(int i, int rows) {
    return {i * piece, (i + 1) * piece < rows ? (i + 1) * piece : rows};
}

template <class T> struct ConvPlan {
    Conv<T> g;      // of the value, or the weight gradient: pixels of the input as they are
    Conv<T> inward; // of the input gradient: they are whole vectors
    int n;
    bool by_rows; // the workers share out rows of tiles, not images
    int parts;    // of the images: each has a sum of its own of the weight gradient

    ConvPlan(const ConvShape& s, ConvPart what)
        : g{s.channels, s.channels, s.side, s.stride, s.filters, padded<T>(s.filters)}, inward(g),
          n(s.n) {
        inward.pitch_in = padded<T>(s.channels);
        const Decides decides = what == ConvPart::value ? Decides::winners : Decides::nothing;
        g = tiled(g, n, winograd<T>().most, decides);
        inward = tiled(inward, n, winograd<T>().most, decides);
        by_rows = g.tile && g.channels == g.pitch_in && g.filters == g.pitch_out;
        parts = chunks(n);
        if (parts > few_parts && share() * static_cast<ptrdiff_t>(sizeof(T)) > many_bytes)
            parts = few_parts;
    }
    bool wide() const { return g.pitch_in % lanes<T> == 0; } // see conv_wgrad
    ptrdiff_t in_pixels() const { return static_cast<ptrdiff_t>(g.side) * g.side; }
    ptrdiff_t out_pixels() const { return static_cast<ptrdiff_t>(g.out()) * g.out(); }
    ptrdiff_t x_image() const { return in_pixels() * g.channels; }
    ptrdiff_t z_image() const { return out_pixels() * g.filters; }
    // Images whose operands are built at once: of small ones, a strip of tiles for Winograd.
    int group() const {
        const int fit = group_of(g);
        if (!g.tile)
            return fit;
        const int tiles = tile_columns(g.side, g.tile) * tile_columns(g.side, g.tile);
        const int strip = (strip_tiles(g.tile) + tiles - 1) / tiles;
        const int wanted = strip > fit ? strip : fit;
        return wanted < most_of_chunk ? wanted : most_of_chunk;
    }
    int rows() const { return by_rows ? tile_columns(g.side, g.tile) : 1; } // of an image
    // f(first image, part of a group, whether it is the first) for the groups of a part
    template <class F> void for_groups(int part, F f) const {
        const ptrdiff_t all = static_cast<ptrdiff_t>(n) * rows();
        const int begin = static_cast<int>(all * part / parts);
        const int end = static_cast<int>(all * (part + 1) / parts);
        const int most = group(), last = (end + rows() - 1) / rows();
        for (int first = begin / rows(); first < last; first += most) {
            const int size = first + most < last ? most : last - first, at = first * rows();
            Part group = all_of(inward, size); // g has these tiles, or none
            if (by_rows) {
                group.rows.begin = begin > at ? begin - at : 0;
                group.rows.end = end < at + group.rows.end ? end - at : group.rows.end;
            }
            f(first, group, at <= begin);
        }
    }
    ptrdiff_t share() const { // of a weight gradient
        return taps * (wide() ? static_cast<ptrdiff_t>(g.filters) * g.pitch_in
                              : static_cast<ptrdiff_t>(g.channels) * g.pitch_out);
    }
};

template <class T> struct ConvWork {
    Packed<T> filters[2] = {};
    T* packing;
    T* shares = nullptr; // [parts][share], of the weight gradient

    ConvWork(const ConvPlan<T>& plan, ConvPart what, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        const bool gradients = what == ConvPart::gradients;
        const Conv<T>& g = gradients ? plan.inward : plan.g;
        const ptrdiff_t size = gradients ? bwd_size(winograd<T>(), g) : fwd_size(winograd<T>(), g);
        for (int k = 0; k < (what == ConvPart::value ? 1 : 2); ++k)
            filters[k] = packed_in(g, carver.take<T>(size));
        packing = carver.take<T>(packing_size(plan.inward));
        if (gradients)
            shares = carver.take<T>(plan.parts * plan.share());
        if (bytes)
            *bytes = carver.bytes();
    }
};

// One worker's: a group's operands with their borders, and its images with pixels of whole vectors.
template <class T> struct ConvScratch {
    T *x[2], *dz[2], *images;
    Cells<T> cells_of;

    ConvScratch(const ConvPlan<T>& plan, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        const int group = plan.group();
        for (int k = 0; k < 2; ++k) {
            x[k] = carver.take<T>(group * plan.g.in_image());
            dz[k] = carver.take<T>(group * plan.g.dz_image());
        }
        const ptrdiff_t out = plan.out_pixels() * plan.g.pitch_out;
        const ptrdiff_t in = plan.in_pixels() * plan.inward.pitch_in;
        images = carver.take<T>(group * (in > out ? in : out));
        CellRoom<T> largest(winograd<T>());
        largest.include(plan.g);
        largest.include(plan.inward);
        cells_of = largest.take(carver);
        if (bytes)
            *bytes = carver.bytes();
    }
};

template <class T> ConvScratch<T> scratch_of(const ConvPlan<T>& plan, void* scratch, int worker) {
    size_t bytes = 0;
    ConvScratch<T>(plan, nullptr, &bytes);
    return {plan, static_cast<char*>(scratch) + worker * bytes};
}

// The gradients' share of a group of images from the first on, with filters packed in `work`.
template <class T>
void group_bwd(const ConvPlan<T>& plan, const ConvTask<T>& task, const ConvWork<T>& work,
               const ConvScratch<T>& scratch, int first, Part group, T* share, bool fresh) {
    const int size = group.images;
    const Conv<T>& g = plan.g;
    Pair<T> outer_pairs[2];
    Factors<T> factors[2];
    int outer_count = 0, count = 0;
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
            outer_pairs[outer_count++] = {scratch.x[k], scratch.dz[k]};
        if (task.dx && pair.dz && pair.w)
            factors[count++] = {scratch.dz[k], work.filters[k]};
    }
    if (task.dx) {
        T* const to = task.dx + first * plan.x_image();
        const bool exact = plan.inward.pitch_in == g.channels;
        convolve_bwd(winograd<T>(), plan.inward, factors, count, group, scratch.cells_of,
                     exact ? to : scratch.images, each_row<T>([](int, int, const T*) {}));
        if (!exact)
            copy_pixels(scratch.images, size * plan.in_pixels(), plan.inward.pitch_in, g.channels,
                        to);
    }
    if (task.dw)
        add_wgrad(winograd<T>(), g, outer_pairs, outer_count, group, fresh, scratch.cells_of,
                  share);
}

template <class T>
void fwd(const ConvPlan<T>& plan, const ConvTask<T>& task, const ConvWork<T>& work, void* scratch,
         Team& team) {
    const Conv<T>& g = plan.g;
    for (int k = 0; k < 2; ++k)
        if (task.pairs[k].w)
            each(team, pieces(g.channels), [&](int i, int) {
                pack_fwd(winograd<T>(), g, rows_of(i, g.channels), task.pairs[k].w, work.packing,
                         work.filters[k]);
            });
    each(team, plan.parts, [&](int part, int worker) {
        const ConvScratch<T> room = scratch_of(plan, scratch, worker);
        plan.for_groups(part, [&](int first, Part group, bool) {
            Factors<T> factors[2];
            const int size = group.images;
            int count = 0;
            for (int k = 0; k < 2; ++k) {
                if (!task.pairs[k].w)
                    continue;
                for (int i = 0; i < size; ++i)
                    border_image(task.pairs[k].x + (first + i) * plan.x_image(), g.side, g.channels,
                                 g.channels, room.x[k] + i * g.in_image());
                factors[count++] = {room.x[k], work.filters[k]};
            }
            T* const to = task.z + first * plan.z_image();
            const bool exact = g.pitch_out == g.filters;
            convolve_fwd(winograd<T>(), g, factors, count, group, room.cells_of,
                         exact ? to : room.images, each_row<T>([](int, int, const T*) {}));
            if (!exact)
                copy_pixels(room.images, size * plan.out_pixels(), g.pitch_out, g.filters, to);
        });
    });
}

template <class T>
void bwd(const ConvPlan<T>& plan, const ConvTask<T>& task, const ConvWork<T>& work, void* scratch,
         Team& team) {
    for (int k = 0; k < 2; ++k)
        if (task.dx && task.pairs[k].w && task.pairs[k].dz)
            each(team, pieces(plan.g.filters), [&](int i, int) {
                pack_bwd(winograd<T>(), plan.inward, rows_of(i, plan.g.filters), task.pairs[k].w,
                         work.packing, work.filters[k]);
            });
    each(team, plan.parts, [&](int part, int worker) {
        const ConvScratch<T> room = scratch_of(plan, scratch, worker);
        T* const share = work.shares + part * plan.share();
        plan.for_groups(part, [&](int first, Part group, bool fresh) {
            group_bwd(plan, task, work, room, first, group, share, fresh);
        });
        if (task.dw)
            finish_wgrad(plan.g, room.cells_of, share);
    });
    if (!task.dw)
        return;
    const int filters = plan.g.filters, stored = plan.wide() ? pieces(filters) : 1;
    each(team, stored, [&](int i, int) {
        store_filters(plan.g, stored > 1 ? rows_of(i, filters) : Span{0, filters}, work.shares,
                      plan.parts, plan.share(), task.dw);
    });
}

} // namespace

template <class T> size_t conv_work_bytes(const ConvShape& shape, ConvPart what) {
    if (shape.size != 3)
        return sized_work_bytes<T>(shape);
    size_t bytes = 0;
    ConvWork<T>(ConvPlan<T>(shape, what), what, nullptr, &bytes);
    return bytes;
}

template <class T> size_t conv_scratch_bytes(const ConvShape& shape, ConvPart what) {
    if (shape.size != 3)
        return sized_scratch_bytes<T>(shape);
    size_t bytes = 0;
    ConvScratch<T>(ConvPlan<T>(shape, what), nullptr, &bytes);
    return bytes;
}

template <class T>
void task_conv(const ConvShape& shape, ConvPart what, const ConvTask<T>& task, void* block,
               void* scratch, Team& team) {
    const bool gradients = what == ConvPart::gradients;
    if (shape.size != 3)
        return (gradients ? sized_bwd<T> : sized_fwd<T>)(shape, task, block, scratch, team);
    const ConvPlan<T> plan(shape, what);
    const ConvWork<T> work(plan, what, block);
    (gradients ? bwd<T> : fwd<T>)(plan, task, work, scratch, team);
}

template size_t conv_work_bytes<float>(const ConvShape&, ConvPart);
template size_t conv_work_bytes<double>(const ConvShape&, ConvPart);
template size_t conv_scratch_bytes<float>(const ConvShape&, ConvPart);
template size_t conv_scratch_bytes<double>(const ConvShape&, ConvPart);
template void task_conv(const ConvShape&, ConvPart, const ConvTask<float>&, void*, void*, Team&);
template void task_conv(const ConvShape&, ConvPart, const ConvTask<double>&, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
