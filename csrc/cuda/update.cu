#include "update.h"

#include "launch.cuh"

namespace mamlpp {
namespace cuda {

template <class T>
void update_fwd(const UpdateFwd<T>& u, int tasks, const Pieces& pieces, Stream on) {
    Queue{on}(Descend<T>{u, pieces, tasks});
}

template <class T>
void update_bwd(const UpdateBwd<T>& u, int tasks, const Pieces& pieces, Stream on) {
    update_bwd_on(u, tasks, pieces, Queue{on});
}

template <class T> void adam(const AdamStep<T>& step, ptrdiff_t n, Stream on) {
    Queue{on}(Adam<T>{step, n});
}

#define MAMLPP_INSTANTIATE(T)                                                                      \
    template void update_fwd(const UpdateFwd<T>&, int, const Pieces&, Stream);                     \
    template void update_bwd(const UpdateBwd<T>&, int, const Pieces&, Stream);                     \
    template void adam(const AdamStep<T>&, ptrdiff_t, Stream)
MAMLPP_INSTANTIATE(float);
MAMLPP_INSTANTIATE(double);
#undef MAMLPP_INSTANTIATE

} // namespace cuda
} // namespace mamlpp
