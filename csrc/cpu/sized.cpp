// Each tap is a matrix product over the pixels of a row; 1×1 filters with a stride of 1 have one
// tap and one row, the whole image. A tangent's two products are one longer sum, as in conv.h.
#include "sized.h"
#include "carver.h"
#include "images.h"
#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// Values that `outer` sweeps at once: so many pixels of so many channels and filters, 40 KiB of
// float.
constexpr int sweep_pixels = 80, sweep_channels = 64;

template <class T> struct SizedPlan {
    int n, channels, filters, stride, size;
    int rows, columns;         // of the input
    int out_rows, out_columns; // of the output
    int pitch_in, pitch_out;   // whole vectors

    explicit SizedPlan(const ConvShape& s)
        : n(s.n), channels(s.channels), filters(s.filters), stride(s.stride), size(s.size),
          rows(s.side), columns(s.side), pitch_in(padded<T>(s.channels)),
          pitch_out(padded<T>(s.filters)) {
        if (size == 1 && stride == 1 && rows < 1 << 15) { // no pixel has neighbours
            columns *= rows;
            rows = 1;
        }
        out_rows = (rows - 1) / stride + 1;
        out_columns = (columns - 1) / stride + 1;
    }
    int border() const { return size / 2; }
    int taps_of() const { return size * size; }
    ptrdiff_t x_row() const { return static_cast<ptrdiff_t>(columns + 2 * border()) * channels; }
    ptrdiff_t dz_row() const {
        return static_cast<ptrdiff_t>(out_columns + 2 * border()) * pitch_out;
    }
    ptrdiff_t x_image() const { return static_cast<ptrdiff_t>(rows) * columns * channels; }
    ptrdiff_t z_image() const { return static_cast<ptrdiff_t>(out_rows) * out_columns * filters; }
    // Whether an image is read where it lies.
    bool x_as_it_is() const { return border() == 0; }
    bool dz_as_it_is() const { return border() == 0 && filters == pitch_out; }
    // Of filters for the value and of a weight gradient, and of filters for the input gradient.
    ptrdiff_t fwd_size() const { return static_cast<ptrdiff_t>(taps_of()) * channels * pitch_out; }
    ptrdiff_t bwd_size() const { return static_cast<ptrdiff_t>(taps_of()) * filters * pitch_in; }
};

template <class T> struct SizedWork {
    T *fwd[2], *bwd[2];
    T* shares; // [chunks][taps][channels][pitch_out], of the weight gradient

    SizedWork(const SizedPlan<T>& plan, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        for (int k = 0; k < 2; ++k) {
            fwd[k] = carver.take<T>(plan.fwd_size());
            bwd[k] = carver.take<T>(plan.bwd_size());
        }
        shares = carver.take<T>(chunks(plan.n) * plan.fwd_size());
        if (bytes)
            *bytes = carver.bytes();
    }
};

// One worker's: an image's operands with their borders, and a row of a result whose pixels are
// whole vectors.
template <class T> struct SizedScratch {
    T *x[2], *dz[2], *row;
    Term<T>* terms;

    SizedScratch(const SizedPlan<T>& plan, void* block, size_t* bytes = nullptr) {
        Carver carver(block);
        const int b = 2 * plan.border();
        for (int k = 0; k < 2; ++k) {
            x[k] = carver.take<T>(plan.x_as_it_is() ? 0 : (plan.rows + b) * plan.x_row());
            dz[k] = carver.take<T>(plan.dz_as_it_is() ? 0 : (plan.out_rows + b) * plan.dz_row());
        }
        const ptrdiff_t in = static_cast<ptrdiff_t>(plan.columns) * plan.pitch_in;
        const ptrdiff_t out = static_cast<ptrdiff_t>(plan.out_columns) * plan.pitch_out;
        row = carver.take<T>(in > out ? in : out);
        terms = carver.take<Term<T>>(2 * plan.taps_of());
        if (bytes)
            *bytes = carver.bytes();
    }
};

template <class T> SizedScratch<T> sized_room(const SizedPlan<T>& plan, void* scratch, int worker) {
    size_t bytes = 0;
    SizedScratch<T>(plan, nullptr, &bytes);
    return {plan, static_cast<char*>(scratch) + worker * bytes};
}

// [rows][columns][channels] → the same with `border` zeros on all sides and pixels of `pitch`
template <class T>
void surround(const T* image, int rows, int columns, int channels, int border, int pitch, T* to) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(columns + 2 * border) * pitch;
    const ptrdiff_t edge = static_cast<ptrdiff_t>(border) * pitch;
    const auto clear = [](T* at, ptrdiff_t count) {
        __builtin_memset(at, 0, static_cast<size_t>(count) * sizeof(T));
    };
    clear(to, border * row);
    for (int y = 0; y < rows; ++y) {
        T* const at = to + (y + border) * row;
        clear(at, edge);
        copy_pixels(image + static_cast<ptrdiff_t>(y) * columns * channels, columns, channels,
                    pitch, at + edge);
        clear(at + row - edge, edge);
    }
    clear(to + (rows + border) * row, border * row);
}

template <class T> const T* bordered_x(const SizedPlan<T>& plan, const T* x, int image, T* room) {
    x += image * plan.x_image();
    if (plan.x_as_it_is())
        return x;
    surround(x, plan.rows, plan.columns, plan.channels, plan.border(), plan.channels, room);
    return room;
}

template <class T> const T* bordered_dz(const SizedPlan<T>& plan, const T* dz, int image, T* room) {
    dz += image * plan.z_image();
    if (plan.dz_as_it_is())
        return dz;
    surround(dz, plan.out_rows, plan.out_columns, plan.filters, plan.border(), plan.pitch_out,
             room);
    return room;
}

MAMLPP_INLINE int least(int a, int b) { return a < b ? a : b; }

// z of one image: Σ_pairs conv(image, w), w packed [taps][channels][pitch_out]
template <class T>
void image_fwd(const SizedPlan<T>& plan, const Pair<T>* pairs, int count,
               const SizedScratch<T>& room, T* z) {
    const int b = plan.border(), size = plan.size;
    const ptrdiff_t w_tap = static_cast<ptrdiff_t>(plan.channels) * plan.pitch_out;
    const bool exact = plan.filters == plan.pitch_out;
    for (int y = 0; y < plan.out_rows; ++y) {
        int n = 0;
        for (int k = 0; k < count; ++k)
            for (int r = 0; r < size; ++r) {
                const int from = y * plan.stride + r; // row of the buffer
                if (from < b || from >= plan.rows + b)
                    continue;
                for (int s = 0; s < size; ++s)
                    room.terms[n++] = {pairs[k].image + from * plan.x_row() +
                                           static_cast<ptrdiff_t>(s) * plan.channels,
                                       pairs[k].w + (r * size + s) * w_tap};
            }
        T* const to = z + static_cast<ptrdiff_t>(y) * plan.out_columns * plan.filters;
        multiply(room.terms, n, plan.out_columns,
                 static_cast<ptrdiff_t>(plan.stride) * plan.channels, plan.channels, plan.pitch_out,
                 exact ? to : room.row, plan.pitch_out);
        if (!exact)
            copy_pixels(room.row, plan.out_columns, plan.pitch_out, plan.filters, to);
    }
}

// dx of one image: Σ_pairs dgrad(dz, w), dz with its border, w packed [taps][filters][pitch_in]
template <class T>
void image_dgrad(const SizedPlan<T>& plan, const Pair<T>* pairs, int count,
                 const SizedScratch<T>& room, T* dx) {
    const int b = plan.border(), size = plan.size, stride = plan.stride;
    const ptrdiff_t w_tap = static_cast<ptrdiff_t>(plan.filters) * plan.pitch_in;
    const bool exact = plan.channels == plan.pitch_in;
    for (int i = 0; i < plan.rows; ++i) {
        T* const to = dx + static_cast<ptrdiff_t>(i) * plan.columns * plan.channels;
        T* const row = exact ? to : room.row;
        // Of a stride of 2, every second tap meets a pixel, in rows and in columns.
        for (int j = 0; j < stride && j < plan.columns; ++j) {
            int n = 0;
            for (int k = 0; k < count; ++k)
                for (int r = 0; r < size; ++r) {
                    const int y = i + b - r;
                    if (y < 0 || y % stride || y / stride >= plan.out_rows)
                        continue;
                    for (int s = 0; s < size; ++s) {
                        const int x = j + b - s + stride * b; // of the border, never negative
                        if (x % stride)
                            continue;
                        room.terms[n++] = {pairs[k].image + (y / stride + b) * plan.dz_row() +
                                               static_cast<ptrdiff_t>(x / stride) * plan.pitch_out,
                                           pairs[k].w + (r * size + s) * w_tap};
                    }
                }
            multiply(room.terms, n, (plan.columns - j + stride - 1) / stride, plan.pitch_out,
                     plan.filters, plan.pitch_in, row + static_cast<ptrdiff_t>(j) * plan.pitch_in,
                     static_cast<ptrdiff_t>(stride) * plan.pitch_in);
        }
        if (!exact)
            copy_pixels(room.row, plan.columns, plan.pitch_in, plan.channels, to);
    }
}

// sum[taps][channels][pitch_out] (+)= Σ_pairs wgrad(x, dz) of one image. Of each pair, `image` is x
// with its border and `w` is dz with its border.
template <class T>
void image_wgrad(const SizedPlan<T>& plan, const Pair<T>* pairs, int count, T* sum, bool fresh) {
    const int b = plan.border(), size = plan.size, columns = plan.out_columns;
    const int width = least(columns, sweep_pixels);
    const int height = sweep_pixels / width;
    const ptrdiff_t x_step = static_cast<ptrdiff_t>(plan.stride) * plan.channels;
    for (int k = 0; k < count; ++k)
        for (int y0 = 0; y0 < plan.out_rows; y0 += height)
            for (int x0 = 0; x0 < columns; x0 += width, fresh = false)
                for (int tap = 0; tap < plan.taps_of(); ++tap) {
                    const int r = tap / size, s = tap % size;
                    Run<T> runs[sweep_pixels];
                    int n = 0;
                    for (int y = y0; y < y0 + height && y < plan.out_rows; ++y) {
                        const int from = y * plan.stride + r;
                        if (from < b || from >= plan.rows + b)
                            continue;
                        runs[n++] = {pairs[k].image + from * plan.x_row() + x0 * x_step +
                                         static_cast<ptrdiff_t>(s) * plan.channels,
                                     pairs[k].w + (y + b) * plan.dz_row() +
                                         static_cast<ptrdiff_t>(x0 + b) * plan.pitch_out};
                    }
                    const int pixels = least(width, columns - x0);
                    T* to = sum + static_cast<ptrdiff_t>(tap) * plan.channels * plan.pitch_out;
                    for (int c = 0; c < plan.channels; c += sweep_channels)
                        for (int f = 0; f < plan.pitch_out; f += sweep_channels) {
                            Run<T> part[sweep_pixels];
                            for (int i = 0; i < n; ++i)
                                part[i] = {runs[i].scalars + c, runs[i].vectors + f};
                            const int scalars = least(plan.channels - c, sweep_channels);
                            const int vectors = least(plan.pitch_out - f, sweep_channels);
                            outer(part, n, pixels, scalars, x_step, vectors, plan.pitch_out,
                                  to + static_cast<ptrdiff_t>(c) * plan.pitch_out + f,
                                  plan.pitch_out, fresh);
                        }
                }
}

// Σ of `parts` shares, into the first → [filters][taps][channels]
template <class T> void store_sums(const SizedPlan<T>& plan, T* shares, int parts, T* to) {
    constexpr int L = lanes<T>;
    const ptrdiff_t size = plan.fwd_size();
    for (ptrdiff_t at = 0; parts > 1 && at < size; at += L) {
        Vec<T> sum = Vec<T>::load(shares + at);
        for (int i = 1; i < parts; ++i)
            sum = sum + Vec<T>::load(shares + i * size + at);
        sum.store(shares + at);
    }
    const ptrdiff_t rows = static_cast<ptrdiff_t>(plan.taps_of()) * plan.channels;
    for (int f = 0; f < plan.filters; ++f, to += rows)
        for (ptrdiff_t i = 0; i < rows; ++i)
            to[i] = shares[i * plan.pitch_out + f];
}

} // namespace

template <class T> size_t sized_work_bytes(const ConvShape& shape) {
    size_t bytes = 0;
    SizedWork<T>(SizedPlan<T>(shape), nullptr, &bytes);
    return bytes;
}

template <class T> size_t sized_scratch_bytes(const ConvShape& shape) {
    size_t bytes = 0;
    SizedScratch<T>(SizedPlan<T>(shape), nullptr, &bytes);
    return bytes;
}

template <class T>
void sized_fwd(const ConvShape& shape, const ConvTask<T>& task, void* block, void* scratch,
               Team& team) {
    const SizedPlan<T> plan(shape);
    const SizedWork<T> work(plan, block);
    for (int k = 0; k < 2; ++k)
        if (task.pairs[k].w)
            pack_filters(task.pairs[k].w, plan.filters, plan.channels, {0, plan.channels},
                         plan.pitch_out, work.fwd[k], plan.taps_of());
    each(team, chunks(plan.n), [&](int chunk, int worker) {
        const SizedScratch<T> room = sized_room(plan, scratch, worker);
        for (int i = chunk_begin(plan.n, chunk); i < chunk_begin(plan.n, chunk + 1); ++i) {
            Pair<T> pairs[2];
            int count = 0;
            for (int k = 0; k < 2; ++k)
                if (task.pairs[k].w)
                    pairs[count++] = {bordered_x(plan, task.pairs[k].x, i, room.x[k]), work.fwd[k]};
            image_fwd(plan, pairs, count, room, task.z + i * plan.z_image());
        }
    });
}

template <class T>
void sized_bwd(const ConvShape& shape, const ConvTask<T>& task, void* block, void* scratch,
               Team& team) {
    const SizedPlan<T> plan(shape);
    const SizedWork<T> work(plan, block);
    for (int k = 0; k < 2; ++k)
        if (task.dx && task.pairs[k].w && task.pairs[k].dz)
            pack_filters_bwd(task.pairs[k].w, plan.filters, {0, plan.filters}, plan.channels,
                             plan.pitch_in, work.bwd[k], plan.taps_of());
    const int parts = chunks(plan.n);
    each(team, parts, [&](int part, int worker) {
        const SizedScratch<T> room = sized_room(plan, scratch, worker);
        const int first = chunk_begin(plan.n, part);
        for (int i = first; i < chunk_begin(plan.n, part + 1); ++i) {
            Pair<T> inward[2], outward[2];
            int in = 0, out = 0;
            for (int k = 0; k < 2; ++k) {
                const ConvPair<T>& pair = task.pairs[k];
                if (!pair.dz)
                    continue;
                const T* const dz = bordered_dz(plan, pair.dz, i, room.dz[k]);
                if (task.dx && pair.w)
                    inward[in++] = {dz, work.bwd[k]};
                if (task.dw && pair.x)
                    outward[out++] = {bordered_x(plan, pair.x, i, room.x[k]), dz};
            }
            if (task.dx)
                image_dgrad(plan, inward, in, room, task.dx + i * plan.x_image());
            if (task.dw)
                image_wgrad(plan, outward, out, work.shares + part * plan.fwd_size(), i == first);
        }
    });
    if (task.dw)
        store_sums(plan, work.shares, parts, task.dw);
}

template size_t sized_work_bytes<float>(const ConvShape&);
template size_t sized_work_bytes<double>(const ConvShape&);
template size_t sized_scratch_bytes<float>(const ConvShape&);
template size_t sized_scratch_bytes<double>(const ConvShape&);
template void sized_fwd(const ConvShape&, const ConvTask<float>&, void*, void*, Team&);
template void sized_fwd(const ConvShape&, const ConvTask<double>&, void*, void*, Team&);
template void sized_bwd(const ConvShape&, const ConvTask<float>&, void*, void*, Team&);
template void sized_bwd(const ConvShape&, const ConvTask<double>&, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
