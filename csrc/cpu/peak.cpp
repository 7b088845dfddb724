// What the processor's multiply-adds reach: the measure of all products here.
#include "cpu.h"
#include "pass.h"
#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> double multiply_adds(ptrdiff_t rounds, T* left, int workers, Team& team) {
    constexpr int chains = 12; // more than the latency of one covers
    each(team, workers, [&](int worker, int) {
        const Vec<T> half = Vec<T>::all(static_cast<T>(0.5));
        Vec<T> x[chains];
#pragma GCC unroll 12
        for (int i = 0; i < chains; ++i)
            x[i] = Vec<T>::all(static_cast<T>(i));
        for (ptrdiff_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
            for (int i = 0; i < chains; ++i)
                x[i] = fma(x[i], half, half);
        for (int i = 1; i < chains; ++i)
            x[0] = x[0] + x[i];
        T lane[lanes<T>];
        x[0].store(lane);
        left[worker] = lane[0];
    });
    return 2.0 * static_cast<double>(rounds) * chains * lanes<T> * workers;
}

template double multiply_adds(ptrdiff_t, float*, int, Team&);
template double multiply_adds(ptrdiff_t, double*, int, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
