// Sizes of a convolution, and what computes it in Winograd's cells (winograd.h).
//
// The sets of bfloat16 compile nothing but their products and what reads and writes the operands of
// these, and AMX what a first stage makes of its products; the passes of AVX-512 call them through
// a table. What passes through it is in no set's namespace, and has no code but what is inlined
// always.
#pragma once

#include "../ops.h"
#include "simd.h"

namespace mamlpp {

constexpr int taps = 9;

// Side of an image with its border of zeros, and for an odd one those that complete its last 2×2
// tile.
MAMLPP_INLINE int span(int side) { return side + 2 + side % 2; }

// Some of the rows of what is shared out; of filters as they lie, those of an input or output
// channel.
struct Span {
    int begin, end;
};

// Sizes of one convolution of square images.
template <class T> struct Conv {
    int channels;  // of the input, real
    int pitch_in;  // of an input pixel
    int side;      // of the input
    int stride;    // 1 or 2
    int filters;   // real
    int pitch_out; // of an output pixel, whole vectors
    int tile = 0;  // of Winograd's, its outputs a side; 1: the taps as they are, by AMX; 0: without

    MAMLPP_INLINE int out() const { return (side - 1) / stride + 1; }
    MAMLPP_INLINE ptrdiff_t in_row() const { return static_cast<ptrdiff_t>(span(side)) * pitch_in; }
    MAMLPP_INLINE ptrdiff_t in_image() const { return in_row() * span(side); }
    MAMLPP_INLINE ptrdiff_t dz_row() const {
        return static_cast<ptrdiff_t>(span(out())) * pitch_out;
    }
    MAMLPP_INLINE ptrdiff_t dz_image() const { return dz_row() * span(out()); }
    // The convolution of dz, with a stride of 1, that is the input gradient.
    MAMLPP_INLINE Conv mirrored() const {
        return {filters, pitch_out, side, stride, channels, pitch_in, tile};
    }
};

// An operand pair: an image with its border, and filters packed for the pass, or dz.
template <class T> struct Pair {
    const T* image;
    const T* w;
};

// Filters as a convolution reads them: the values of the taps, or by Winograd their cells.
template <class T> struct Packed {
    T* taps;
    void* cells;
};

// A pair of operands of a convolution: images with their borders, and filters.
template <class T> struct Factors {
    const T* image;
    Packed<T> w;
};

// Buffers of a strip: operands of two products, and either more of them or sums.
template <class T> struct Tiles {
    void* x[2];
    void* dz[2];
    T* z; // where dz[0] is
};

// What is done with each row of a result as soon as it is there.
template <class T> struct EachRow {
    void (*run)(const void* context, int image, int y, T* row);
    const void* context;

    MAMLPP_INLINE void operator()(int image, int y, T* row) const { run(context, image, y, row); }
};

// Values of T's size in the buffers of a strip: in those of its operands, and of its products.
struct StripSizes {
    ptrdiff_t operands, products;
};

template <class T> struct Winograd {
    int most; // the largest tile; 1: no other, for it takes the taps as they are
    // values of T's size in the cells of `rows` rows of operands
    ptrdiff_t (*operands_size)(int tile, int rows, int pitch);
    StripSizes (*strip)(const Conv<T>&);
    // `which` begins at an even row, and ends at one or at the last
    void (*pack)(int tile, const T* w, int rows, Span which, ptrdiff_t row_step, ptrdiff_t tap_step,
                 int pitch, bool flipped, void* to);
    void (*fwd)(const Conv<T>&, const Factors<T>* pairs, int count, Span rows, const Tiles<T>&,
                T* z, EachRow<T>);
    void (*wgrad)(const Conv<T>&, const Pair<T>* pairs, int count, Span rows, const Tiles<T>&,
                  T* sum, bool fresh);
};

// Of the set of bfloat16 in use; not for fp32.
const Winograd<float>& rounded_winograd(Precision);

// A first stage that pools (stem.h) by products of bfloat16 in two parts, an image at a time, of as
// many channels as it pays for. Arrays are as there, but for the image, of which it makes its own.
template <class T> struct RoundedStem {
    struct Fwd {
        int pitch;
        const T *w, *gain, *centre, *rstd;
        T* x_hat;
        uint16_t* winners;
    };
    struct Gradient {
        int pitch;
        const T* values;
        const uint16_t* winners;
        T* sum;
        bool fresh;
    };
    int least_channels, most_channels;
    ptrdiff_t (*image_size)(int side, int channels);
    // `planes` may be read up to `pick_slack` values behind the last one
    void (*round_image)(int side, int channels, const T* planes, uint16_t* to);
    void (*fwd)(int side, int channels, const uint16_t* image, const Fwd&);
    void (*gradient)(int side, int channels, const uint16_t* image, const Gradient&);
};

// Of the set in use for passes of float32 in this precision, or null: where it has none.
const RoundedStem<float>* rounded_stem(Precision);

namespace MAMLPP_ISA {

// Of a tile.
MAMLPP_INLINE constexpr int cells(int tile) { return (tile + 2) * (tile + 2); }
MAMLPP_INLINE int tile_columns(int side, int tile) { return (side + tile - 1) / tile; }

// Tiles whose cells are computed at once: the operands of one cell fit in the first-level cache and
// amortise the load of its filters, those of all in the second-level one.
MAMLPP_INLINE int strip_tiles(int tile) { return tile == 2 ? 48 : 36; }
MAMLPP_INLINE int strip_rows(int side, int tile) {
    const int columns = tile_columns(side, tile);
    const int rows = (strip_tiles(tile) + columns / 2) / columns; // about as many
    return rows < 1 ? 1 : rows;
}
MAMLPP_INLINE int most_tiles(int side, int tile) {
    return strip_rows(side, tile) * tile_columns(side, tile);
}

// Whether winners of the pooling follow from a result: only of those that do not, tiles of 4×4 are
// taken (winograd.h).
enum class Decides { winners, nothing };

// The tile that pays, of those up to `most`: none for the narrow pixels of a first layer, nor for
// maps of which tiles and borders are the larger part; a large one not where it is cut too often.
// Products by 16 lanes are so fast that it has to save more of them, and of enough tiles to make up
// for the cells of its filters, which leave the cache; both by what was measured. What takes the
// taps as they are takes all maps but a first layer's.
template <class T> MAMLPP_INLINE Conv<T> tiled(Conv<T> g, int images, int most, Decides what) {
    const bool fits = g.stride == 1 && g.pitch_in % lanes<T> == 0;
    if (most == 1) {
        g.tile = fits;
        return g;
    }
    g.tile = fits && g.side >= 6 ? 2 : 0;
    const auto tiles = [&](int tile) {
        return tile_columns(g.side, tile) * tile_columns(g.side, tile);
    };
    const int small = cells(2) * tiles(2), large = cells(4) * tiles(4);
    const bool pays =
        lanes<T> < 16 ? 5 * large <= 4 * small : 7 * large <= 5 * small && images * tiles(4) >= 128;
    if (g.tile && what == Decides::nothing && most >= 4 && pays)
        g.tile = 4;
    return g;
}

// From one cell of `rows` sums to the next. Not a power of two: the cells that a transform reads or
// writes together would all fall into one set of the cache.
template <class T> MAMLPP_INLINE ptrdiff_t sum_step(int rows, int pitch) {
    return static_cast<ptrdiff_t>(rows) * pitch + lanes<T>;
}
// Elements of the cells of `rows` sums.
template <class T> MAMLPP_INLINE ptrdiff_t sums_size(int tile, int rows, int pitch) {
    return cells(tile) * sum_step<T>(rows, pitch);
}

// This set's own: its operands are of the type of the data, or what MAMLPP_PARTS says.
template <class T> const Winograd<T>& winograd();

} // namespace MAMLPP_ISA
} // namespace mamlpp
