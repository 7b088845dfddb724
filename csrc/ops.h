// What the native module offers. Free of torch and of Python: pointers, sizes and plain structs.
#pragma once

#include <stddef.h>
#include <stdint.h>

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

// Threads that share the items of one loop. `each` returns when all are done; items of one worker run
// one after the other.
class Team {
  public:
    using Run = void (*)(void* context, int item, int worker);
    virtual int workers() const = 0;
    virtual void each(int items, Run run, void* context) = 0;

  protected:
    ~Team() = default;
};

// The backbone: `stages` of conv 3×3 → batch norm → leaky ReLU → 2×2 max pool, or with a stride of 2
// instead of the pooling, then a linear classifier.
struct Net {
    int channels, side, filters, stages, ways;
    bool pool;
    double slope, eps;
};

// One task's part of a pass over one set of n images.
template <class T> struct PassTask {
    const void* images;    // as `prepare` left them
    const int64_t* labels; // [n], for the backward pass
    const T* theta;        // [P]
    const T* row;          // [stages][2][filters] gains and biases
    const T* given_mean;   // [stages · filters] to normalise by, or null for the batch's own
    const T* given_var;
    T* loss;
    T* logits;        // [n][ways]
    T* gradient;      // [P], null: forward only
    T* norm_gradient; // [stages][2][filters]
    T* mean;          // [stages · filters] of the batch
    T* var;           // biased
    void* kept;       // pass_bytes()
    bool keep;        // what `tangent` reads
};

// Direction of one task's gradient along that of its parameters.
template <class T> struct TangentTask {
    const void* images;
    const T* theta;     // as in the pass
    const T* direction; // [P]
    const void* kept;   // by the pass
    T* product;         // [P]
    T* norm_product;    // [stages][2][filters]
};

// The kernels of one instruction set. Every `bytes` is for n images of one task; blocks are aligned to
// 64 bytes. `scratch` is scratch_bytes() for each worker of the team, one behind the other.
template <class T> struct CpuOps {
    size_t (*images_bytes)(const Net&, int n);
    size_t (*pass_bytes)(const Net&, int n, bool keep);
    size_t (*work_bytes)(const Net&, int n);    // of a pass, beside what it keeps
    size_t (*tangent_bytes)(const Net&, int n); // of a tangent
    size_t (*scratch_bytes)(const Net&);
    void (*prepare)(const Net&, int n, const T* x, void* images, void* work, void* scratch, Team&);
    void (*pass)(const Net&, int n, const PassTask<T>&, void* work, void* scratch, Team&);
    void (*tangent)(const Net&, int n, const TangentTask<T>&, void* work, void* scratch, Team&);
};

// The instruction sets that the kernels are built for, in order of preference.
enum class Isa { portable, avx2, avx512 };

Isa isa(); // the one in use: the best that this machine grants, unless it is limited
Isa limit_isa(Isa most);

// Of the instruction set in use.
template <class T> const CpuOps<T>& cpu_ops();

} // namespace mamlpp
