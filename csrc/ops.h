// What the native module offers. Free of torch and of Python: pointers, sizes and plain structs.
#pragma once

namespace mamlpp {

// Instruction sets that both the processor has and the operating system lets this process use.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512bf16 = false;
    bool amx_tile = false;
    bool amx_bf16 = false;
    bool amx_int8 = false;
};

// All false on anything but x86-64. On Linux the tile registers of AMX are granted to a process that
// asks; this asks, once, and later calls return the same answer.
const CpuFeatures& cpu_features();

} // namespace mamlpp
