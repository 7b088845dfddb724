// The instruction set that runs the kernels.

#include "../ops.h"

namespace mamlpp {

// What each mamlpp_set of CMake defines; those of bfloat16 have no single ops.
#define MAMLPP_SET(name)                                                                           \
    namespace name {                                                                               \
    template <class T> const PassOps<T>& pass_ops();                                               \
    template <class T> const CpuOps<T>& ops();                                                     \
    }
MAMLPP_SET(portable)
#ifdef MAMLPP_HAS_X86
MAMLPP_SET(avx2)
MAMLPP_SET(avx512)
#endif
#ifdef MAMLPP_HAS_AVX512BF16
MAMLPP_SET(avx512bf16)
MAMLPP_SET(avx512bf16x3)
#endif
#ifdef MAMLPP_HAS_AMX
MAMLPP_SET(amxbf16)
MAMLPP_SET(amxbf16x3)
#endif

namespace {

Isa best_isa() {
    [[maybe_unused]] const CpuFeatures& f = cpu_features();
    Isa best = Isa::portable;
#ifdef MAMLPP_HAS_X86
    if (f.avx2 && f.fma)
        best = Isa::avx2;
    if (f.avx512f && f.avx512bw && f.avx512vl && f.fma)
        best = Isa::avx512;
#endif
#ifdef MAMLPP_HAS_AVX512BF16
    if (best == Isa::avx512 && f.avx512bf16)
        best = Isa::avx512bf16;
#endif
#ifdef MAMLPP_HAS_AMX
    if (best == Isa::avx512bf16 && f.amx_tile && f.amx_bf16)
        best = Isa::amx;
#endif
    return best;
}

Isa current = best_isa();

} // namespace

Isa isa() { return current; }

Isa limit_isa(Isa most) {
    const Isa best = best_isa();
    current = most < best ? most : best;
    return current;
}

namespace {

// The tables of the set that runs what is float32 or float64.
template <class T> struct Tables {
    const PassOps<T>& passes;
    const CpuOps<T>& ops;
};
template <class T> Tables<T> tables() {
#ifdef MAMLPP_HAS_X86
    if (current >= Isa::avx512)
        return {avx512::pass_ops<T>(), avx512::ops<T>()};
    if (current == Isa::avx2)
        return {avx2::pass_ops<T>(), avx2::ops<T>()};
#endif
    return {portable::pass_ops<T>(), portable::ops<T>()};
}

} // namespace

template <class T> const CpuOps<T>& cpu_ops() { return tables<T>().ops; }
template const CpuOps<float>& cpu_ops<float>();
template const CpuOps<double>& cpu_ops<double>();

template <> const PassOps<double>* pass_ops(Precision precision) {
    return precision == Precision::fp32 ? &tables<double>().passes : nullptr;
}

template <> const PassOps<float>* pass_ops(Precision precision) {
    if (precision == Precision::fp32)
        return &tables<float>().passes;
    [[maybe_unused]] const bool rounded = precision == Precision::bf16;
#ifdef MAMLPP_HAS_AMX
    if (current == Isa::amx)
        return rounded ? &amxbf16::pass_ops<float>() : &amxbf16x3::pass_ops<float>();
#endif
#ifdef MAMLPP_HAS_AVX512BF16
    if (current == Isa::avx512bf16)
        return rounded ? &avx512bf16::pass_ops<float>() : &avx512bf16x3::pass_ops<float>();
#endif
    return nullptr;
}

} // namespace mamlpp
