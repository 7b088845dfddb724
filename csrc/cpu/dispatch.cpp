// The instruction set that runs the kernels.

#include "../ops.h"

namespace mamlpp {

// What each set of CMake's MAMLPP_ISAS defines.
#ifdef MAMLPP_HAS_X86
namespace avx512 {
template <class T> const CpuOps<T>& ops();
}
namespace avx2 {
template <class T> const CpuOps<T>& ops();
}
#endif
namespace portable {
template <class T> const CpuOps<T>& ops();
}

namespace {

Isa best_isa() {
#ifdef MAMLPP_HAS_X86
    const CpuFeatures& f = cpu_features();
    if (f.avx512f && f.avx512bw && f.avx512vl && f.fma)
        return Isa::avx512;
    if (f.avx2 && f.fma)
        return Isa::avx2;
#endif
    return Isa::portable;
}

Isa current = best_isa();

} // namespace

Isa isa() { return current; }

Isa limit_isa(Isa most) {
    const Isa best = best_isa();
    current = most < best ? most : best;
    return current;
}

template <class T> const CpuOps<T>& cpu_ops() {
#ifdef MAMLPP_HAS_X86
    if (current == Isa::avx512)
        return avx512::ops<T>();
    if (current == Isa::avx2)
        return avx2::ops<T>();
#endif
    return portable::ops<T>();
}
template const CpuOps<float>& cpu_ops<float>();
template const CpuOps<double>& cpu_ops<double>();

} // namespace mamlpp
