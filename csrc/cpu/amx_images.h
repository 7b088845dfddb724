// What AMX multiplies, of images: pixels as rows of tiles, and as columns.
//
// Images lie as lines of `side + 1` pixels, side + 1 lines an image, the first of either a border
// of zeros, which is also that of the line and the image before. So one number says how far from a
// pixel the one lies that a tap meets, in all images, and 16 pixels that follow each other are the
// rows of a tile, wherever lines end: what is computed for pixels of a border is dropped.
#pragma once

#include "amx_block.h"
#include "cells.h"
#include "transpose.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// Pixels whose operands are built at once: enough to amortise the sums of a weight gradient, and
// of 64 channels few enough that they stay in the second-level cache.
constexpr int strip_pixels = 1024;

struct Lines {
    int side;
    int count() const { return side + 1; } // of an image
    int length() const { return side + 1; }
    int of_strip() const {
        const int n = strip_pixels / length();
        return n < 1 ? 1 : n;
    }
    // Pixels of a strip, as rows of whole tiles, and those that its taps meet.
    int pixels() const { return up(of_strip() * length(), width); }
    int met() const { return pixels() + 2 * length() + 2; }
    // The line of a row of images one behind the other.
    int at(int row) const { return row / side * count() + row % side; }
};

// Channels by tiles: whole ones, and where half a tile is left, one in which it lies beside that of
// the next pixel, so that one product takes it for two taps. The third tap of a row is taken with
// the second one once more, times 0: what a filter does not meet, which may be infinite, is in no
// product.
struct Depth {
    int whole;
    bool half;
    explicit Depth(int pitch) : whole(pitch / width), half(pitch % width != 0) {}
    int planes() const { return whole + half; }
    int steps() const { return 3 * whole + 2 * half; } // of three taps
};

// Images with borders of their own, [span][span][pitch] each, line by line.
struct Source {
    const float* images;
    Lines lines;
    int pitch, count; // of images
    ptrdiff_t row;

    Source(const float* from, int side, int to_pitch, int images_of)
        : images(from), lines{side}, pitch(to_pitch), count(images_of),
          row(static_cast<ptrdiff_t>(span(side)) * to_pitch) {}
    const float* line(int at) const {
        int image = at / lines.count(), y = at % lines.count();
        if (image == count) // the border below the last one
            image = count - 1, y = lines.count();
        return images + (image * static_cast<ptrdiff_t>(span(lines.side)) + y) * row;
    }
    // A line of what lies inside the borders: those of a line and an image are at their ends.
    const float* inside(int at) const { return line(at) + row + pitch; }
};

// Lines, and the border behind the last one, as rows of tiles: [part][plane][pixel][32 channels]
inline void store_planes(const Source& from, int first, int count, uint16_t* to, ptrdiff_t plane) {
    const Depth depth(from.pitch);
    const ptrdiff_t part = depth.planes() * plane;
    for (int line = first; line < first + count; ++line) {
        const float* x = from.line(line);
        for (int p = 0; p < from.lines.length(); ++p, x += from.pitch, to += width) {
            const auto store = [&](const float* even, const float* odd,
                                   uint16_t* at) MAMLPP_LAMBDA {
                const Parts a(Vec<float>::load(even)), b(Vec<float>::load(odd));
                for (int k = 0; k < parts; ++k)
                    _mm512_storeu_si512(at + k * part, rounded(a.of[k], b.of[k]));
            };
            for (int b = 0; b < depth.whole; ++b)
                store(x + b * width, x + b * width + edge, to + b * plane);
            if (depth.half)
                store(x + depth.whole * width, x + from.pitch + depth.whole * width,
                      to + depth.whole * plane);
        }
    }
    for (int p = 0; p < parts * depth.planes(); ++p)
        _mm512_storeu_si512(to + p * plane, _mm512_setzero_si512());
}

// The same as columns: [part][16 channels][parity][pair of pixels][16 channels of both]. The pairs
// of one parity begin at even pixels, those of the other at odd ones, so that wherever a tap
// begins, it meets whole ones. What follows up to `pixels` is 0.
inline void store_pairs(const Source& from, int first, int count, int pixels, uint16_t* to,
                        ptrdiff_t parity) {
    const ptrdiff_t part = from.pitch / edge * 2 * parity;
    for (int c = 0; c < from.pitch; c += edge, to += 2 * parity) {
        Parts before(Vec<float>::all(0));
        int at = 0;
        const auto next = [&](Vec<float> x) MAMLPP_LAMBDA {
            const Parts now(x);
            for (int k = 0; at && k < parts; ++k)
                _mm512_storeu_si512(to + k * part + (at & 1 ? 0 : parity) +
                                        static_cast<ptrdiff_t>((at - 1) / 2) * width,
                                    interleaved(before.of[k], now.of[k]));
            before = now;
            ++at;
        };
        for (int line = first; line < first + count; ++line) {
            const float* x = from.line(line) + c;
            for (int p = 0; p < from.lines.length(); ++p, x += from.pitch)
                next(Vec<float>::load(x));
        }
        while (at <= pixels)
            next(Vec<float>::all(0));
    }
}

// The lines inside the borders as rows of tiles, their pixels along a row:
// [part][16 channels][32 pixels][16 channels][32 pixels], up to whole tiles.
inline void store_turned(const Source& from, int first, int count, uint16_t* to,
                         ptrdiff_t channels) {
    const int pixels = count * from.lines.length();
    const ptrdiff_t part = from.pitch / edge * channels;
    int line = first, x = 0;
    for (int p = 0; p < pixels; p += width, to += whole_tile) {
        const float* at[width];
        for (int i = 0; i < width; ++i) {
            at[i] = p + i < pixels ? from.inside(line) + static_cast<ptrdiff_t>(x) * from.pitch
                                   : nullptr;
            if (++x == from.lines.length())
                x = 0, ++line;
        }
        for (int c = 0; c < from.pitch; c += edge) {
            Vec<float> block[parts][edge];
            for (int i = 0; i < edge; ++i) {
                const auto value = [&](const float* v) MAMLPP_LAMBDA {
                    return v ? Vec<float>::load(v + c) : Vec<float>::all(0);
                };
                const Parts a(value(at[2 * i])), b(value(at[2 * i + 1]));
                for (int k = 0; k < parts; ++k)
                    block[k][i] = {_mm512_castsi512_ps(interleaved(a.of[k], b.of[k]))};
            }
            for (int k = 0; k < parts; ++k) {
                transpose(block[k]);
                for (int i = 0; i < edge; ++i)
                    _mm512_storeu_si512(to + k * part + c / edge * channels + i * width,
                                        _mm512_castps_si512(block[k][i].v));
            }
        }
    }
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
