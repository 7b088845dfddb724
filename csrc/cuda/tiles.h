// Pixels of a task's images shared out to blocks of threads, and sums over them per channel: each
// block leaves its tile's, in float64, and one block a task and few channels merges them in order.
#pragma once

#include <stdexcept>

#include "program.h"

namespace mamlpp {
namespace cuda {

// A block has `rows` pixels at a time, of each `columns` vectors of channels.
struct Tiling {
    int channels, pixels;      // of a task
    int columns, rows, blocks; // `blocks` of columns make up the channels
    int per_tile, tiles;       // pixels of a tile, tiles of a task

    Grid grid(int tasks) const { return {tiles, blocks, tasks}; }
};

// Tiles whose sums one block is to merge; enough to keep a large GPU busy.
constexpr int most_tiles = 256;
constexpr int most_columns = 32;
// Pixels that a thread reads together, of up to four tensors.
constexpr int sum_batch = 4;

// Each thread has whole batches of `batch` pixels, so that their loads are under way together; as
// few as fit `most` tiles.
inline Tiling tiling(ptrdiff_t pixels, int channels, int lanes, int batch, ptrdiff_t most) {
    if (pixels > 1 << 30)
        throw std::invalid_argument("a task has more than 2^30 pixels; give it fewer images");
    const int vectors = channels / lanes;
    const int blocks = static_cast<int>(ceil_div(vectors, most_columns));
    const int columns = static_cast<int>(ceil_div(vectors, blocks));
    const int rows = block_threads / columns;
    const ptrdiff_t batches = ceil_div(pixels, static_cast<ptrdiff_t>(rows) * batch);
    const ptrdiff_t per_tile = ceil_div(batches, most) * rows * batch;
    return {channels,
            static_cast<int>(pixels),
            columns,
            rows,
            blocks,
            static_cast<int>(per_tile),
            static_cast<int>(ceil_div(pixels, per_tile))};
}

// Where one thread stands in a tile.
struct Lane {
    int row;
    int channel;  // the first one of its vector
    int from, to; // its first pixel, the tile's end
    int shared;   // its vector within a row of the block's
    bool seat;    // it has a row of the shared memory
    bool works;   // and channels
};

template <int V, class Block>
MAMLPP_DEVICE Lane lane_of(const Tiling& g, const Block& block, int thread) {
    const int row = thread / g.columns, column = thread - row * g.columns;
    const int channel = (block.y * g.columns + column) * V, begin = block.x * g.per_tile;
    const bool seat = row < g.rows;
    return {row,
            channel,
            begin + row,
            g.pixels - begin < g.per_tile ? g.pixels : begin + g.per_tile,
            column * V,
            seat,
            seat && channel < g.channels};
}

// f(first, count) for a thread's pixels first, first + rows, …, `count` of them at a time.
template <int BATCH, class F> MAMLPP_DEVICE void for_batches(const Tiling& g, const Lane& at, F f) {
    if (!at.works)
        return;
    for (int first = at.from; first < at.to; first += BATCH * g.rows) {
        const int left = (at.to - first + g.rows - 1) / g.rows;
        f(first, left < BATCH ? left : BATCH);
    }
}

// `count` pixels, and 0 behind them
template <int BATCH, int V, class T>
MAMLPP_DEVICE void load_batch(const Tiling& g, const T* images, int first, int count, int channel,
                              Pack<T, V> (&to)[BATCH]) {
    MAMLPP_UNROLL
    for (int k = 0; k < BATCH; ++k)
        if (k < count) {
            const ptrdiff_t pixel = first + static_cast<ptrdiff_t>(k) * g.rows;
            to[k] = load<V>(images + pixel * g.channels + channel);
        } else {
            to[k] = {};
        }
}

// A row's vector of channels; 0 without an operand. It lies where it lies, and is read once a tile.
template <int V, class T>
MAMLPP_DEVICE Pack<T, V> vector_of(const Rows<const T>& rows, int task, int channel) {
    const T* const row = row_of(rows, task);
    Pack<T, V> values{};
    MAMLPP_UNROLL
    for (int v = 0; v < V; ++v)
        if (row)
            values.v[v] = row[channel + v];
    return values;
}

template <int V> constexpr size_t tile_doubles(const Tiling& g, int sums) {
    return static_cast<size_t>(g.rows) * g.columns * V * sums;
}

// K sums a channel of every thread, in `shared` [rows][K][columns·V] → part [T][tiles][K][C].
template <int K, int V, class Block>
MAMLPP_DEVICE void leave_tile(const Block& block, const Tiling& g, double* shared, double* part) {
    const int width = g.columns * V;
    fold(block, shared, g.rows, K * width);
    double* const to =
        part + (static_cast<ptrdiff_t>(block.z) * g.tiles + block.x) * K * g.channels;
    block.each([&](int thread) {
        for (int i = thread; i < K * width; i += Block::threads) {
            const int k = i / width, channel = block.y * width + i - k * width;
            if (channel < g.channels)
                to[k * g.channels + channel] = shared[i];
        }
    });
}

// What puts one thread's sums there; all seats have to.
template <int K, int V>
MAMLPP_DEVICE void take_seat(const Tiling& g, const Lane& at, const double (&sums)[K][V],
                             double* shared) {
    if (!at.seat)
        return;
    MAMLPP_UNROLL
    for (int k = 0; k < K; ++k)
        MAMLPP_UNROLL
    for (int v = 0; v < V; ++v)
        shared[(at.row * K + k) * g.columns * V + at.shared + v] = sums[k][v];
}

constexpr int merge_rows = 32, merge_columns = 16;

inline Grid merge_grid(const Tiling& g, int tasks) {
    return {ceil_div(g.channels, merge_columns), tasks, 1};
}

// finish(channel, sums) with the sums over f(tile, channel, k) of all tiles, for the channels of a
// block of merge_rows · merge_columns threads and as many doubles times K.
template <int K, class Block, class F, class Finish>
MAMLPP_DEVICE void merge_tiles(const Block& block, const Tiling& g, double* shared, F f,
                               Finish finish) {
    const auto channel_of = [&](int column) { return block.x * merge_columns + column; };
    block.each([&](int thread) {
        const int row = thread / merge_columns, column = thread % merge_columns;
        double sums[K] = {};
        if (channel_of(column) < g.channels)
            for (int tile = row; tile < g.tiles; tile += merge_rows)
                MAMLPP_UNROLL
        for (int k = 0; k < K; ++k)
            sums[k] += f(tile, channel_of(column), k);
        MAMLPP_UNROLL
        for (int k = 0; k < K; ++k)
            shared[(row * K + k) * merge_columns + column] = sums[k];
    });
    fold(block, shared, merge_rows, K * merge_columns);
    block.each([&](int thread) {
        if (thread >= merge_columns || channel_of(thread) >= g.channels)
            return;
        double sums[K];
        MAMLPP_UNROLL
        for (int k = 0; k < K; ++k)
            sums[k] = shared[k * merge_columns + thread];
        finish(channel_of(thread), sums);
    });
}

// Reads part [T][tiles][K][C] of one task.
template <int K> struct Parts {
    const double* part;
    int channels;
    MAMLPP_DEVICE double operator()(int tile, int channel, int k) const {
        return part[(static_cast<ptrdiff_t>(tile) * K + k) * channels + channel];
    }
};
template <int K> MAMLPP_DEVICE Parts<K> parts_of(const Tiling& g, const double* part, int task) {
    return {part + static_cast<ptrdiff_t>(task) * g.tiles * K * g.channels, g.channels};
}

} // namespace cuda
} // namespace mamlpp
