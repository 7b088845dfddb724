// The first stage of stem.h by AMX: a patch, rounded to two bfloat16 a value, is a row of a tile
// for the values, 16 windows at each of the four places in one, and a column of it for the gradient
// of the filters, whose other factor is 0 but at the winners.
#include "amx_block.h"
#include "cells.h"
#include "norm_act.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

static_assert(parts == 2, "next to statistics in float64");

constexpr int places = 4;       // of a window
constexpr int most_columns = 3; // tiles of filters that are summed at once

// An image in the two orders in which its patches are read, each [part] of
//   by pixels  [side + 2][side + 2][channels]: a row of a patch is in one piece
//   by planes  [channels][side + 2][side + 2]: the same place of 32 patches is
struct Image {
    int side, channels;
    const uint16_t* at;

    ptrdiff_t line() const { return side + 2; }
    ptrdiff_t size() const { return channels * line() * line(); } // of one part in one order
    const uint16_t* pixel(int part, int y, int x) const {
        return at + part * size() + (y * line() + x) * channels;
    }
    const uint16_t* plane(int part, int c, int y, int x) const {
        return at + (parts + part) * size() + (c * line() + y) * line() + x;
    }
};

// With zeros behind the last plane, which are read with its end.
ptrdiff_t image_size(int side, int channels) {
    return 2 * parts * Image{side, channels, nullptr}.size() + width;
}

void round_image(int side, int channels, const float* planes, uint16_t* to) {
    const Image image{side, channels, to};
    const ptrdiff_t line = image.line(), size = image.size();
    for (int k = 0; k < parts; ++k) {
        uint16_t* const by_planes = to + (parts + k) * size;
        for (ptrdiff_t i = 0; i < size; i += edge) {
            const Bf16 part = round_bf16(Parts(Vec<float>::load(planes + i)).of[k]);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(by_planes + i), part.v);
        }
        for (int c = 0; c < channels; ++c)
            for (ptrdiff_t i = 0; i < line * line; ++i)
                to[k * size + i * channels + c] = by_planes[c * line * line + i];
    }
    _mm512_storeu_si512(to + 2 * parts * size, _mm512_setzero_si512());
}

// The patches of `count` windows at one of their places as rows of a tile, [3][3][channels], y and
// x of the first one's. Each piece is written with what follows it in the image, and the next one
// over that: behind a patch there are values of the image that filters take 0 times, and behind the
// rows a few more.
constexpr int piece = 16, piece_slack = 8;
MAMLPP_INLINE void store_patches(const Image& image, int part, int y, int x, int count,
                                 uint16_t* to) {
    const int row = 3 * image.channels;
    const uint16_t* at = image.pixel(part, y, x);
    const ptrdiff_t next = image.line() * image.channels;
    for (int w = 0; w < count; ++w, at += 2 * image.channels, to += width)
        for (int r = 0; r < 3; ++r)
            __builtin_memcpy(to + r * row, at + r * next, piece * sizeof(uint16_t));
}

// The patches of the windows from a pixel of theirs on as columns, up to 32 pixels: [channels][9]
MAMLPP_INLINE void store_turned_patches(const Image& image, int part, int y, int x, uint16_t* to) {
    const ptrdiff_t line = image.line();
    const uint16_t* at = image.plane(part, 0, y, x);
    for (int c = 0; c < image.channels; ++c, at += line * line)
#pragma GCC unroll 9
        for (int t = 0; t < taps; ++t, to += width)
            _mm512_storeu_si512(to, _mm512_loadu_si512(at + t / 3 * line + t % 3));
}

// Filters as columns, w [channels · 9][pitch]
template <int N>
void pack(int channels, int pitch, const float* w, uint16_t (&to)[parts][N][whole_tile]) {
    const auto value = [&](int k, int f) MAMLPP_LAMBDA {
        const ptrdiff_t row = k % channels * taps + k / channels;
        return k < taps * channels ? Vec<float>::load(w + row * pitch + f) : Vec<float>::all(0);
    };
    for (int j = 0; j < N; ++j)
        for (int k = 0; k < width; k += 2) {
            const Parts even(value(k, j * edge)), odd(value(k + 1, j * edge));
            for (int part = 0; part < parts; ++part)
                _mm512_storeu_si512(to[part][j] + k / 2 * width,
                                    interleaved(even.of[part], odd.of[part]));
        }
}

// Tiles that follow each other, and from them to those of the next part. Where they lie is computed
// where it is used: a compiler keeps it otherwise, and has not the registers.
template <int N> MAMLPP_INLINE Operands<N> side_by_side(const uint16_t* first, int all) {
    __asm__ volatile("" : "+r"(first));
    Operands<N> tiles;
    tiles.part = all * whole_tile;
    for (int i = 0; i < N; ++i)
        tiles.at[i] = first + i * whole_tile;
    return tiles;
}

// Calls run.template of<N>(first filter) for all, N tiles of them at once.
template <class F> MAMLPP_INLINE void by_columns(int pitch, const F& run) {
    for (int c = 0; c < pitch;) {
        const int left = (pitch - c) / edge;
        const int size = left == most_columns + 1 ? 2 : left < most_columns ? left : most_columns;
        if (size == 1)
            run.template of<1>(c);
        if (size == 2)
            run.template of<2>(c);
        if (size == 3)
            run.template of<3>(c);
        c += size * edge;
    }
}

// Calls f(row of windows, first window, count) for all, up to 16 at once.
template <class F> MAMLPP_INLINE void for_windows(int pooled, F f) {
    for (int i = 0; i < pooled; ++i)
        for (int j = 0; j < pooled; j += edge)
            f(i, j, pooled - j < edge ? pooled - j : edge);
}

struct Fwd {
    Image image;
    const RoundedStem<float>::Fwd& to;

    template <int N> MAMLPP_APART void of(int from) const {
        alignas(64) uint16_t columns[parts][N][whole_tile];
        alignas(64) uint16_t rows[parts * places * whole_tile + piece_slack] = {};
        alignas(64) float z[places][edge][N * edge];
        const int pooled = image.side / 2, pitch = to.pitch;
        pack<N>(image.channels, pitch, to.w + from, columns);
        for_windows(pooled, [&](int i, int j, int count) MAMLPP_LAMBDA {
            for (int k = 0; k < parts; ++k)
                for (int place = 0; place < places; ++place)
                    store_patches(image, k, 2 * i + place / 2, 2 * j + place % 2, count,
                                  rows + (k * places + place) * whole_tile);
            const auto filters = side_by_side<N>(columns[0][0], N);
            for (int place = 0; place < places; place += 2) {
                Block<2, N>::zero();
                Block<2, N>::add(side_by_side<2>(rows + place * whole_tile, places), filters);
                Block<2, N>::store(z[place][0], N * edge, edge * N * edge, edge);
            }
            ptrdiff_t at = (static_cast<ptrdiff_t>(i) * pooled + j) * pitch + from;
            for (int w = 0; w < count; ++w, at += pitch)
                for (int n = 0; n < N; ++n)
                    choose(z, w, n * edge, from + n * edge, at + n * edge);
        });
    }

  private:
    // x̂ at the winners of 16 filters, of what is in column n of z
    template <int Row>
    MAMLPP_INLINE void choose(const float (&z)[places][edge][Row], int w, int n, int filter,
                              ptrdiff_t at) const {
        const Vec<float> values[places] = {
            Vec<float>::load(z[0][w] + n), Vec<float>::load(z[1][w] + n),
            Vec<float>::load(z[2][w] + n), Vec<float>::load(z[3][w] + n)};
        Vec<float> value;
        compete(values, sign_of(Vec<float>::load(to.gain + filter)), value)
            .store(to.winners + at / edge * Winner<float>::words);
        ((value - Vec<float>::load(to.centre + filter)) * Vec<float>::load(to.rstd + filter))
            .store(to.x_hat + at);
    }
};

void fwd(int side, int channels, const uint16_t* image, const RoundedStem<float>::Fwd& to) {
    const TilesInUse in_use;
    by_columns(to.pitch, Fwd{{side, channels, image}, to});
}

struct Gradient {
    Image image;
    const RoundedStem<float>::Gradient& to;

    template <int N> MAMLPP_APART void of(int from) const {
        // of the upper and lower pixels of 16 windows
        alignas(64) uint16_t rows[2][parts][2][whole_tile] = {}, columns[2][parts][N][whole_tile];
        alignas(64) float sums[2 * edge][N * edge];
        const int pooled = image.side / 2, pitch = to.pitch;
        Block<2, N>::zero();
        for_windows(pooled, [&](int i, int j, int count) MAMLPP_LAMBDA {
            for (int line = 0; line < 2; ++line)
                for (int k = 0; k < parts; ++k)
                    store_turned_patches(image, k, 2 * i + line, 2 * j, rows[line][k][0]);
            ptrdiff_t at = (static_cast<ptrdiff_t>(i) * pooled + j) * pitch + from;
            for (int w = 0; w < edge; ++w, at += pitch)
                for (int n = 0; n < N; ++n) {
                    uint16_t* const pairs = columns[0][0][n] + w * width;
                    if (w < count)
                        scatter(at + n * edge, N * whole_tile, pairs);
                    else
                        for (int tile = 0; tile < 2 * parts; ++tile)
                            _mm512_storeu_si512(pairs + tile * N * whole_tile,
                                                _mm512_setzero_si512());
                }
            for (int line = 0; line < 2; ++line) {
                Block<2, N>::add(side_by_side<2>(rows[line][0][0], 2),
                                 side_by_side<N>(columns[line][0][0], N));
            }
        });
        Block<2, N>::store(sums[0], N * edge, edge * N * edge, edge);
        for (int k = 0; k < taps * image.channels; ++k)
            for (int n = 0; n < N * edge; n += edge) {
                float* const at = to.sum + static_cast<ptrdiff_t>(k) * pitch + from + n;
                const Vec<float> share = Vec<float>::load(sums[k] + n);
                (to.fresh ? share : share + Vec<float>::load(at)).store(at);
            }
    }

  private:
    // Values of 16 filters at the upper two pixels of a window and at the lower two, [2][part]
    // pairs `step` apart.
    MAMLPP_INLINE void scatter(ptrdiff_t at, ptrdiff_t step, uint16_t* pairs) const {
        const Winner<float> w = Winner<float>::load(to.winners + at / edge * Winner<float>::words);
        const __mmask16 right = static_cast<__mmask16>(w.bit0.m);
        const __mmask16 lower = static_cast<__mmask16>(w.bit1.m);
        Vec<float> value = Vec<float>::load(to.values + at);
        for (int k = 0; k < parts; ++k, pairs += step) {
            const Bf16 part = round_bf16(value);
            const __m512i left = _mm512_cvtepu16_epi32(part.v);
            const __m512i pair = _mm512_mask_slli_epi32(left, right, left, 16);
            _mm512_storeu_si512(pairs,
                                _mm512_maskz_mov_epi32(static_cast<__mmask16>(~lower), pair));
            _mm512_storeu_si512(pairs + parts * step, _mm512_maskz_mov_epi32(lower, pair));
            value = value - part.wide();
        }
    }
};

void gradient(int side, int channels, const uint16_t* image,
              const RoundedStem<float>::Gradient& to) {
    const TilesInUse in_use;
    by_columns(to.pitch, Gradient{{side, channels, image}, to});
}

} // namespace

const RoundedStem<float>& stem_table() {
    static constexpr RoundedStem<float> table{edge / taps + 1, width / taps, image_size,
                                              round_image,     fwd,          gradient};
    return table;
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
