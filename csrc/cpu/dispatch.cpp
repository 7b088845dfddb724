// The instruction set that runs the kernels.

#include "../ops.h"

namespace mamlpp {

// What each mamlpp_set of CMake defines; those of bfloat16 are for the passes of avx512.
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
#ifdef MAMLPP_HAS_NEON
MAMLPP_SET(neon)
#endif
template <class T> struct Winograd;
template <class T> struct RoundedStem;
#define MAMLPP_ROUNDED(name)                                                                       \
    namespace name {                                                                               \
    template <class T> const Winograd<T>& winograd();                                              \
    }
#ifdef MAMLPP_HAS_AVX512BF16
MAMLPP_ROUNDED(avx512bf16)
MAMLPP_ROUNDED(avx512bf16x3)
#endif
#ifdef MAMLPP_HAS_AMX
MAMLPP_ROUNDED(amxbf16)
MAMLPP_ROUNDED(amxbf16x3)
namespace amxbf16x3 {
const RoundedStem<float>& stem_table();
}
#endif
#ifdef MAMLPP_EMULATED_TILES
MAMLPP_ROUNDED(emulatedbf16)
MAMLPP_ROUNDED(emulatedbf16x3)
namespace emulatedbf16x3 {
const RoundedStem<float>& stem_table();
}
#endif

namespace {

// Whether it was built and this machine grants it.
bool granted(Isa set) {
    [[maybe_unused]] const CpuFeatures& f = cpu_features();
    switch (set) {
    case Isa::portable:
        return true;
#ifdef MAMLPP_HAS_NEON
    case Isa::neon:
        return f.neon;
#endif
#ifdef MAMLPP_HAS_X86
    case Isa::avx2:
        return f.avx2 && f.fma;
    case Isa::avx512:
        return f.avx512f && f.avx512bw && f.avx512vl && f.fma;
#endif
#ifdef MAMLPP_HAS_AVX512BF16
    case Isa::avx512bf16:
        return granted(Isa::avx512) && f.avx512bf16;
#endif
#ifdef MAMLPP_HAS_AMX
    case Isa::amx:
        return granted(Isa::avx512bf16) && f.amx_tile && f.amx_bf16;
#endif
    default:
        return false;
    }
}

Isa best_isa(Isa most) {
    int set = static_cast<int>(most);
    while (!granted(static_cast<Isa>(set)))
        --set;
    return static_cast<Isa>(set);
}

Isa current = best_isa(Isa::amx);

} // namespace

Isa isa() { return current; }

Isa limit_isa(Isa most) {
    current = best_isa(most);
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
#ifdef MAMLPP_HAS_NEON
    if (current == Isa::neon)
        return {neon::pass_ops<T>(), neon::ops<T>()};
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

namespace {

#ifdef MAMLPP_EMULATED_TILES
bool emulated = false;
#endif

// What takes the products of float32 data in this precision, or null.
const Winograd<float>* rounded_or_null(Precision precision) {
    [[maybe_unused]] const bool one_part = precision == Precision::bf16;
#ifdef MAMLPP_EMULATED_TILES
    if (emulated)
        return one_part ? &emulatedbf16::winograd<float>() : &emulatedbf16x3::winograd<float>();
#endif
#ifdef MAMLPP_HAS_AMX
    if (current == Isa::amx)
        return one_part ? &amxbf16::winograd<float>() : &amxbf16x3::winograd<float>();
#endif
#ifdef MAMLPP_HAS_AVX512BF16
    if (current == Isa::avx512bf16)
        return one_part ? &avx512bf16::winograd<float>() : &avx512bf16x3::winograd<float>();
#endif
    return nullptr;
}

} // namespace

#ifdef MAMLPP_EMULATED_TILES
void emulate_tiles(bool on) { emulated = on; }
#endif

const Winograd<float>& rounded_winograd(Precision precision) { return *rounded_or_null(precision); }

// The same for one part and two: the statistics of a first stage are of its patches in float64.
const RoundedStem<float>* rounded_stem([[maybe_unused]] Precision precision) {
#ifdef MAMLPP_EMULATED_TILES
    if (emulated && precision != Precision::fp32)
        return &emulatedbf16x3::stem_table();
#endif
#ifdef MAMLPP_HAS_AMX
    if (current == Isa::amx && precision != Precision::fp32)
        return &amxbf16x3::stem_table();
#endif
    return nullptr;
}

template <> const PassOps<float>* pass_ops(Precision precision) {
    return precision == Precision::fp32 || rounded_or_null(precision) ? &tables<float>().passes
                                                                      : nullptr;
}

} // namespace mamlpp
