#include "norm_act.h"

#include "launch.cuh"
#include "norm_work.h"

namespace mamlpp {
namespace cuda {

template <class T> size_t norm_work_bytes(const NormShape& shape, int tasks) {
    return Work<T>(shape, tasks, nullptr).bytes;
}

template <class T>
void norm_act_fwd(const NormShape& shape, int tasks, const NormFwd<T>& f, void* work, Stream on) {
    norm_act_fwd_on(shape, tasks, f, Work<T>(shape, tasks, work).part, Queue{on});
}

#define MAMLPP_INSTANTIATE(T)                                                                      \
    template size_t norm_work_bytes<T>(const NormShape&, int);                                     \
    template void norm_act_fwd(const NormShape&, int, const NormFwd<T>&, void*, Stream)
MAMLPP_INSTANTIATE(float);
MAMLPP_INSTANTIATE(double);
#undef MAMLPP_INSTANTIATE

} // namespace cuda
} // namespace mamlpp
