// Tiles of bfloat16, and sums of their products, several side by side.
#pragma once

#include "amx.h"
#include "bf16.h"

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int parts = MAMLPP_PARTS;            // see operands.h
constexpr int edge = 16;                       // of a tile, in rows, and in columns of 32 bits
constexpr int width = 2 * edge;                // bfloat16 of its rows
constexpr ptrdiff_t whole_tile = edge * width; // bfloat16 of one
constexpr int row_bytes = 64;

constexpr int up(int n, int to) { return (n + to - 1) / to * to; }

// Two vectors of floats → 32 bfloat16, the ones of `even` first
MAMLPP_INLINE __m512i rounded(Vec<float> even, Vec<float> odd) {
    return (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
}

// The same as pairs, one of each.
MAMLPP_INLINE __m512i interleaved(Vec<float> even, Vec<float> odd) {
    alignas(64) static constexpr uint16_t order[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                     21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                     11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), rounded(even, odd));
}

// What a vector is written in.
struct Parts {
    Vec<float> of[parts];
    explicit MAMLPP_INLINE Parts(Vec<float> x) {
        of[0] = x;
        if constexpr (parts > 1)
            of[1] = x - round_bf16(x).wide();
    }
};

// A call's shapes: all tiles whole.
struct TilesInUse {
    TilesInUse() {
        TileShapes shapes;
        for (int t = 0; t < 8; ++t)
            shapes.set(t, edge, row_bytes);
        shape_tiles(shapes);
    }
    ~TilesInUse() { release_tiles(); }
};

// The tiles of an operand that a product takes side by side, and from them to those of the next
// part.
template <int N> struct Operands {
    const uint16_t* at[N];
    ptrdiff_t part;
    MAMLPP_INLINE void next() {
        for (int i = 0; i < N; ++i)
            at[i] += whole_tile;
    }
};

// M×N sums of at most six tiles: sum (i, j) is in tile i·N + j. What is multiplied has tiles of its
// own where there are enough, and is loaded once; otherwise tiles 6 and 7, and a column is loaded
// for each row, from the first-level cache.
template <int M, int N> struct Block {
    static constexpr bool apart = M * N + M + N <= 8;
    static constexpr int row(int i) { return apart ? 8 - N - M + i : 6; }
    static constexpr int column(int j) { return apart ? 8 - N + j : 7; }

    template <int t = 0> static MAMLPP_INLINE void zero() {
        zero_tile<t>();
        if constexpr (t + 1 < M * N)
            zero<t + 1>();
    }
    // Sums of tiles `down` and `right` apart, whose rows are `step` apart.
    template <int t = 0>
    static MAMLPP_INLINE void load(const float* from, ptrdiff_t step, ptrdiff_t down,
                                   ptrdiff_t right) {
        load_tile<t>(from + t / N * down + t % N * right, 4 * step);
        if constexpr (t + 1 < M * N)
            load<t + 1>(from, step, down, right);
    }
    template <int t = 0>
    static MAMLPP_INLINE void store(float* to, ptrdiff_t step, ptrdiff_t down, ptrdiff_t right) {
        store_tile<t>(to + t / N * down + t % N * right, 4 * step);
        if constexpr (t + 1 < M * N)
            store<t + 1>(to, step, down, right);
    }
    // Adds the products of 16 pairs, of the operands' parts that count.
    static MAMLPP_INLINE void add(const Operands<M>& a, const Operands<N>& b) {
        if constexpr (parts > 1) {
            multiply<true, true>(a, a.part, b, 0);
            multiply<true, false>(a, 0, b, 0);
            multiply<false, true>(a, 0, b, b.part);
        } else {
            multiply<true, true>(a, 0, b, 0);
        }
    }

  private:
    // `rows` and `columns`: which are not there yet.
    template <bool rows, bool columns, int t = 0>
    static MAMLPP_INLINE void multiply(const Operands<M>& a, ptrdiff_t a_part, const Operands<N>& b,
                                       ptrdiff_t b_part) {
        constexpr int i = t / N, j = t % N;
        if constexpr (j == 0 && (rows || !apart))
            load_tile<row(i)>(a.at[i] + a_part, row_bytes);
        if constexpr ((i == 0 && columns) || !apart)
            load_tile<column(j)>(b.at[j] + b_part, row_bytes);
        add_dots<t, row(i), column(j)>();
        if constexpr (t + 1 < M * N)
            multiply<rows, columns, t + 1>(a, a_part, b, b_part);
    }
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
