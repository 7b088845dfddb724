// What the CUDA kernels are written in: one block of threads at a time, in C++ that nvcc compiles
// for a GPU (launch.cuh) and any compiler for the tests' emulation (tests/native/emulated.cpp).
//
// A program is a struct of operands with `name`, `threads`, grid() and shared(), the doubles of
// memory that a block's threads share. Its operator() calls block.each(f): f(thread) by every
// thread of the block, then a barrier. What one thread leaves to another goes through `shared`.
#pragma once

#include <math.h>

#include "ops.h"

#ifdef __CUDACC__
#define MAMLPP_DEVICE __device__ __forceinline__
#define MAMLPP_UNROLL _Pragma("unroll")
#else
#define MAMLPP_DEVICE inline
#define MAMLPP_UNROLL
#endif

namespace mamlpp {
namespace cuda {

struct Grid {
    ptrdiff_t x, y, z;
};

constexpr int block_threads = 256;

inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

// V values that are read and written at once; 16 bytes of them where V is lanes<T>.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T v[V];
};
template <class T> constexpr int lanes = 16 / sizeof(T);

template <int V, class T> MAMLPP_DEVICE Pack<T, V> load(const T* from) {
    return *reinterpret_cast<const Pack<T, V>*>(from);
}
template <int V, class T> MAMLPP_DEVICE void store(T* to, const Pack<T, V>& values) {
    *reinterpret_cast<Pack<T, V>*>(to) = values;
}

// A task's row; null where there is no such operand.
template <class T> MAMLPP_DEVICE T* row_of(const Rows<T>& rows, int task) {
    return rows.data ? rows.data + task * rows.stride : nullptr;
}

template <class T> Rows<const T> constant(const Rows<T>& rows) { return {rows.data, rows.stride}; }

// values [rows][width] → their sum over the rows, in row 0; a tree, whatever its threads do.
template <class Block>
MAMLPP_DEVICE void fold(const Block& block, double* values, int rows, int width) {
    int half = 1;
    while (2 * half < rows)
        half *= 2;
    for (; rows > 1; rows = half, half /= 2)
        block.each([&](int thread) {
            for (int i = thread; i < (rows - half) * width; i += Block::threads)
                values[i] += values[i + half * width];
        });
}

} // namespace cuda
} // namespace mamlpp
