#include "norm_grad.h"

#include "launch.cuh"

namespace mamlpp {
namespace cuda {

template <class T>
void norm_act_bwd(const NormShape& shape, int tasks, const NormSaved<T>& saved, const NormBwd<T>& f,
                  void* work, Stream on) {
    norm_act_bwd_on(shape, tasks, saved, f, work, Queue{on});
}

template <class T>
void norm_act_tan_bwd(const NormShape& shape, int tasks, const NormSaved<T>& saved,
                      const NormTanBwd<T>& f, void* work, Stream on) {
    norm_act_tan_bwd_on(shape, tasks, saved, f, work, Queue{on});
}

#define MAMLPP_INSTANTIATE(T)                                                                      \
    template void norm_act_bwd(const NormShape&, int, const NormSaved<T>&, const NormBwd<T>&,      \
                               void*, Stream);                                                     \
    template void norm_act_tan_bwd(const NormShape&, int, const NormSaved<T>&,                     \
                                   const NormTanBwd<T>&, void*, Stream)
MAMLPP_INSTANTIATE(float);
MAMLPP_INSTANTIATE(double);
#undef MAMLPP_INSTANTIATE

} // namespace cuda
} // namespace mamlpp
