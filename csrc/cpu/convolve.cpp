// A convolution and its gradients, by the one or the other.
#include "convolve.h"
#include "winograd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T>
void pack_fwd(const Winograd<T>& by, const Conv<T>& g, Span channels, const T* theta, T* buffer,
              const Packed<T>& to) {
    T* const packed = g.tile ? buffer : to.taps;
    pack_filters(theta, g.filters, g.channels, channels, g.pitch_out, packed);
    if (g.tile)
        by.pack(g.tile, packed, g.channels, channels, g.pitch_out,
                static_cast<ptrdiff_t>(g.channels) * g.pitch_out, g.pitch_out, false, to.cells);
}

template <class T>
void pack_bwd(const Winograd<T>& by, const Conv<T>& g, Span filters, const T* theta, T* buffer,
              const Packed<T>& to) {
    if (!g.tile) {
        pack_filters_bwd(theta, g.filters, filters, g.channels, g.pitch_in, to.taps);
        return;
    }
    ptrdiff_t row = static_cast<ptrdiff_t>(taps) * g.channels, tap = g.channels; // as theta lies
    if (g.channels != g.pitch_in) {
        pack_filters_bwd(theta, g.filters, filters, g.channels, g.pitch_in, buffer);
        theta = buffer, row = g.pitch_in, tap = static_cast<ptrdiff_t>(g.filters) * g.pitch_in;
    }
    by.pack(g.tile, theta, g.filters, filters, row, tap, g.pitch_in, true, to.cells);
}

template <class T>
void convolve_fwd(const Winograd<T>& by, const Conv<T>& g, const Factors<T>* pairs, int count,
                  Part part, const Cells<T>& room, T* z, EachRow<T> row) {
    if (g.tile) {
        by.fwd(g, pairs, count, part.rows, room.tiles, z, row);
        return;
    }
    for (int i = 0; i < part.images;
         ++i, z += static_cast<ptrdiff_t>(g.out()) * g.out() * g.pitch_out) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * g.in_image(), pairs[k].w.taps};
        conv_fwd(g, each, count, z, [&](int y, T* at) { row(i, y, at); });
    }
}

template <class T>
void convolve_bwd(const Winograd<T>& by, const Conv<T>& g, const Factors<T>* pairs, int count,
                  Part part, const Cells<T>& room, T* dx, EachRow<T> row) {
    if (g.tile) {
        by.fwd(g.mirrored(), pairs, count, part.rows, room.tiles, dx, row);
        return;
    }
    for (int i = 0; i < part.images;
         ++i, dx += static_cast<ptrdiff_t>(g.side) * g.side * g.pitch_in) {
        Pair<T> each[2];
        for (int k = 0; k < count; ++k)
            each[k] = {pairs[k].image + i * g.dz_image(), pairs[k].w.taps};
        conv_dgrad(g, each, count, dx, [&](int y, T* at) { row(i, y, at); });
    }
}

template <class T>
void add_wgrad(const Winograd<T>& by, const Conv<T>& g, const Pair<T>* pairs, int count, Part part,
               bool fresh, const Cells<T>& room, T* share) {
    if (g.tile)
        by.wgrad(g, pairs, count, part.rows, room.tiles, room.sum, fresh);
    else
        conv_wgrad(g, pairs, count, part.images, share, fresh);
}
template <class T> void finish_wgrad(const Conv<T>& g, const Cells<T>& room, T* share) {
    if (g.tile == 1)
        taps_gradient(g, room.sum, share);
    else if (g.tile == 4)
        tiles_gradient<4>(room.sum, g.filters, g.pitch_in, share);
    else if (g.tile)
        tiles_gradient<2>(room.sum, g.filters, g.pitch_in, share);
}

#define MAMLPP_CONVOLUTIONS(T)                                                                     \
    template void pack_fwd(const Winograd<T>&, const Conv<T>&, Span, const T*, T*,                 \
                           const Packed<T>&);                                                      \
    template void pack_bwd(const Winograd<T>&, const Conv<T>&, Span, const T*, T*,                 \
                           const Packed<T>&);                                                      \
    template void convolve_fwd(const Winograd<T>&, const Conv<T>&, const Factors<T>*, int, Part,   \
                               const Cells<T>&, T*, EachRow<T>);                                   \
    template void convolve_bwd(const Winograd<T>&, const Conv<T>&, const Factors<T>*, int, Part,   \
                               const Cells<T>&, T*, EachRow<T>);                                   \
    template void add_wgrad(const Winograd<T>&, const Conv<T>&, const Pair<T>*, int, Part, bool,   \
                            const Cells<T>&, T*);                                                  \
    template void finish_wgrad(const Conv<T>&, const Cells<T>&, T*);
MAMLPP_CONVOLUTIONS(float)
MAMLPP_CONVOLUTIONS(double)

} // namespace MAMLPP_ISA
} // namespace mamlpp
