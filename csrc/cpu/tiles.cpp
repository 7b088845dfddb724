// Both products of bfloat16 pairs by AMX. Tiles 0 to 3 hold sums, 16 rows of 16 columns each; 4 and
// 5 the two operands of 16 pairs, 6 and 7 those of what is left of a sum behind the last 16.
#include "tiles.h"
#include "bf16.h"
#include "products.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

constexpr int side = 16; // of a tile, in rows and in pairs or columns
constexpr int pair_bytes = 4;

// Shapes for sums of `rows` rows over `pairs` pairs.
void shape_tiles(int rows, int pairs) {
    TileShapes shapes;
    const int rest = pairs % side;
    for (int tile = 0; tile < 4; ++tile)
        shapes.set(tile, rows, side * pair_bytes);
    shapes.set(4, rows, side * pair_bytes);
    shapes.set(5, side, side * pair_bytes);
    if (rest) {
        shapes.set(6, rows, rest * pair_bytes);
        shapes.set(7, rest, side * pair_bytes);
    }
    MAMLPP_TILES_SHAPE(shapes);
}

// The same for the tile of each of the first `columns` sums.
#define MAMLPP_FOR_SUMS(columns, f)                                                                \
    do {                                                                                           \
        f(0);                                                                                      \
        if (columns > 1)                                                                           \
            f(1);                                                                                  \
        if (columns > 2)                                                                           \
            f(2);                                                                                  \
        if (columns > 3)                                                                           \
            f(3);                                                                                  \
    } while (0)

MAMLPP_INLINE void zero_sums(int columns) { MAMLPP_FOR_SUMS(columns, MAMLPP_TILE_ZERO); }

// Steps are in pairs, or floats.
MAMLPP_INLINE void load_sums(int columns, const float* from, ptrdiff_t step) {
#define MAMLPP_LOAD(tile) MAMLPP_TILE_LOAD(tile, from + tile * side, step * pair_bytes)
    MAMLPP_FOR_SUMS(columns, MAMLPP_LOAD);
#undef MAMLPP_LOAD
}
MAMLPP_INLINE void store_sums(int columns, float* to, ptrdiff_t step) {
#define MAMLPP_STORE(tile) MAMLPP_TILE_STORE(tile, to + tile * side, step * pair_bytes)
    MAMLPP_FOR_SUMS(columns, MAMLPP_STORE);
#undef MAMLPP_STORE
}

// Adds the products of 16 pairs a row at `a` and as many rows of columns at `b`.
MAMLPP_INLINE void add_whole(int columns, const Bf16Pair* a, ptrdiff_t a_step, const Bf16Pair* b,
                             ptrdiff_t b_step) {
    MAMLPP_TILE_LOAD(4, a, a_step * pair_bytes);
#define MAMLPP_DOT(tile)                                                                           \
    do {                                                                                           \
        MAMLPP_TILE_LOAD(5, b + tile * side, b_step * pair_bytes);                                 \
        MAMLPP_TILE_DOT(tile, 4, 5);                                                               \
    } while (0)
    MAMLPP_FOR_SUMS(columns, MAMLPP_DOT);
#undef MAMLPP_DOT
}
MAMLPP_INLINE void add_rest(int columns, const Bf16Pair* a, ptrdiff_t a_step, const Bf16Pair* b,
                            ptrdiff_t b_step) {
    MAMLPP_TILE_LOAD(6, a, a_step * pair_bytes);
#define MAMLPP_DOT(tile)                                                                           \
    do {                                                                                           \
        MAMLPP_TILE_LOAD(7, b + tile * side, b_step * pair_bytes);                                 \
        MAMLPP_TILE_DOT(tile, 6, 7);                                                               \
    } while (0)
    MAMLPP_FOR_SUMS(columns, MAMLPP_DOT);
#undef MAMLPP_DOT
}

// Rows `from` to `from + rows` of up to 16 scalars → columns of `to`
MAMLPP_INLINE void transpose(const Bf16Pair* from, ptrdiff_t step, int rows, int scalars,
                             Bf16Pair (&to)[side][side]) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < scalars; ++i)
            to[i][r] = from[r * step + i];
}

} // namespace

template <>
void multiply(const Term<Bf16Pair>* terms, int count, int pixels, ptrdiff_t in_step, int channels,
              int pitch, float* out, ptrdiff_t out_step, bool) { // of rows alone
    const int rows = pixels < side ? pixels : side, rest = channels % side;
    shape_tiles(rows, channels);
    for (int v = 0; v < pitch; v += 4 * side) {
        const int columns = pitch - v < 4 * side ? (pitch - v) / side : 4;
        for (int p = 0; p < pixels; p += side) {
            const ptrdiff_t at = p + rows <= pixels ? p : pixels - rows; // the last ones once more
            zero_sums(columns);
            for (int t = 0; t < count; ++t) {
                const Bf16Pair *in = terms[t].in + at * in_step, *w = terms[t].w + v;
                int c = 0;
                for (; c + side <= channels; c += side)
                    add_whole(columns, in + c, in_step, w + static_cast<ptrdiff_t>(c) * pitch,
                              pitch);
                if (rest)
                    add_rest(columns, in + c, in_step, w + static_cast<ptrdiff_t>(c) * pitch,
                             pitch);
            }
            store_sums(columns, out + at * out_step + v, out_step);
        }
    }
    MAMLPP_TILES_END();
}

template <>
void outer(const Run<Bf16Pair>* runs, int count, int pixels, int scalars, ptrdiff_t s_step,
           int pitch, ptrdiff_t v_step, float* sum, ptrdiff_t sum_step, bool fresh) {
    const int rest = pixels % side;
    for (int i = 0; i < scalars; i += side) {
        const int rows = scalars - i < side ? scalars - i : side;
        if (i == 0 || rows < side)
            shape_tiles(rows, pixels);
        for (int v = 0; v < pitch; v += 4 * side) {
            const int columns = pitch - v < 4 * side ? (pitch - v) / side : 4;
            float* const to = sum + i * sum_step + v;
            if (fresh)
                zero_sums(columns);
            else
                load_sums(columns, to, sum_step);
            for (int k = 0; k < count; ++k) {
                const Bf16Pair *s = runs[k].scalars + i, *x = runs[k].vectors + v;
                alignas(64) Bf16Pair block[side][side];
                int p = 0;
                for (; p + side <= pixels; p += side) {
                    transpose(s + p * s_step, s_step, side, rows, block);
                    add_whole(columns, block[0], side, x + p * v_step, v_step);
                }
                if (rest) {
                    transpose(s + p * s_step, s_step, rest, rows, block);
                    add_rest(columns, block[0], side, x + p * v_step, v_step);
                }
            }
            store_sums(columns, to, sum_step);
        }
    }
    MAMLPP_TILES_END();
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
