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
template <class T>
void pullback(const Net&, int n, const PullbackTask<T>&, void* work, void* scratch, Team&);

template <class T> size_t conv_work_bytes(const ConvShape&, ConvPart);
template <class T> size_t conv_scratch_bytes(const ConvShape&, ConvPart);
template <class T>
void task_conv(const ConvShape&, ConvPart, const ConvTask<T>&, void* work, void* scratch, Team&);

template <class T> size_t winner_words(const NormShape&);
template <class T> size_t norm_work_bytes(const NormShape&);
template <class T> size_t norm_scratch_bytes(const NormShape&);
template <class T>
void norm_act_fwd(const NormShape&, const NormFwd<T>&, void* work, void* scratch, Team&);
template <class T>
void norm_act_bwd(const NormShape&, const NormSaved<T>&, const NormBwd<T>&, void* work,
                  void* scratch, Team&);
template <class T>
void norm_act_tan_fwd(const NormShape&, const NormSaved<T>&, const NormTanFwd<T>&, void* work,
                      void* scratch, Team&);
template <class T>
void norm_act_tan_bwd(const NormShape&, const NormSaved<T>&, const NormTanBwd<T>&, void* work,
                      void* scratch, Team&);

template <class T> void update_fwd(const UpdateFwd<T>&, int tasks, const Piece*, int pieces, Team&);
template <class T> void update_bwd(const UpdateBwd<T>&, int tasks, const Piece*, int pieces, Team&);
template <class T> void adam(const AdamStep<T>&, ptrdiff_t n, Team&);

template <class T> size_t lstm_work_bytes(int tasks, ptrdiff_t n, int steps);
template <class T> size_t lstm_scratch_bytes(int steps);
template <class T>
void lstm_fwd(const LstmStep<T>&, int tasks, ptrdiff_t n, void* work, void* scratch, Team&);
template <class T>
void lstm_bwd(const LstmSweep<T>&, int tasks, ptrdiff_t n, void* work, void* scratch, Team&);

template <class T> double multiply_adds(ptrdiff_t rounds, T* left, int workers, Team&);

// The tables.
template <class T> const PassOps<T>& pass_ops();
template <class T> const CpuOps<T>& ops();

} // namespace MAMLPP_ISA
} // namespace mamlpp
