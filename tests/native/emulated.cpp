// The ops of csrc/cuda on a CPU: the same programs, their blocks and threads one after the other,
// so that the module made of this and of csrc/bindings_cuda.cpp computes on tensors of the CPU what
// the GPU's does. It cannot show what threads do to each other at the same time; but results must
// depend neither on their order, which `emulate_backwards` chooses, nor on memory that nobody
// wrote.
#define MAMLPP_CUDA_LAUNCH

#include <limits>
#include <vector>

#include "../../csrc/cuda/program.h"

namespace mamlpp {
namespace cuda {

static bool backwards = false;

template <class F> void in_order(ptrdiff_t count, F f) {
    for (ptrdiff_t i = 0; i < count; ++i)
        f(static_cast<int>(backwards ? count - 1 - i : i));
}

template <int THREADS> struct Block {
    static constexpr int threads = THREADS;
    int x, y, z;
    template <class F> void each(const F& f) const { in_order(threads, f); }
};

struct Queue {
    explicit Queue(const Stream&) {}
    template <class Program> void operator()(const Program& program) const {
        const Grid g = program.grid();
        std::vector<double> shared(program.shared());
        in_order(g.z, [&](int z) {
            in_order(g.y, [&](int y) {
                in_order(g.x, [&](int x) {
                    shared.assign(shared.size(), std::numeric_limits<double>::quiet_NaN());
                    program(Block<Program::threads>{x, y, z}, shared.data());
                });
            });
        });
    }
};

std::string refusal(int) { return ""; }

} // namespace cuda
} // namespace mamlpp

#include "../../csrc/cuda/norm_act.cu"
#include "../../csrc/cuda/norm_grad.cu"
#include "../../csrc/cuda/norm_tangent.cu"
#include "../../csrc/cuda/update.cu"

extern "C" __attribute__((visibility("default"))) void emulate_backwards(int yes) {
    mamlpp::cuda::backwards = yes != 0;
}
