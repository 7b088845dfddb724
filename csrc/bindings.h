// What the parts of the Python module share: blocks of memory, and calls that run tasks side by
// side.
#pragma once

#include <climits>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arguments.h"
#include "cpu/block.h"
#include "cpu/team.h"
#include "ops.h"

namespace mamlpp {

namespace py = pybind11;

// Memory of a call, in one block: of the tasks that run at once, perhaps fewer than all, each its
// work and what it leaves behind for nobody, and scratch for every thread.
class Room {
  public:
    Room(int tasks, int threads, size_t work_bytes, size_t scratch_bytes, size_t left_bytes = 0)
        : slots_(tasks < 1         ? 1
                 : tasks < threads ? tasks
                                   : threads),
          work_(whole(work_bytes)), left_(whole(left_bytes)), scratch_(whole(scratch_bytes)),
          block_((work_ + left_) * slots_ + scratch_ * threads, Block::Use::room) {}
    void* work(int slot) const { return at(work_ * slot); }
    void* left(int slot) const { return at(work_ * slots_ + left_ * slot); }
    void* scratch(const Team& team) const { // one after the other of its workers
        return at((work_ + left_) * slots_ + scratch_ * team.first());
    }

  private:
    static size_t whole(size_t bytes) { return (bytes + 63) / 64 * 64; }
    void* at(size_t offset) const { return static_cast<char*>(block_.data()) + offset; }

    size_t slots_, work_, left_, scratch_;
    Block block_;
};

// Of all tasks, or of fewer `at_once`: see `run_tasks`.
template <class F> void for_tasks(int tasks, int threads, F f, int at_once = INT_MAX) {
    py::gil_scoped_release release;
    run_tasks(
        tasks, threads, at_once,
        [](void* context, int task, Team& team, int slot) {
            (*static_cast<F*>(context))(task, team, slot);
        },
        &f);
}

// The single ops, and the sizes that they take.
template <class T> void bind_ops(py::module_ m);
void bind_shapes(py::module_ m);

} // namespace mamlpp
