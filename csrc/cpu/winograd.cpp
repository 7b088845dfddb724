// The table of the convolutions in Winograd's cells.
#include "winograd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> const Winograd<T>& winograd() {
    static constexpr Winograd<T> table{operands_size<T>, pack_cells<T>, winograd_fwd<T>,
                                       winograd_wgrad<T>};
    return table;
}
template const Winograd<float>& winograd<float>();
#ifndef MAMLPP_PARTS
template const Winograd<double>& winograd<double>();
#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
