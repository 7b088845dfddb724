// Programs as kernels on a stream. The tests' emulation defines the guard and a Queue of its own.
#ifndef MAMLPP_CUDA_LAUNCH
#define MAMLPP_CUDA_LAUNCH

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "program.h"

namespace mamlpp {
namespace cuda {

template <int THREADS> struct Block {
    static constexpr int threads = THREADS;
    int x = static_cast<int>(blockIdx.x), y = static_cast<int>(blockIdx.y),
        z = static_cast<int>(blockIdx.z);

    template <class F> MAMLPP_DEVICE void each(const F& f) const {
        f(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
};

template <class Program>
__global__ void __launch_bounds__(Program::threads)
    kernel(const __grid_constant__ Program program) {
    extern __shared__ double shared[];
    program(Block<Program::threads>(), shared);
}

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("cuda ") + what + ": " + cudaGetErrorString(error));
}

// Makes the stream's GPU the current one for as long as it lives.
class Queue {
  public:
    explicit Queue(const Stream& on) : stream_(static_cast<cudaStream_t>(on.stream)) {
        check(cudaGetDevice(&before_), "current device");
        moved_ = before_ != on.device;
        if (moved_)
            check(cudaSetDevice(on.device), "device");
    }
    ~Queue() {
        if (moved_)
            cudaSetDevice(before_);
    }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    template <class Program> void operator()(const Program& program) const {
        constexpr ptrdiff_t most = 65535; // of the second and third axis of a grid
        const Grid g = program.grid();
        if (g.x == 0 || g.y == 0 || g.z == 0)
            return;
        if (g.y > most || g.z > most)
            throw std::invalid_argument(std::string("cuda ") + Program::name +
                                        ": more than 65535 tasks; give it fewer at once");
        const dim3 blocks(static_cast<unsigned>(g.x), static_cast<unsigned>(g.y),
                          static_cast<unsigned>(g.z));
        kernel<<<blocks, Program::threads, program.shared() * sizeof(double), stream_>>>(program);
        check(cudaGetLastError(), Program::name);
    }

  private:
    cudaStream_t stream_;
    int before_ = 0;
    bool moved_ = false;
};

} // namespace cuda
} // namespace mamlpp

#endif
