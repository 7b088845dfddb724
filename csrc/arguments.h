// How Python hands arrays over: every operand is a matrix of one row a task, given as its address
// and the distance of two rows in elements; address 0 where there is none.
#pragma once

#include <utility>

#include "ops.h"

namespace mamlpp {

using Matrix = std::pair<uintptr_t, ptrdiff_t>;

template <class T> T* at(uintptr_t address, ptrdiff_t offset) {
    return address ? reinterpret_cast<T*>(address) + offset : nullptr;
}
template <class T> T* row(const Matrix& m, int task) { return at<T>(m.first, task * m.second); }
template <class T> Rows<T> rows(const Matrix& m) { return {at<T>(m.first, 0), m.second}; }

} // namespace mamlpp
