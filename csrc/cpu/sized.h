// A convolution of one task's images by filters of any odd size, padded so that a stride of 1 keeps
// the side: what conv.cpp does for all but 3×3.
#pragma once

#include "../ops.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> size_t sized_work_bytes(const ConvShape&);
template <class T> size_t sized_scratch_bytes(const ConvShape&);
template <class T>
void sized_fwd(const ConvShape&, const ConvTask<T>&, void* work, void* scratch, Team&);
template <class T>
void sized_bwd(const ConvShape&, const ConvTask<T>&, void* work, void* scratch, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
