// A convolution of several images and its gradients, directly or by Winograd, whichever is faster.
#pragma once

#include "carver.h"
#include "winograd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// Filters as a convolution reads them: the values of the taps, or by Winograd their cells.
template <class T> struct Packed {
    T* taps;
    Operand<T>* cells;
};

// A pair of operands of a convolution: images with their borders, and filters.
template <class T> struct Factors {
    const T* image;
    Packed<T> w;
};

// One worker's buffers of cells.
template <class T> struct Cells {
    Tiles<T> tiles;
    T* sum; // of a weight gradient
};

// Room for the cells of the largest of several convolutions.
template <class T> class CellRoom {
  public:
    void include(const Conv<T>& g) {
        if (!by_winograd(g))
            return;
        const int most = most_tiles(g.side);
        const int pitch = g.pitch_in > g.pitch_out ? g.pitch_in : g.pitch_out;
        raise(operands_, operands_size<T>(most, pitch));
        raise(products_, sums_size<T>(most, pitch));
        raise(sum_, sums_size<T>(g.filters, g.pitch_in));
    }
    Cells<T> take(Carver& carver) const {
        static_assert(sizeof(Operand<T>) == sizeof(T), "operands and sums share their memory");
        Cells<T> room;
        for (Operand<T>*& x : room.tiles.x)
            x = carver.take<Operand<T>>(operands_);
        room.tiles.z = carver.take<T>(operands_ > products_ ? operands_ : products_);
        room.tiles.dz[0] = reinterpret_cast<Operand<T>*>(room.tiles.z);
        room.tiles.dz[1] = carver.take<Operand<T>>(operands_);
        room.sum = carver.take<T>(sum_);
        return room;
    }

  private:
    static void raise(ptrdiff_t& most, ptrdiff_t size) { most = size > most ? size : most; }
    ptrdiff_t operands_ = 0, products_ = 0, sum_ = 0;
};

template <class T> Packed<T> take_packed(Carver& carver, const Conv<T>& g, int rows, int pitch) {
    if (by_winograd(g))
        return {nullptr, carver.take<Operand<T>>(operands_size<T>(rows, pitch))};
    return {carver.take<T>(static_cast<ptrdiff_t>(taps) * rows * pitch), nullptr};
}
template <class T> Packed<T> take_fwd(Carver& carver, const Conv<T>& g) {
    return take_packed(carver, g, g.channels, g.pitch_out);
}
template <class T> Packed<T> take_bwd(Carver& carver, const Conv<T>& g) {
    return take_packed(carver, g, g.filters, g.pitch_in);
}
// Values of the buffer that the two below work in.
template <class T> ptrdiff_t packing_size(const Conv<T>& g) {
    const ptrdiff_t fwd = static_cast<ptrdiff_t>(g.channels) * g.pitch_out;
    const ptrdiff_t bwd = static_cast<ptrdiff_t>(g.filters) * g.pitch_in;
    return taps * (fwd > bwd ? fwd : bwd);
}

// [filters][9][channels] → as convolve_fwd reads them
template <class T> void pack_fwd(const Conv<T>& g, const T* theta, T* buffer, const Packed<T>& to) {
    T* const packed = by_winograd(g) ? buffer : to.taps;
    pack_filters(theta, g.filters, g.channels, g.pitch_out, packed);
    if (by_winograd(g))
        pack_cells(packed, g.channels, static_cast<ptrdiff_t>(g.pitch_out),
                   static_cast<ptrdiff_t>(g.channels) * g.pitch_out, g.pitch_out, false, to.cells);
}

// The same for convolve_bwd.
template <class T> void pack_bwd(const Conv<T>& g, const T* theta, T* buffer, const Packed<T>& to) {
    if (!by_winograd(g)) {
        pack_filters_bwd(theta, g.filters, g.channels, g.pitch_in, to.taps);
        return;
    }
    ptrdiff_t row = static_cast<ptrdiff_t>(taps) * g.channels, tap = g.channels; // as theta lies
    if (g.channels != g.pitch_in) {
        pack_filters_bwd(theta, g.filters, g.channels, g.pitch_in, buffer);
        theta = buffer, row = g.pitch_in, tap = static_cast<ptrdiff_t>(g.filters) * g.pitch_in;
    }
    pack_cells(theta, g.filters, row, tap, g.pitch_in, true, to.cells);
}

template <class T, class F>
void convolve_cells(const Conv<T>& g, const Factors<T>* pairs, int count, int images,
                    const Cells<T>& room, T* z, F row) {
    CellPair<T> each[2];
    for (int k = 0; k < count; ++k)
        each[k] = {pairs[k].image, pairs[k].w.cells};
    winograd_fwd(g, each, count, images, room.tiles, z, row);
}

// z of `images` images: Σ_pairs conv(image, w); then row(image, y, z row).
template <class T, class F>
void convolve_fwd(const Conv<T>& g, const Factors<T>* pairs, int count, int images,
                  const Cells<T>& room, T* z, F row) {
    if (by_winograd(g)) {
        convolve_cells(g, pairs, count, images, room, z, row);
        return;
    }
    for (int i = 0; i < images; ++i, z += static_cast<ptrdiff_t>(g.out()) * g.out() * g.pitch_out) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * g.in_image(), pairs[k].w.taps};
        conv_fwd(g, each, count, z, [&](int y, T* at) { row(i, y, at); });
    }
}

// The gradient of `images` inputs: Σ_pairs dgrad(dz, w); then row(image, y, dx row).
template <class T, class F>
void convolve_bwd(const Conv<T>& g, const Factors<T>* pairs, int count, int images,
                  const Cells<T>& room, T* dx, F row) {
    if (by_winograd(g)) {
        convolve_cells(g.mirrored(), pairs, count, images, room, dx, row);
        return;
    }
    for (int i = 0; i < images; ++i, dx += static_cast<ptrdiff_t>(g.side) * g.side * g.pitch_in) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * g.dz_image(), pairs[k].w.taps};
        conv_dgrad(g, each, count, dx, [&](int y, T* at) { row(i, y, at); });
    }
}

// The weight gradient of a part of a chunk's images, as conv_wgrad: its own sums, or in the cells
// those of the worker, which finish_wgrad then turns into it.
template <class T>
void add_wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, int images, bool fresh,
               const Cells<T>& room, T* share) {
    if (by_winograd(g))
        winograd_wgrad(g, pairs, count, images, room.tiles, room.sum, fresh);
    else
        conv_wgrad(g, pairs, count, images, share, fresh);
}
template <class T> void finish_wgrad(const Conv<T>& g, const Cells<T>& room, T* share) {
    if (by_winograd(g))
        filter_gradient(room.sum, g.filters, g.pitch_in, share);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
