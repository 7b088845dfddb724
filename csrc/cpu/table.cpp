// The table of the single ops.
#include "cpu.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> const CpuOps<T>& ops() {
    static constexpr CpuOps<T> table{conv_work_bytes<T>,
                                     conv_scratch_bytes<T>,
                                     task_conv<T>,
                                     winner_words<T>,
                                     norm_work_bytes<T>,
                                     norm_scratch_bytes<T>,
                                     norm_act_fwd<T>,
                                     norm_act_bwd<T>,
                                     norm_act_tan_fwd<T>,
                                     norm_act_tan_bwd<T>,
                                     update_fwd<T>,
                                     update_bwd<T>,
                                     adam<T>,
                                     lstm_work_bytes<T>,
                                     lstm_scratch_bytes<T>,
                                     lstm_fwd<T>,
                                     lstm_bwd<T>,
                                     multiply_adds<T>};
    return table;
}
template const CpuOps<float>& ops<float>();
template const CpuOps<double>& ops<double>();

} // namespace MAMLPP_ISA
} // namespace mamlpp
