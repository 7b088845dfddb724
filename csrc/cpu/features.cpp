// Processor features: NEON belongs to all of AArch64; of x86-64 by CPUID, and the operating
// system's consent by XGETBV and arch_prctl. Bit positions: Intel SDM vol. 1 chapters 13 (XCR0) and
// 18 (AMX), vol. 2A, CPUID.
#include "../ops.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MAMLPP_X86_64 1
#include <cpuid.h>
#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mamlpp {
namespace {

#if MAMLPP_X86_64

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool bit(std::uint64_t word, unsigned position) { return (word >> position) & 1; }

std::uint64_t enabled_state() { // XCR0: the register files that the system saves and restores
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

bool request_tile_data() {
#if defined(__linux__)
    constexpr long arch_req_xcomp_perm = 0x1023; // asm/prctl.h, Linux 5.16
    constexpr long xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
    return false;
#endif
}

CpuFeatures detect() {
    CpuFeatures f;
    const Registers basic = cpuid(1, 0);
    if (!bit(basic.ecx, 27)) // OSXSAVE: without it XGETBV is not allowed
        return f;
    const std::uint64_t state = enabled_state();
    const bool ymm = (state & 0x6) == 0x6;
    const bool zmm = ymm && (state & 0xe0) == 0xe0;
    const bool tiles = (state & 0x60000) == 0x60000;
    const Registers leaf7 = cpuid(7, 0);
    const Registers leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : Registers{};

    f.fma = ymm && bit(basic.ecx, 12);
    f.avx2 = ymm && bit(leaf7.ebx, 5);
    f.avx512f = zmm && bit(leaf7.ebx, 16);
    f.avx512bw = f.avx512f && bit(leaf7.ebx, 30);
    f.avx512vl = f.avx512f && bit(leaf7.ebx, 31);
    f.avx512bf16 = f.avx512f && bit(leaf7_1.eax, 5);
    f.amx_tile = tiles && bit(leaf7.edx, 24) && request_tile_data();
    f.amx_bf16 = f.amx_tile && bit(leaf7.edx, 22);
    f.amx_int8 = f.amx_tile && bit(leaf7.edx, 25);
    return f;
}

#else

CpuFeatures detect() {
    CpuFeatures f;
#if defined(__aarch64__)
    f.neon = true;
#endif
    return f;
}

#endif

} // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

} // namespace mamlpp
