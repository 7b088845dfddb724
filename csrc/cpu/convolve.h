// A convolution of several images and its gradients, directly or by Winograd, whichever is faster.
#pragma once

#include "carver.h"
#include "cells.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// One worker's buffers of cells.
template <class T> struct Cells {
    Tiles<T> tiles;
    T* sum; // of a weight gradient
};

// Room for the cells of the largest of several convolutions.
template <class T> class CellRoom {
  public:
    explicit CellRoom(const Winograd<T>& by) : by_(by) {}
    void include(const Conv<T>& g) {
        if (!g.tile)
            return;
        const StripSizes strip = by_.strip(g);
        raise(operands_, strip.operands);
        raise(products_, strip.products);
        raise(sum_, sums_size<T>(g.tile, g.pitch_out, g.pitch_in));
    }
    Cells<T> take(Carver& carver) const {
        Cells<T> room;
        for (void*& x : room.tiles.x)
            x = carver.take<T>(operands_);
        room.tiles.z = carver.take<T>(operands_ > products_ ? operands_ : products_);
        room.tiles.dz[0] = room.tiles.z;
        room.tiles.dz[1] = carver.take<T>(operands_);
        room.sum = carver.take<T>(sum_);
        return room;
    }

  private:
    static void raise(ptrdiff_t& most, ptrdiff_t size) { most = size > most ? size : most; }
    const Winograd<T>& by_;
    ptrdiff_t operands_ = 0, products_ = 0, sum_ = 0;
};

// Values of the filters as convolve_fwd and convolve_bwd read them, and these in a buffer of so
// many.
template <class T>
ptrdiff_t packed_size(const Winograd<T>& by, const Conv<T>& g, int rows, int pitch) {
    return g.tile ? by.operands_size(g.tile, rows, pitch)
                  : static_cast<ptrdiff_t>(taps) * rows * pitch;
}
template <class T> ptrdiff_t fwd_size(const Winograd<T>& by, const Conv<T>& g) {
    return packed_size(by, g, g.channels, g.pitch_out);
}
template <class T> ptrdiff_t bwd_size(const Winograd<T>& by, const Conv<T>& g) {
    return packed_size(by, g, g.filters, g.pitch_in);
}
template <class T> Packed<T> packed_in(const Conv<T>& g, T* buffer) {
    return g.tile ? Packed<T>{nullptr, buffer} : Packed<T>{buffer, nullptr};
}
// Values of the buffer that the two below work in.
template <class T> ptrdiff_t packing_size(const Conv<T>& g) {
    const ptrdiff_t fwd = static_cast<ptrdiff_t>(g.channels) * g.pitch_out;
    const ptrdiff_t bwd = static_cast<ptrdiff_t>(g.filters) * g.pitch_in;
    return taps * (fwd > bwd ? fwd : bwd);
}

// [filters][9][channels] → as convolve_fwd reads them: those of some channels, which begin at a
// multiple of the lanes
template <class T>
void pack_fwd(const Winograd<T>&, const Conv<T>&, Span channels, const T* theta, T* buffer,
              const Packed<T>& to);

// The same for convolve_bwd, of some filters.
template <class T>
void pack_bwd(const Winograd<T>&, const Conv<T>&, Span filters, const T* theta, T* buffer,
              const Packed<T>& to);

// f(image, y, row) for each row of the result of one of the two below
template <class T, class F> MAMLPP_INLINE EachRow<T> each_row(const F& f) {
    return {[](const void* context, int image, int y, T* row) {
                (*static_cast<const F*>(context))(image, y, row);
            },
            &f};
}

// Images one behind the other, and those of their rows that are wanted: by Winograd, of tiles of
// the convolution; otherwise, all.
struct Part {
    int images;
    Span rows;
};
template <class T> MAMLPP_INLINE Part all_of(const Conv<T>& g, int images) {
    return {images, {0, g.tile ? images * tile_columns(g.side, g.tile) : 0}};
}

// z of a part: Σ_pairs conv(image, w); then row(image, y, z row).
template <class T>
void convolve_fwd(const Winograd<T>&, const Conv<T>&, const Factors<T>* pairs, int count, Part part,
                  const Cells<T>& room, T* z, EachRow<T> row);

// The gradient of a part's inputs: Σ_pairs dgrad(dz, w); then row(image, y, dx row).
template <class T>
void convolve_bwd(const Winograd<T>&, const Conv<T>&, const Factors<T>* pairs, int count, Part part,
                  const Cells<T>& room, T* dx, EachRow<T> row);

// The weight gradient of a part, as conv_wgrad: its own sums, or in the cells those of the worker,
// which finish_wgrad then turns into it.
template <class T>
void add_wgrad(const Winograd<T>&, const Conv<T>&, const Pair<T>* pairs, int count, Part part,
               bool fresh, const Cells<T>& room, T* share);
template <class T> void finish_wgrad(const Conv<T>&, const Cells<T>& room, T* share);

} // namespace MAMLPP_ISA
} // namespace mamlpp
