// Memory that norm_act's calls work in.
#pragma once

#include "norm_build.h"

namespace mamlpp {
namespace cuda {

// Sums of the tiles, then coefficients.
template <class T> struct Work {
    double* part;
    T* coef;
    size_t bytes;

    Work(const NormShape& s, int tasks, void* block) {
        ptrdiff_t sums = 0;
        by_lanes<T>(s, [&](auto vector) {
            constexpr int V = decltype(vector)::value;
            const ptrdiff_t counts[] = {2 * summed<V>(s, s.side, Moments<T, V>::batch).tiles,
                                        2 * summed<V>(s, s.side, sum_batch).tiles,
                                        4 * summed<V>(s, windows_of(s).pooled, sum_batch).tiles};
            for (ptrdiff_t count : counts)
                sums = count > sums ? count : sums;
        });
        const ptrdiff_t channels = static_cast<ptrdiff_t>(tasks) * s.channels;
        part = static_cast<double*>(block);
        coef = block ? reinterpret_cast<T*>(part + sums * channels) : nullptr;
        bytes = static_cast<size_t>(channels) * (sums * sizeof(double) + coefficients * sizeof(T));
    }
};

} // namespace cuda
} // namespace mamlpp
