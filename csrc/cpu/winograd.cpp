// The table of the convolutions in Winograd's cells.
#include "winograd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// Operands of bfloat16 are for tiles of 2×2: larger ones would enlarge what rounding them costs.
template <class T> constexpr int most = values<T> == 1 ? 4 : 2;

template <class T> StripSizes strip_sizes(const Conv<T>& g) {
    const int tiles = most_tiles(g.side, g.tile);
    const int pitch = g.pitch_in > g.pitch_out ? g.pitch_in : g.pitch_out;
    return {operands_size<T>(g.tile, tiles, pitch), sums_size<T>(g.tile, tiles, pitch)};
}

template <class T>
void pack(int tile, const T* w, int rows, Span which, ptrdiff_t row_step, ptrdiff_t tap_step,
          int pitch, bool flipped, void* to) {
    if constexpr (most<T> > 2)
        if (tile == 4)
            return tiles_pack<4>(w, rows, which, row_step, tap_step, pitch, flipped, to);
    tiles_pack<2>(w, rows, which, row_step, tap_step, pitch, flipped, to);
}

template <class T>
void fwd(const Conv<T>& g, const Factors<T>* pairs, int count, Span of_tiles, const Tiles<T>& tiles,
         T* z, EachRow<T> row) {
    if constexpr (most<T> > 2)
        if (g.tile == 4)
            return tiles_fwd<4>(g, pairs, count, of_tiles, tiles, z, row);
    tiles_fwd<2>(g, pairs, count, of_tiles, tiles, z, row);
}

template <class T>
void wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, Span of_tiles, const Tiles<T>& tiles,
           T* sum, bool fresh) {
    if constexpr (most<T> > 2)
        if (g.tile == 4)
            return tiles_wgrad<4>(g, pairs, count, of_tiles, tiles, sum, fresh);
    tiles_wgrad<2>(g, pairs, count, of_tiles, tiles, sum, fresh);
}

} // namespace

template <class T> const Winograd<T>& winograd() {
    static constexpr Winograd<T> table{most<T>, operands_size<T>, strip_sizes<T>,
                                       pack<T>, fwd<T>,           wgrad<T>};
    return table;
}
template const Winograd<float>& winograd<float>();
#ifndef MAMLPP_PARTS
template const Winograd<double>& winograd<double>();
#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
