#include "norm_tangent.h"

#include "launch.cuh"
#include "norm_work.h"

namespace mamlpp {
namespace cuda {

template <class T>
void norm_act_tan_fwd(const NormShape& shape, int tasks, const NormSaved<T>& saved,
                      const NormTanFwd<T>& f, void* work, Stream on) {
    norm_act_tan_fwd_on(shape, tasks, saved, f, Work<T>(shape, tasks, work).part, Queue{on});
}

#define MAMLPP_INSTANTIATE(T)                                                                      \
    template void norm_act_tan_fwd(const NormShape&, int, const NormSaved<T>&,                     \
                                   const NormTanFwd<T>&, void*, Stream)
MAMLPP_INSTANTIATE(float);
MAMLPP_INSTANTIATE(double);
#undef MAMLPP_INSTANTIATE

} // namespace cuda
} // namespace mamlpp
