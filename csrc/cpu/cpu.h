// The entry points of one instruction set, as its table lists them.
#pragma once

#include "../ops.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T>
void prepare(const Net&, int n, const T* x, void* images, void* work, void* scratch, Team&);
template <class T>
void pass(const Net&, int n, const PassTask<T>&, void* work, void* scratch, Team&);
template <class T>
void tangent(const Net&, int n, const TangentTask<T>&, void* work, void* scratch, Team&);

template <class T> const CpuOps<T>& ops();

} // namespace MAMLPP_ISA
} // namespace mamlpp
