// The 3×3 convolution of stride 1 by Winograd's F(m×m, 3×3): (m + 2)² products for what takes 9m²
// (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//
//   z = Aᵀ[(GwGᵀ) ⊙ (BᵀxB)]A   for each m×m tile of z, from the (m + 2)² values of x behind it
//
// In each of the (m + 2)² cells the product is a matrix product over channels. The input gradient
// is the same with flipped filters; the weight gradient is Gᵀ[Σ_tiles (A·dz·Aᵀ)(BᵀxB)]G. Sums of
// products with one operand replaced by its direction are longer sums in the cells.
//
// Tiles of 2×2 are the windows of the pooling, and on constant input all their cells but one are
// exactly 0: equal values of a window stay equal. Tiles of 4×4 (16 products for what takes 36, and
// 9 by them) do not grant that, and take what is pooled by winners that are known: gradients and
// tangents.
#pragma once

#include "conv.h"
#include "operands.h"
#include "products.h"
#include "toom.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// As sum_step of operands, and from the cells of one part to those of the next.
template <class T> MAMLPP_INLINE ptrdiff_t cell_step(int rows, int pitch) {
    return sum_step<T>((rows + values<T> - 1) / values<T>, pitch);
}
template <class T> MAMLPP_INLINE ptrdiff_t part_step(int tile, ptrdiff_t cell) {
    return cells(tile) * cell;
}

// Elements of the cells of `rows` operands in all their parts.
template <class T> inline ptrdiff_t operands_size(int tile, int rows, int pitch) {
    static_assert(sizeof(Operand<T>) == sizeof(T), "operands and sums share their memory");
    return parts<T> * part_step<T>(tile, cell_step<T>(rows, pitch));
}

template <class T> MAMLPP_INLINE Operand<T>* operands(void* p) {
    return static_cast<Operand<T>*>(p);
}
template <class T> MAMLPP_INLINE const Operand<T>* operands(const void* p) {
    return static_cast<const Operand<T>*>(p);
}

// Out×Out values of In×In, `row` and `step` apart: `line` down the columns, then along the rows.
template <int In, int Out, class T, class F>
MAMLPP_INLINE void both_ways(const T* from, ptrdiff_t row, ptrdiff_t step, F line, Vec<T>* to) {
    Vec<T> t[Out][In];
#pragma GCC unroll 6
    for (int j = 0; j < In; ++j) {
        Vec<T> column[In], values[Out];
#pragma GCC unroll 6
        for (int i = 0; i < In; ++i)
            column[i] = Vec<T>::load(from + i * row + j * step);
        line(column, values);
#pragma GCC unroll 6
        for (int i = 0; i < Out; ++i)
            t[i][j] = values[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < Out; ++i)
        line(t[i], to + i * Out);
}

// Where the values behind a tile begin, and how many rows and columns of them there are: those
// beyond are 0. Tiles of 2×2 lack none.
template <class T> struct Corner {
    const T* at;
    int rows, columns;
};

template <int In, int Out, class T, class F>
MAMLPP_INLINE void corner_cells(Corner<T> from, ptrdiff_t row, ptrdiff_t step, F line, Vec<T>* to) {
    constexpr int L = lanes<T>;
    T patch[In * In * L];
    if (from.rows < In || from.columns < In) {
        for (int i = 0; i < In; ++i)
            for (int j = 0; j < In; ++j)
                (i < from.rows && j < from.columns ? Vec<T>::load(from.at + i * row + j * step)
                                                   : Vec<T>::all(0))
                    .store(patch + (i * In + j) * L);
        from.at = patch, row = In * L, step = L;
    }
    both_ways<In, Out>(from.at, row, step, line, to);
}

// BᵀxB and A·dz·Aᵀ of a tile
template <int m, class T>
MAMLPP_INLINE void input_cells(Corner<T> from, ptrdiff_t row, ptrdiff_t step, Vec<T>* to) {
    const auto line = [](const Vec<T>* x, Vec<T>* y) MAMLPP_LAMBDA { Toom<T, m>::input(x, y); };
    corner_cells<m + 2, m + 2>(from, row, step, line, to);
}
template <int m, class T>
MAMLPP_INLINE void gradient_cells(Corner<T> from, ptrdiff_t row, ptrdiff_t step, Vec<T>* to) {
    const auto line = [](const Vec<T>* x, Vec<T>* y) MAMLPP_LAMBDA { Toom<T, m>::gradient(x, y); };
    corner_cells<m, m + 2>(from, row, step, line, to);
}

// GwGᵀ of a filter's nine values, `tap_step` apart
template <int m, class T>
MAMLPP_INLINE void filter_cells(const T* w, ptrdiff_t tap_step, bool flipped, Vec<T>* to) {
    const ptrdiff_t step = flipped ? -tap_step : tap_step;
    const auto line = [](const Vec<T>* x, Vec<T>* y) MAMLPP_LAMBDA { Toom<T, m>::filter(x, y); };
    both_ways<3, m + 2>(flipped ? w + 8 * tap_step : w, 3 * step, step, line, to);
}

// The cells of `rows` rows of `pitch` values, next() being where each one's sources are and
// transform(source, channel, cells) what it takes of them: [cells][rows][pitch], sums run along a
// row.
template <int m, class T, class N, class F>
MAMLPP_INLINE void store_rows(int rows, int pitch, Operand<T>* to, ptrdiff_t cell, N next,
                              F transform) {
    constexpr int count = cells(m);
    for (int row = 0; row < rows; ++row, to += pitch / values<T>) {
        const auto from = next();
        for (int c = 0; c < pitch; c += lanes<T>) {
            Vec<T> value[count];
            transform(from, c, value);
#pragma GCC unroll 36
            for (int i = 0; i < count; ++i)
                store_along(value[i], to + i * cell, c, part_step<T>(m, cell));
        }
    }
}

// The same where sums run over the rows; what completes the last operand is 0.
template <int m, class T, class N, class F>
MAMLPP_INLINE void store_across(int rows, int pitch, Operand<T>* to, ptrdiff_t cell, N next,
                                F transform) {
    if constexpr (values<T> == 1) {
        store_rows<m, T>(rows, pitch, to, cell, next, transform);
    } else {
        constexpr int count = cells(m);
        for (int row = 0; row < rows; row += 2, to += pitch) {
            const bool both = row + 1 < rows;
            const auto even = next(), odd = both ? next() : even;
            for (int c = 0; c < pitch; c += lanes<T>) {
                Vec<T> first[count], second[count];
                transform(even, c, first);
                for (Vec<T>& value : second)
                    value = Vec<T>::all(0);
                if (both)
                    transform(odd, c, second);
#pragma GCC unroll 36
                for (int i = 0; i < count; ++i)
                    store_pair(first[i], second[i], to + i * cell + c, part_step<T>(m, cell));
            }
        }
    }
}

// Where the tiles of images one behind the other begin, in order from a row of tiles on; an image
// has `extent` rows and columns of values.
template <int m, class T> struct TileWalk {
    const T* images;
    ptrdiff_t image, row; // steps
    int step, columns;    // of a pixel; tiles of a row, and rows of an image
    int extent, y, x = 0;

    TileWalk(const T* from, int side, int pitch, int first, int values)
        : images(from), row(static_cast<ptrdiff_t>(span(side)) * pitch), step(pitch),
          columns(tile_columns(side, m)), extent(values), y(first % columns) {
        image = row * span(side);
        images += first / columns * image;
    }
    MAMLPP_INLINE Corner<T> operator()() {
        const Corner<T> at{images + m * y * row + static_cast<ptrdiff_t>(m) * x * step,
                           extent - m * y, extent - m * x};
        if (++x == columns) {
            x = 0;
            if (++y == columns)
                y = 0, images += image;
        }
        return at;
    }
};

// AᵀMA of one row of tiles → m rows of z without a border; those beyond the side are cut.
template <int m, class T>
inline void output_rows(const T* cell, ptrdiff_t size, int side, int pitch, int tile_row, T* z) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(side) * pitch;
    T* to = z + m * tile_row * row;
    const int below = side - m * tile_row;
    const auto line = [](const Vec<T>* x, Vec<T>* y) MAMLPP_LAMBDA { Toom<T, m>::output(x, y); };
    for (int tile = 0; tile < tile_columns(side, m); ++tile, cell += pitch, to += m * pitch) {
        const int right = side - m * tile;
        const bool whole = below >= m && right >= m;
        for (int c = 0; c < pitch; c += lanes<T>) {
            Vec<T> values[m * m];
            both_ways<m + 2, m>(cell + c, (m + 2) * size, size, line, values);
            const auto store = [&](int i, int j) MAMLPP_LAMBDA {
                values[i * m + j].store(to + i * row + j * pitch + c);
            };
            if (whole) {
#pragma GCC unroll 4
                for (int i = 0; i < m; ++i)
#pragma GCC unroll 4
                    for (int j = 0; j < m; ++j)
                        store(i, j);
            } else {
                for (int i = 0; i < m && i < below; ++i)
                    for (int j = 0; j < m && j < right; ++j)
                        store(i, j);
            }
        }
    }
}

// Calls strip(first, count, tiles) for some rows of tiles, row r being that of image r / (rows an
// image), in strips of about one size; by 16 lanes, which wait for the second-level cache, two
// pairs of operands share the room of one there.
template <int m, class T, class F>
MAMLPP_INLINE void for_strips(int side, Span of_tiles, int pairs, F strip) {
    const int share = lanes<T> == 16 ? pairs : 1;
    const int rows = of_tiles.end - of_tiles.begin;
    const int most = (strip_rows(side, m) + share - 1) / share;
    const int strips = (rows + most - 1) / most;
    for (int i = 0, first = of_tiles.begin; i < strips; ++i) {
        const int count = rows / strips + (i < rows % strips);
        strip(first, count, count * tile_columns(side, m));
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
template <int m, class T>
inline void tiles_fwd(const Conv<T>& g, const Factors<T>* pairs, int count, Span of_tiles,
                      const Tiles<T>& tiles, T* z, EachRow<T> row) {
    const int side = g.side, rows = tile_columns(side, m),
              depth = (g.channels + values<T> - 1) / values<T>;
    const ptrdiff_t in_cell = cell_step<T>(most_tiles(side, m), g.pitch_in),
                    in_part = part_step<T>(m, in_cell);
    const ptrdiff_t w_cell = cell_step<T>(g.channels, g.pitch_out),
                    w_part = part_step<T>(m, w_cell);
    const ptrdiff_t out_cell = sum_step<T>(most_tiles(side, m), g.pitch_out);
    const ptrdiff_t z_row = static_cast<ptrdiff_t>(side) * g.pitch_out, in_row = g.in_row();
    for_strips<m, T>(side, of_tiles, count, [&](int first, int strip, int count_of_tiles) {
        for (int k = 0; k < count; ++k)
            store_rows<m, T>(count_of_tiles, g.pitch_in, operands<T>(tiles.x[k]), in_cell,
                             TileWalk<m, T>(pairs[k].image, side, g.pitch_in, first, span(side)),
                             [&](Corner<T> from, int c, Vec<T>* to) MAMLPP_LAMBDA {
                                 from.at += c;
                                 input_cells<m>(from, in_row, g.pitch_in, to);
                             });
        for (int i = 0; i < cells(m); ++i) {
            Term<Operand<T>> terms[2 * part_products<T>];
            int n = 0;
            for (int k = 0; k < count; ++k)
                for_parts<T>([&](int of_x, int of_w) {
                    terms[n++] = {operands<T>(tiles.x[k]) + of_x * in_part + i * in_cell,
                                  operands<T>(pairs[k].w.cells) + of_w * w_part + i * w_cell};
                });
            multiply(terms, n, count_of_tiles, g.pitch_in / values<T>, depth, g.pitch_out,
                     tiles.z + i * out_cell, g.pitch_out, in_panels<T>);
        }
        for (int r = 0; r < strip; ++r) {
            const int image = (first + r) / rows, y = (first + r) % rows;
            T* to = z + image * z_row * side;
            output_rows<m>(tiles.z + static_cast<ptrdiff_t>(r) * rows * g.pitch_out, out_cell, side,
                           g.pitch_out, y, to);
            for (int i = m * y; i < m * (y + 1) && i < side; ++i)
                row(image, i, to + i * z_row);
        }
    });
}

// sum[cells][filters][pitch_in] (+)= Σ_rows Σ_pairs of the cells of wgrad(x, dz); of each pair
// `image` is x and `w` is dz, both with their borders.
template <int m, class T>
inline void tiles_wgrad(const Conv<T>& g, const Pair<T>* pairs, int count, Span of_tiles,
                        const Tiles<T>& tiles, T* sum, bool fresh) {
    const int side = g.side;
    const ptrdiff_t x_cell = cell_step<T>(most_tiles(side, m), g.pitch_in),
                    x_part = part_step<T>(m, x_cell);
    const ptrdiff_t dz_cell = cell_step<T>(most_tiles(side, m), g.pitch_out),
                    dz_part = part_step<T>(m, dz_cell);
    const ptrdiff_t in_row = g.in_row(), dz_row = g.dz_row(),
                    w_cell = sum_step<T>(g.filters, g.pitch_in);
    for_strips<m, T>(side, of_tiles, count, [&](int first, int, int count_of_tiles) {
        for (int k = 0; k < count; ++k) {
            store_across<m, T>(count_of_tiles, g.pitch_in, operands<T>(tiles.x[k]), x_cell,
                               TileWalk<m, T>(pairs[k].image, side, g.pitch_in, first, span(side)),
                               [&](Corner<T> from, int c, Vec<T>* to) MAMLPP_LAMBDA {
                                   from.at += c;
                                   input_cells<m>(from, in_row, g.pitch_in, to);
                               });
            store_across<m, T>(
                count_of_tiles, g.pitch_out, operands<T>(tiles.dz[k]), dz_cell,
                TileWalk<m, T>(pairs[k].w + dz_row + g.pitch_out, side, g.pitch_out, first, side),
                [&](Corner<T> from, int c, Vec<T>* to) MAMLPP_LAMBDA {
                    from.at += c;
                    gradient_cells<m>(from, dz_row, g.pitch_out, to);
                });
        }
        for (int i = 0; i < cells(m); ++i) {
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

// GwGᵀ: filters w[row][tap] of `pitch` values, steps in values → [cells][rows][pitch], each cell as
// `multiply` reads it; the rows asked for begin at an even one.
template <int m, class T>
inline void tiles_pack(const T* w, int rows, Span which, ptrdiff_t row_step, ptrdiff_t tap_step,
                       int pitch, bool flipped, void* to) {
    const ptrdiff_t cell = cell_step<T>(rows, pitch);
    const auto transform = [&](const T* from, int c, Vec<T>* values) MAMLPP_LAMBDA {
        filter_cells<m>(from + c, tap_step, flipped, values);
    };
    w += which.begin * row_step;
    if constexpr (in_panels<T>) {
        for (int row = which.begin; row < which.end; ++row, w += row_step)
            for_panels<T>(pitch, [&](int first, int size) {
                const ptrdiff_t panel = static_cast<ptrdiff_t>(first) * lanes<T> * rows;
                const int width = size * lanes<T>;
                store_rows<m, T>(
                    1, width, operands<T>(to) + panel + row * width, cell,
                    [&]() MAMLPP_LAMBDA { return w + first * lanes<T>; }, transform);
            });
    } else {
        const auto next = [&]() MAMLPP_LAMBDA {
            const T* at = w;
            w += row_step;
            return at;
        };
        const ptrdiff_t at = static_cast<ptrdiff_t>(which.begin / values<T>) * pitch;
        store_across<m, T>(which.end - which.begin, pitch, operands<T>(to) + at, cell, next,
                           transform);
    }
}

// GᵀSG of the cells of a weight gradient, [cells][filters][pitch] → [filters][9][pitch]
template <int m, class T> inline void tiles_gradient(const T* sum, int filters, int pitch, T* dw) {
    const ptrdiff_t cell = sum_step<T>(filters, pitch);
    const auto line = [](const Vec<T>* x, Vec<T>* y)
                          MAMLPP_LAMBDA { Toom<T, m>::filter_gradient(x, y); };
    for (int f = 0; f < filters; ++f, sum += pitch, dw += taps * pitch)
        for (int c = 0; c < pitch; c += lanes<T>) {
            Vec<T> values[taps];
            both_ways<m + 2, 3>(sum + c, (m + 2) * cell, cell, line, values);
            for (int tap = 0; tap < taps; ++tap)
                values[tap].store(dw + static_cast<ptrdiff_t>(tap) * pitch + c);
        }
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
