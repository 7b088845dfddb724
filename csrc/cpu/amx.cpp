// The 3×3 convolution of stride 1 by AMX, directly: Winograd's F(1×1, 3×3), whose cells are the
// taps. Products of bfloat16 take so little there that to transform for fewer of them does not pay.
#include "amx_images.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

ptrdiff_t filters_size(int rows, int pitch) { // in bfloat16, of a part
    return 3 * Depth(up(rows, edge)).steps() * whole_tile * (pitch / edge);
}

// In floats, as the room for all of them is.
ptrdiff_t in_floats(ptrdiff_t bfloat16s) { return (bfloat16s + 1) / 2; }

ptrdiff_t operands_size(int, int rows, int pitch) {
    return in_floats(parts * filters_size(rows, pitch));
}

// From one parity of a strip's pairs to the other, and from 16 of its turned channels to the next.
ptrdiff_t parity_step(const Lines& lines) {
    return static_cast<ptrdiff_t>(lines.met() / 2 + 1) * width;
}
ptrdiff_t turned_step(const Lines& lines) { return lines.pixels() / width * whole_tile; }

StripSizes strip_sizes(const Conv<float>& g) {
    const Lines lines{g.side};
    const int pitch = g.pitch_in > g.pitch_out ? g.pitch_in : g.pitch_out;
    const ptrdiff_t planes = Depth(pitch).planes() * static_cast<ptrdiff_t>(lines.met()) * width;
    const ptrdiff_t by_pairs = pitch / edge * 2 * parity_step(lines);
    return {in_floats(parts * (planes > by_pairs ? planes : by_pairs)),
            static_cast<ptrdiff_t>(lines.pixels()) * pitch};
}

// Filters as columns, in the order in which `fwd` takes them:
// [part][16 filters][row of taps][step][pair of channels][16 filters of both]
void pack(int, const float* w, int rows, Span which, ptrdiff_t row_step, ptrdiff_t tap_step,
          int pitch, bool flipped, void* to) {
    const Depth depth(up(rows, edge));
    const ptrdiff_t block = 3 * depth.steps() * whole_tile, part = filters_size(rows, pitch);
    const int all = which.end == rows ? up(rows, edge) : which.end;
    for (int c = which.begin; c < all; c += 2)
        for (int t = 0; t < taps; ++t) {
            const float* const from = w + c * row_step + (flipped ? taps - 1 - t : t) * tap_step;
            const bool half = c >= depth.whole * width;
            const int s = t % 3, row = c % width / 2 + (half && s ? edge / 2 : 0);
            const int step = half ? 3 * depth.whole + s / 2 : s * depth.whole + c / width;
            uint16_t* at = static_cast<uint16_t*>(to) +
                           (t / 3 * depth.steps() + step) * whole_tile + row * width;
            for (int f = 0; f < pitch; f += edge, at += block) {
                const auto value = [&](int i) MAMLPP_LAMBDA {
                    return c + i < rows ? Vec<float>::load(from + i * row_step + f)
                                        : Vec<float>::all(0);
                };
                const Parts a(value(0)), b(value(1));
                for (int k = 0; k < parts; ++k) {
                    uint16_t* const pair = at + k * part;
                    _mm512_storeu_si512(pair, interleaved(a.of[k], b.of[k]));
                    if (half && s == 2)
                        _mm512_storeu_si512(pair - edge / 2 * width, _mm512_setzero_si512());
                }
            }
        }
}

// Calls strip(first line, count) for the lines of some rows of images.
template <class F> MAMLPP_INLINE void for_strips(const Lines& lines, Span rows, F strip) {
    const int begin = lines.at(rows.begin), all = lines.at(rows.end - 1) + 1 - begin;
    const int strips = (all + lines.of_strip() - 1) / lines.of_strip();
    for (int i = 0, first = begin; i < strips; ++i) {
        const int count = all / strips + (i < all % strips);
        strip(first, count);
        first += count;
    }
}

// A strip of one or two pairs of operands, and where a pixel meets the steps of a row of taps.
struct Planes {
    static constexpr int most_steps = 3 * 4096 / width; // of LARGEST of kernels/native/passes.py
    const uint16_t *at[2], *filters[2];
    int count = 0, steps = 0;
    ptrdiff_t line, plane, offsets[most_steps];

    Planes(const Conv<float>& g, const Factors<float>* factors, int pairs, const Tiles<float>& room)
        : line(Lines{g.side}.length() * width), plane(Lines{g.side}.met() * width) {
        for (; count < pairs; ++count) {
            at[count] = static_cast<const uint16_t*>(room.x[count]);
            filters[count] = static_cast<const uint16_t*>(factors[count].w.cells);
        }
        const Depth depth(g.pitch_in);
        for (int s = 0; s < 3; ++s)
            for (int p = 0; p < depth.whole; ++p)
                offsets[steps++] = p * plane + s * width;
        for (int s = 0; depth.half && s < 2; ++s)
            offsets[steps++] = depth.whole * plane + s * width;
    }
};

// Products of M tiles of pixels from `pixel` on with N of filters from `column` on → z
// [pixels][pitch_out]
template <int M, int N>
MAMLPP_APART void multiply_block(const Conv<float>& g, const Planes& from, int pixel, int column,
                                 float* z) {
    const ptrdiff_t block = 3 * from.steps * whole_tile;
    Block<M, N>::zero();
    for (int k = 0; k < from.count; ++k) {
        Operands<N> w;
        w.part = block * (g.pitch_out / edge);
        for (int j = 0; j < N; ++j)
            w.at[j] = from.filters[k] + (column + j) * block;
        Operands<M> x;
        x.part = Depth(g.pitch_in).planes() * from.plane;
        const uint16_t* first = from.at[k] + static_cast<ptrdiff_t>(pixel) * width;
        for (int r = 0; r < 3; ++r, first += from.line)
            for (int step = 0; step < from.steps; ++step, w.next()) {
                for (int i = 0; i < M; ++i)
                    x.at[i] = first + from.offsets[step] + i * whole_tile;
                Block<M, N>::add(x, w);
            }
    }
    Block<M, N>::store(z + column * edge, g.pitch_out, static_cast<ptrdiff_t>(edge) * g.pitch_out,
                       edge);
}

// The same of a strip's pixels: the filters of a block of columns after the others, which stay in
// the cache.
template <int N>
void multiply_pixels(const Conv<float>& g, const Planes& from, int pixels, int column, float* z) {
    for (int p = 0; p < pixels; p += 2 * edge, z += static_cast<ptrdiff_t>(2 * edge) * g.pitch_out)
        if (pixels - p > edge)
            multiply_block<2, N>(g, from, p, column, z);
        else
            multiply_block<1, N>(g, from, p, column, z);
}
void multiply_columns(const Conv<float>& g, const Planes& from, int pixels, float* z) {
    const int columns = g.pitch_out / edge;
    int j = 0;
    for (; j + 1 < columns; j += 2)
        multiply_pixels<2>(g, from, pixels, j, z);
    if (j < columns)
        multiply_pixels<1>(g, from, pixels, j, z);
}

void fwd(const Conv<float>& g, const Factors<float>* factors, int count, Span of_rows,
         const Tiles<float>& room, float* z, EachRow<float> row) {
    const TilesInUse in_use;
    const Lines lines{g.side};
    const Planes planes(g, factors, count, room);
    const int images = (of_rows.end - 1) / g.side + 1;
    const ptrdiff_t pitch = g.pitch_out;
    for_strips(lines, of_rows, [&](int first, int strip) {
        for (int k = 0; k < count; ++k)
            store_planes({factors[k].image, g.side, g.pitch_in, images}, first, strip + 2,
                         static_cast<uint16_t*>(room.x[k]), planes.plane);
        multiply_columns(g, planes, strip * lines.length(), room.z);
        const float* from = room.z;
        for (int line = first; line < first + strip; ++line, from += lines.length() * pitch) {
            const int image = line / lines.count(), y = line % lines.count();
            if (y == g.side)
                continue;
            float* const to = z + (static_cast<ptrdiff_t>(image) * g.side + y) * g.side * pitch;
            for (ptrdiff_t v = 0; v < g.side * pitch; v += edge)
                Vec<float>::load(from + v).store(to + v);
            row(image, y, to);
        }
    });
}

// A strip's share of `sum` for M tiles of filters from tile i on, the channels of tile j and the
// three taps of column s.
template <int M>
MAMLPP_APART void add_block(const Conv<float>& g, const Tiles<float>& room, int count, int pixels,
                            int i, int j, int s, float* sum, bool fresh) {
    const Lines lines{g.side};
    const ptrdiff_t parity = parity_step(lines), turned = turned_step(lines);
    const ptrdiff_t tap = static_cast<ptrdiff_t>(g.pitch_out) * g.pitch_in;
    const ptrdiff_t down = static_cast<ptrdiff_t>(edge) * g.pitch_in;
    float* const to = sum + s * tap + i * down + j * edge;
    if (fresh)
        Block<M, 3>::zero();
    else
        Block<M, 3>::load(to, g.pitch_in, down, 3 * tap);
    for (int k = 0; k < count; ++k) {
        Operands<M> dz;
        dz.part = g.pitch_out / edge * turned;
        for (int m = 0; m < M; ++m)
            dz.at[m] = static_cast<const uint16_t*>(room.dz[k]) + (i + m) * turned;
        Operands<3> x;
        x.part = g.pitch_in / edge * 2 * parity;
        for (int r = 0; r < 3; ++r) {
            const int met = r * lines.length() + s;
            x.at[r] = static_cast<const uint16_t*>(room.x[k]) + (2 * j + met % 2) * parity +
                      static_cast<ptrdiff_t>(met / 2) * width;
        }
        for (int p = 0; p < pixels; p += width, dz.next(), x.next())
            Block<M, 3>::add(dz, x);
    }
    Block<M, 3>::store(to, g.pitch_in, down, 3 * tap);
}

// sum[taps][filters, whole tiles][pitch_in]
void wgrad(const Conv<float>& g, const Pair<float>* factors, int count, Span of_rows,
           const Tiles<float>& room, float* sum, bool fresh) {
    const TilesInUse in_use;
    const Lines lines{g.side};
    const int images = (of_rows.end - 1) / g.side + 1;
    const int rows = g.pitch_out / edge, columns = g.pitch_in / edge;
    for_strips(lines, of_rows, [&](int first, int strip) {
        const int pixels = up(strip * lines.length(), width);
        for (int k = 0; k < count; ++k) {
            store_pairs({factors[k].image, g.side, g.pitch_in, images}, first, strip + 2,
                        pixels + 2 * lines.length() + 2, static_cast<uint16_t*>(room.x[k]),
                        parity_step(lines));
            store_turned({factors[k].w, g.side, g.pitch_out, images}, first, strip,
                         static_cast<uint16_t*>(room.dz[k]), turned_step(lines));
        }
        for (int j = 0; j < columns; ++j)
            for (int i = 0; i < rows; i += 2)
                for (int s = 0; s < 3; ++s)
                    if (i + 1 < rows)
                        add_block<2>(g, room, count, pixels, i, j, s, sum, fresh);
                    else
                        add_block<1>(g, room, count, pixels, i, j, s, sum, fresh);
        fresh = false;
    });
}

} // namespace

template <> const Winograd<float>& winograd<float>() {
    static constexpr Winograd<float> table{1, operands_size, strip_sizes, pack, fwd, wgrad};
    return table;
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
