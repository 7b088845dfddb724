// The 3×3 convolution of stride 1 by Winograd's F(2×2, 3×3): 16 products for what takes 36 (Lavin
// and Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//
//   z = Aᵀ[(GwGᵀ) ⊙ (BᵀxB)]A   for each 2×2 tile of z, from the 4×4 values of x behind it
//
// In each of the 16 cells the product is a matrix product over channels. The input gradient is the
// same with flipped filters; the weight gradient is Gᵀ[Σ_tiles (A·dz·Aᵀ)(BᵀxB)]G. Sums of products
// with one operand replaced by its direction are longer sums in the cells.
//
// The tiles of z are the windows of the pooling, and on constant input all cells but one are
// exactly 0: equal values of a window stay equal.
#pragma once

#include "conv.h"
#include "operands.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// As sum_step of operands, and from the cells of one part to those of the next.
template <class T> MAMLPP_INLINE ptrdiff_t cell_step(int rows, int pitch) {
    return sum_step<T>((rows + values<T> - 1) / values<T>, pitch);
}
template <class T> MAMLPP_INLINE ptrdiff_t part_step(ptrdiff_t cell) { return cells * cell; }

// Elements of the cells of `rows` operands in all their parts.
template <class T> inline ptrdiff_t operands_size(int rows, int pitch) {
    static_assert(sizeof(Operand<T>) == sizeof(T), "operands and sums share their memory");
    return parts<T> * part_step<T>(cell_step<T>(rows, pitch));
}

template <class T> MAMLPP_INLINE Operand<T>* operands(void* p) {
    return static_cast<Operand<T>*>(p);
}
template <class T> MAMLPP_INLINE const Operand<T>* operands(const void* p) {
    return static_cast<const Operand<T>*>(p);
}

// The cells of a tile: BᵀxB of the 4×4 values at `from`
template <class T>
MAMLPP_INLINE void input_cells(const T* from, ptrdiff_t row, int pitch, Vec<T>* to) {
    Vec<T> t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        Vec<T> d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            d[i] = Vec<T>::load(from + i * row + j * pitch);
        t[0][j] = d[0] - d[2], t[1][j] = d[1] + d[2], t[2][j] = d[2] - d[1], t[3][j] = d[1] - d[3];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        to[4 * i] = t[i][0] - t[i][2], to[4 * i + 1] = t[i][1] + t[i][2];
        to[4 * i + 2] = t[i][2] - t[i][1], to[4 * i + 3] = t[i][1] - t[i][3];
    }
}

// A·dz·Aᵀ of the 2×2 values at `from`
template <class T>
MAMLPP_INLINE void gradient_cells(const T* from, ptrdiff_t row, int pitch, Vec<T>* to) {
    const Vec<T> zero = Vec<T>::all(0);
    Vec<T> t[4][2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
        const Vec<T> a = Vec<T>::load(from + j * pitch), b = Vec<T>::load(from + row + j * pitch);
        t[0][j] = a, t[1][j] = a + b, t[2][j] = a - b, t[3][j] = zero - b;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        to[4 * i] = t[i][0], to[4 * i + 1] = t[i][0] + t[i][1];
        to[4 * i + 2] = t[i][0] - t[i][1], to[4 * i + 3] = zero - t[i][1];
    }
}

// GwGᵀ of a filter's nine values, `tap_step` apart
template <class T>
MAMLPP_INLINE void filter_cells(const T* w, ptrdiff_t tap_step, bool flipped, Vec<T>* to) {
    const Vec<T> half = Vec<T>::all(static_cast<T>(0.5));
    Vec<T> t[4][3];
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
        Vec<T> g[3];
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r)
            g[r] = Vec<T>::load(w + (flipped ? 8 - (3 * r + s) : 3 * r + s) * tap_step);
        const Vec<T> even = (g[0] + g[2]) * half, odd = g[1] * half;
        t[0][s] = g[0], t[1][s] = even + odd, t[2][s] = even - odd, t[3][s] = g[2];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Vec<T> even = (t[i][0] + t[i][2]) * half, odd = t[i][1] * half;
        to[4 * i] = t[i][0], to[4 * i + 1] = even + odd;
        to[4 * i + 2] = even - odd, to[4 * i + 3] = t[i][2];
    }
}

// The cells of `rows` rows of `pitch` values, next() being where each one's sources are and
// transform(source, cells) what it takes of them: [16][rows][pitch], sums run along a row.
template <class T, class N, class F>
MAMLPP_INLINE void store_rows(int rows, int pitch, Operand<T>* to, ptrdiff_t cell, N next,
                              F transform) {
    for (int row = 0; row < rows; ++row, to += pitch / values<T>) {
        const T* from = next();
        for (int c = 0; c < pitch; c += lanes<T>) {
            Vec<T> value[cells];
            transform(from + c, value);
#pragma GCC unroll 16
            for (int i = 0; i < cells; ++i)
                store_along(value[i], to + i * cell, c, part_step<T>(cell));
        }
    }
}

// The same where sums run over the rows; what completes the last operand is 0.
template <class T, class N, class F>
MAMLPP_INLINE void store_across(int rows, int pitch, Operand<T>* to, ptrdiff_t cell, N next,
                                F transform) {
    if constexpr (values<T> == 1) {
        store_rows<T>(rows, pitch, to, cell, next, transform);
    } else {
        for (int row = 0; row < rows; row += 2, to += pitch) {
            const T *even = next(), *odd = row + 1 < rows ? next() : nullptr;
            for (int c = 0; c < pitch; c += lanes<T>) {
                Vec<T> first[cells], second[cells];
                transform(even + c, first);
                for (Vec<T>& value : second)
                    value = Vec<T>::all(0);
                if (odd)
                    transform(odd + c, second);
#pragma GCC unroll 16
                for (int i = 0; i < cells; ++i)
                    store_pair(first[i], second[i], to + i * cell + c, part_step<T>(cell));
            }
        }
    }
}

// Where the tiles of images one behind the other begin, in order from a row of tiles on.
template <class T> struct TileWalk {
    const T* images;
    ptrdiff_t image, row; // steps
    int step, columns;    // of a pixel; tiles of a row, and rows of an image
    int y, x = 0;

    TileWalk(const T* from, int side, int pitch, int first)
        : images(from), row(static_cast<ptrdiff_t>(span(side)) * pitch), step(pitch),
          columns(tile_columns(side)), y(first % columns) {
        image = row * span(side);
        images += first / columns * image;
    }
    MAMLPP_INLINE const T* operator()() {
        const T* at = images + 2 * y * row + static_cast<ptrdiff_t>(2) * x * step;
        if (++x == columns) {
            x = 0;
            if (++y == columns)
                y = 0, images += image;
        }
        return at;
    }
};

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

// Calls strip(first, count, tiles) for some rows of tiles, row r being that of image r / (rows an
// image), in strips of about one size.
template <class F> MAMLPP_INLINE void for_strips(int side, Span of_tiles, F strip) {
    const int rows = of_tiles.end - of_tiles.begin;
    const int strips = (rows + strip_rows(side) - 1) / strip_rows(side);
    for (int i = 0, first = of_tiles.begin; i < strips; ++i) {
        const int count = rows / strips + (i < rows % strips);
        strip(first, count, count * tile_columns(side));
        first += count;
    }
}

// The products of two operands' parts that count: all but that of the small ones.
template <class T, class F> MAMLPP_INLINE void for_parts(F f) {
    f(0, 0);
    if constexpr (parts<T> > 1) {
        f(0, 1);
        f(1, 0);
    }
}
template <class T> constexpr int part_products = parts<T> > 1 ? 3 : 1;

// Span of tiles of z: Σ_pairs conv(image, w); then row(image, y, z row). The input gradient is the
// same of the mirrored sizes, flipped filters, and dz for the image.
template <class T>
inline void winograd_fwd(const Conv<T>& g, const Factors<T>* pairs, int count, Span of_tiles,
                         const Tiles<T>& tiles, T* z, EachRow<T> row) {
    const int side = g.side, rows = tile_columns(side),
              depth = (g.channels + values<T> - 1) / values<T>;
    const ptrdiff_t in_cell = cell_step<T>(most_tiles(side), g.pitch_in),
                    in_part = part_step<T>(in_cell);
    const ptrdiff_t w_cell = cell_step<T>(g.channels, g.pitch_out), w_part = part_step<T>(w_cell);
    const ptrdiff_t out_cell = sum_step<T>(most_tiles(side), g.pitch_out);
    const ptrdiff_t z_row = static_cast<ptrdiff_t>(side) * g.pitch_out, in_row = g.in_row();
    for_strips(side, of_tiles, [&](int first, int strip, int count_of_tiles) {
        for (int k = 0; k < count; ++k)
            store_rows<T>(count_of_tiles, g.pitch_in, operands<T>(tiles.x[k]), in_cell,
                          TileWalk<T>(pairs[k].image, side, g.pitch_in, first),
                          [&](const T* from, Vec<T>* to)
                              MAMLPP_LAMBDA { input_cells(from, in_row, g.pitch_in, to); });
        for (int i = 0; i < cells; ++i) {
            Term<Operand<T>> terms[2 * part_products<T>];
            int n = 0;
            for (int k = 0; k < count; ++k)
                for_parts<T>([&](int of_x, int of_w) {
                    terms[n++] = {operands<T>(tiles.x[k]) + of_x * in_part + i * in_cell,
                                  operands<T>(pairs[k].w.cells) + of_w * w_part + i * w_cell};
                });
            multiply(terms, n, count_of_tiles, g.pitch_in / values<T>, depth, g.pitch_out,
                     tiles.z + i * out_cell, g.pitch_out);
        }
        for (int r = 0; r < strip; ++r) {
            const int image = (first + r) / rows, y = (first + r) % rows;
            T* to = z + image * z_row * side;
            output_rows(tiles.z + static_cast<ptrdiff_t>(r) * rows * g.pitch_out, out_cell, side,
                        g.pitch_out, y, to);
            row(image, 2 * y, to + 2 * y * z_row);
            if (2 * y + 1 < side)
                row(image, 2 * y + 1, to + (2 * y + 1) * z_row);
        }
    });
}

// sum[16][filters][pitch_in] (+)= Σ_rows Σ_pairs of the cells of wgrad(x, dz); of each pair `image`
// is x and `w` is dz, both with their borders.
template <class T>
inline void winograd_wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, Span of_tiles,
                           const Tiles<T>& tiles, T* sum, bool fresh) {
    const int side = g.side;
    const ptrdiff_t x_cell = cell_step<T>(most_tiles(side), g.pitch_in),
                    x_part = part_step<T>(x_cell);
    const ptrdiff_t dz_cell = cell_step<T>(most_tiles(side), g.pitch_out),
                    dz_part = part_step<T>(dz_cell);
    const ptrdiff_t in_row = g.in_row(), dz_row = g.dz_row(),
                    w_cell = sum_step<T>(g.filters, g.pitch_in);
    for_strips(side, of_tiles, [&](int first, int, int count_of_tiles) {
        for (int k = 0; k < count; ++k) {
            store_across<T>(count_of_tiles, g.pitch_in, operands<T>(tiles.x[k]), x_cell,
                            TileWalk<T>(pairs[k].image, side, g.pitch_in, first),
                            [&](const T* from, Vec<T>* to)
                                MAMLPP_LAMBDA { input_cells(from, in_row, g.pitch_in, to); });
            store_across<T>(
                count_of_tiles, g.pitch_out, operands<T>(tiles.dz[k]), dz_cell,
                TileWalk<T>(pairs[k].w + dz_row + g.pitch_out, side, g.pitch_out, first),
                [&](const T* from, Vec<T>* to)
                    MAMLPP_LAMBDA { gradient_cells(from, dz_row, g.pitch_out, to); });
        }
        for (int i = 0; i < cells; ++i) {
            Run<Operand<T>> runs[2 * part_products<T>];
            int n = 0;
            for (int k = 0; k < count; ++k)
                for_parts<T>([&](int of_dz, int of_x) {
                    runs[n++] = {operands<T>(tiles.dz[k]) + of_dz * dz_part + i * dz_cell,
                                 operands<T>(tiles.x[k]) + of_x * x_part + i * x_cell};
                });
            outer(runs, n, (count_of_tiles + values<T> - 1) / values<T>, g.filters, g.pitch_out,
                  g.pitch_in, g.pitch_in, sum + i * w_cell, g.pitch_in,
                  fresh && first == of_tiles.begin);
        }
    });
}

// GwGᵀ: filters w[row][tap] of `pitch` values, steps in values → [16][rows][pitch]; the rows asked
// for begin at an even one.
template <class T>
inline void pack_cells(const T* w, int rows, Span which, ptrdiff_t row_step, ptrdiff_t tap_step,
                       int pitch, bool flipped, void* to) {
    w += which.begin * row_step;
    Operand<T>* const first =
        operands<T>(to) + static_cast<ptrdiff_t>(which.begin / values<T>) * pitch;
    const auto next = [&]() MAMLPP_LAMBDA {
        const T* at = w;
        w += row_step;
        return at;
    };
    store_across<T>(which.end - which.begin, pitch, first, cell_step<T>(rows, pitch), next,
                    [&](const T* from, Vec<T>* cell)
                        MAMLPP_LAMBDA { filter_cells(from, tap_step, flipped, cell); });
}

// GᵀSG of the cells of a weight gradient, [16][filters][pitch] → [filters][9][pitch]
template <class T> inline void filter_gradient(const T* sum, int filters, int pitch, T* dw) {
    constexpr int L = lanes<T>;
    const Vec<T> half = Vec<T>::all(static_cast<T>(0.5));
    const ptrdiff_t cell = sum_step<T>(filters, pitch);
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
