// The 3×3 convolution of stride 1 by Winograd's F(2×2, 3×3): 16 products for what takes 36 (Lavin and
// Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//
//   z = Aᵀ[(GwGᵀ) ⊙ (BᵀxB)]A   for each 2×2 tile of z, from the 4×4 values of x behind it
//
// In each of the 16 cells the product is a matrix product over channels. The input gradient is the
// same with flipped filters; the weight gradient is Gᵀ[Σ_tiles (A·dz·Aᵀ)(BᵀxB)]G. Sums of products
// with one operand replaced by its direction are longer sums in the cells.
//
// The tiles of z are the windows of the pooling, and on constant input all cells but one are exactly 0:
// equal values of a window stay equal.
#pragma once

#include "conv.h"

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int cells = 16;
// Tiles whose cells are computed at once: the operands of one cell fit in the first-level cache and
// amortise the load of its filters, those of all in the second-level one.
constexpr int strip_tiles = 48;

// Whether the transforms pay: not for the narrow pixels of a first layer, nor for maps of which tiles
// and borders are the larger part.
template <class T> MAMLPP_INLINE bool by_winograd(const Conv<T>& g) {
    return g.stride == 1 && g.pitch_in % lanes<T> == 0 && g.side >= 6;
}

MAMLPP_INLINE int tile_columns(int side) { return (side + 1) / 2; }

MAMLPP_INLINE int strip_rows(int side) {
    const int rows = strip_tiles / tile_columns(side);
    return rows < 1 ? 1 : rows;
}

// Values between the cells of `rows` filters or tiles. Not a power of two: the cells that a transform
// reads or writes together would all fall into one set of the cache.
template <class T> MAMLPP_INLINE ptrdiff_t cell_step(int rows, int pitch) {
    return static_cast<ptrdiff_t>(rows) * pitch + lanes<T>;
}
template <class T> MAMLPP_INLINE ptrdiff_t strip_step(int side, int pitch) {
    return cell_step<T>(strip_rows(side) * tile_columns(side), pitch);
}

// Buffers of a strip, [16][tiles][pitch] each: operands and products.
template <class T> struct Tiles {
    T *x[2], *z[2];
};

// BᵀxB
template <class T> MAMLPP_INLINE void to_cells(Vec<T> (&d)[4][4]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const Vec<T> a = d[0][j] - d[2][j], b = d[1][j] + d[2][j];
        const Vec<T> c = d[2][j] - d[1][j], e = d[1][j] - d[3][j];
        d[0][j] = a, d[1][j] = b, d[2][j] = c, d[3][j] = e;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Vec<T> a = d[i][0] - d[i][2], b = d[i][1] + d[i][2];
        const Vec<T> c = d[i][2] - d[i][1], e = d[i][1] - d[i][3];
        d[i][0] = a, d[i][1] = b, d[i][2] = c, d[i][3] = e;
    }
}

// The cells of one row of tiles of an image with a border.
template <class T>
inline void input_cells(const T* image, int side, int pitch, int tile_row, T* cell, ptrdiff_t size) {
    constexpr int L = lanes<T>;
    const ptrdiff_t row = static_cast<ptrdiff_t>(span(side)) * pitch;
    const T* from = image + 2 * tile_row * row;
    for (int tile = 0; tile < tile_columns(side); ++tile, from += 2 * pitch, cell += pitch)
        for (int c = 0; c < pitch; c += L) {
            Vec<T> d[4][4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j)
                    d[i][j] = Vec<T>::load(from + i * row + j * pitch + c);
            to_cells(d);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j)
                    d[i][j].store(cell + (4 * i + j) * size + c);
        }
}

// A·dz·Aᵀ of one row of tiles of dz with its border.
template <class T>
inline void gradient_cells(const T* dz, int side, int pitch, int tile_row, T* cell, ptrdiff_t size) {
    constexpr int L = lanes<T>;
    const ptrdiff_t row = static_cast<ptrdiff_t>(span(side)) * pitch;
    const T* from = dz + (2 * tile_row + 1) * row + pitch;
    for (int tile = 0; tile < tile_columns(side); ++tile, from += 2 * pitch, cell += pitch)
        for (int c = 0; c < pitch; c += L) {
            const Vec<T> zero = Vec<T>::all(0);
            Vec<T> t[4][2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                const Vec<T> a = Vec<T>::load(from + j * pitch + c);
                const Vec<T> b = Vec<T>::load(from + row + j * pitch + c);
                t[0][j] = a, t[1][j] = a + b, t[2][j] = a - b, t[3][j] = zero - b;
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                T* to = cell + 4 * i * size + c;
                t[i][0].store(to);
                (t[i][0] + t[i][1]).store(to + size);
                (t[i][0] - t[i][1]).store(to + 2 * size);
                (zero - t[i][1]).store(to + 3 * size);
            }
        }
}

// AᵀMA of one row of tiles → two rows of z without a border; of an odd side the last ones are cut.
template <class T>
inline void output_rows(const T* cell, ptrdiff_t size, int side, int pitch, int tile_row, T* z) {
    constexpr int L = lanes<T>;
    const ptrdiff_t row = static_cast<ptrdiff_t>(side) * pitch;
    T* to = z + 2 * tile_row * row;
    const bool below = 2 * tile_row + 1 < side;
    for (int tile = 0; tile < tile_columns(side); ++tile, cell += pitch, to += 2 * pitch) {
        const bool right = 2 * tile + 1 < side;
        for (int c = 0; c < pitch; c += L) {
            Vec<T> t[2][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Vec<T> a = Vec<T>::load(cell + j * size + c);
                const Vec<T> b = Vec<T>::load(cell + (4 + j) * size + c);
                const Vec<T> d = Vec<T>::load(cell + (8 + j) * size + c);
                const Vec<T> e = Vec<T>::load(cell + (12 + j) * size + c);
                t[0][j] = a + b + d, t[1][j] = b - d - e;
            }
            (t[0][0] + t[0][1] + t[0][2]).store(to + c);
            if (right)
                (t[0][1] - t[0][2] - t[0][3]).store(to + pitch + c);
            if (below)
                (t[1][0] + t[1][1] + t[1][2]).store(to + row + c);
            if (below && right)
                (t[1][1] - t[1][2] - t[1][3]).store(to + row + pitch + c);
        }
    }
}

// Calls strip(first, count, tiles) for the rows of tiles of `images` images, row r being that of image
// r / (rows an image), in strips of about one size.
template <class F> MAMLPP_INLINE void for_strips(int side, int images, F strip) {
    const int rows = images * tile_columns(side);
    const int strips = (rows + strip_rows(side) - 1) / strip_rows(side);
    for (int i = 0, first = 0; i < strips; ++i) {
        const int count = rows / strips + (i < rows % strips);
        strip(first, count, count * tile_columns(side));
        first += count;
    }
}

// z of `images` images: Σ_pairs conv(image, w), w by `filter_cells`; then row(image, y, z row). The
// input gradient is the same of the mirrored sizes, flipped filters, and dz for the image.
template <class T, class F>
inline void winograd_fwd(const Conv<T>& g, const Pair<T>* pairs, int count, int images,
                         const Tiles<T>& tiles, T* z, F row) {
    const int side = g.side, rows = tile_columns(side);
    const ptrdiff_t in_cell = strip_step<T>(side, g.pitch_in), out_cell = strip_step<T>(side, g.pitch_out);
    const ptrdiff_t z_row = static_cast<ptrdiff_t>(side) * g.pitch_out;
    const ptrdiff_t w_cell = cell_step<T>(g.channels, g.pitch_out);
    for_strips(side, images, [&](int first, int strip, int pixels) {
        for (int k = 0; k < count; ++k)
            for (int r = 0; r < strip; ++r)
                input_cells(pairs[k].image + (first + r) / rows * g.in_image(), side, g.pitch_in,
                            (first + r) % rows,
                            tiles.x[k] + static_cast<ptrdiff_t>(r) * rows * g.pitch_in, in_cell);
        for (int i = 0; i < cells; ++i) {
            Term<T> terms[2];
            for (int k = 0; k < count; ++k)
                terms[k] = {tiles.x[k] + i * in_cell, pairs[k].w + i * w_cell};
            multiply(terms, count, pixels, g.pitch_in, g.pitch_out, g.channels, g.pitch_out,
                     tiles.z[0] + i * out_cell, g.pitch_out);
        }
        for (int r = 0; r < strip; ++r) {
            const int image = (first + r) / rows, y = (first + r) % rows;
            T* to = z + image * z_row * side;
            output_rows(tiles.z[0] + static_cast<ptrdiff_t>(r) * rows * g.pitch_out, out_cell, side,
                        g.pitch_out, y, to);
            row(image, 2 * y, to + 2 * y * z_row);
            if (2 * y + 1 < side)
                row(image, 2 * y + 1, to + (2 * y + 1) * z_row);
        }
    });
}

// sum[16][filters][pitch_in] (+)= Σ_images Σ_pairs of the cells of wgrad(x, dz); of each pair `image` is
// x and `w` is dz, both with their borders.
template <class T>
inline void winograd_wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, int images,
                           const Tiles<T>& tiles, T* sum, bool fresh) {
    const int side = g.side, rows = tile_columns(side);
    const ptrdiff_t in_cell = strip_step<T>(side, g.pitch_in), out_cell = strip_step<T>(side, g.pitch_out);
    const ptrdiff_t w_cell = cell_step<T>(g.filters, g.pitch_in);
    for_strips(side, images, [&](int first, int strip, int pixels) {
        for (int k = 0; k < count; ++k)
            for (int r = 0; r < strip; ++r) {
                const int image = (first + r) / rows, y = (first + r) % rows;
                const ptrdiff_t at = static_cast<ptrdiff_t>(r) * rows;
                input_cells(pairs[k].image + image * g.in_image(), side, g.pitch_in, y,
                            tiles.x[k] + at * g.pitch_in, in_cell);
                gradient_cells(pairs[k].w + image * g.dz_image(), side, g.pitch_out, y,
                               tiles.z[k] + at * g.pitch_out, out_cell);
            }
        for (int i = 0; i < cells; ++i) {
            Run<T> runs[2];
            for (int k = 0; k < count; ++k)
                runs[k] = {tiles.z[k] + i * out_cell, tiles.x[k] + i * in_cell};
            outer(runs, count, pixels, g.filters, g.pitch_out, g.pitch_in, g.pitch_in,
                  sum + i * w_cell, g.pitch_in, fresh && first == 0);
        }
    });
}

// GwGᵀ: filters w[row][tap] of `pitch` values, steps in values → [16][rows][pitch]
template <class T>
inline void filter_cells(const T* w, int rows, ptrdiff_t row_step, ptrdiff_t tap_step, int pitch,
                         bool flipped, T* to) {
    constexpr int L = lanes<T>;
    const Vec<T> half = Vec<T>::all(static_cast<T>(0.5));
    const ptrdiff_t cell = cell_step<T>(rows, pitch);
    for (int row = 0; row < rows; ++row, w += row_step, to += pitch)
        for (int c = 0; c < pitch; c += L) {
            Vec<T> t[4][3];
#pragma GCC unroll 3
            for (int s = 0; s < 3; ++s) {
                Vec<T> g[3];
#pragma GCC unroll 3
                for (int r = 0; r < 3; ++r)
                    g[r] = Vec<T>::load(w + (flipped ? 8 - (3 * r + s) : 3 * r + s) * tap_step + c);
                const Vec<T> even = (g[0] + g[2]) * half, odd = g[1] * half;
                t[0][s] = g[0], t[1][s] = even + odd, t[2][s] = even - odd, t[3][s] = g[2];
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const Vec<T> even = (t[i][0] + t[i][2]) * half, odd = t[i][1] * half;
                T* at = to + 4 * i * cell + c;
                t[i][0].store(at);
                (even + odd).store(at + cell);
                (even - odd).store(at + 2 * cell);
                t[i][2].store(at + 3 * cell);
            }
        }
}

// GᵀSG of the cells of a weight gradient, [16][filters][pitch] → [filters][9][pitch]
template <class T>
inline void filter_gradient(const T* sum, int filters, int pitch, T* dw) {
    constexpr int L = lanes<T>;
    const Vec<T> half = Vec<T>::all(static_cast<T>(0.5));
    const ptrdiff_t cell = cell_step<T>(filters, pitch);
    for (int f = 0; f < filters; ++f, sum += pitch, dw += taps * pitch)
        for (int c = 0; c < pitch; c += L) {
            Vec<T> t[3][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Vec<T> b = Vec<T>::load(sum + (4 + j) * cell + c) * half;
                const Vec<T> d = Vec<T>::load(sum + (8 + j) * cell + c) * half;
                t[0][j] = Vec<T>::load(sum + j * cell + c) + b + d;
                t[1][j] = b - d;
                t[2][j] = b + d + Vec<T>::load(sum + (12 + j) * cell + c);
            }
#pragma GCC unroll 3
            for (int r = 0; r < 3; ++r) {
                const Vec<T> b = t[r][1] * half, d = t[r][2] * half;
                T* at = dw + static_cast<ptrdiff_t>(3 * r) * pitch + c;
                (t[r][0] + b + d).store(at);
                (b - d).store(at + pitch);
                (b + d + t[r][3]).store(at + 2 * pitch);
            }
        }
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
