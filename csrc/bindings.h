// What the parts of the Python module share: blocks of memory, and calls that run tasks side by
// side.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "cpu/team.h"
#include "ops.h"

namespace mamlpp {

namespace py = pybind11;

using Blocks = std::vector<std::shared_ptr<Block>>;

template <class T> T* at(uintptr_t address, ptrdiff_t offset) {
    return address ? reinterpret_cast<T*>(address) + offset : nullptr;
}

inline Blocks new_blocks(int count, size_t bytes) {
    Blocks blocks;
    for (int i = 0; i < count; ++i)
        blocks.push_back(std::make_shared<Block>(bytes));
    return blocks;
}

// Memory of the tasks that run at once: each its own work, and scratch for every thread, since a
// task that is left over has them all.
struct Room {
    Room(int tasks, int threads, size_t work_bytes, size_t scratch_bytes)
        : slots(tasks < threads ? tasks : threads),
          work(new_blocks(slots < 1 ? 1 : slots, work_bytes)), each((scratch_bytes + 63) / 64 * 64),
          scratch(each * static_cast<size_t>(threads)) {}
    void* scratch_of(int slot) { return static_cast<char*>(scratch.data()) + slot * each; }

    int slots;
    Blocks work;
    size_t each;
    Block scratch;
};

template <class F> void for_tasks(int tasks, int threads, F f, bool one_by_one = false) {
    py::gil_scoped_release release;
    run_tasks(
        tasks, threads, one_by_one,
        [](void* context, int task, Team& team, int slot) {
            (*static_cast<F*>(context))(task, team, slot);
        },
        &f);
}

// The single ops, and the sizes that they take.
template <class T> void bind_ops(py::module_ m);
void bind_shapes(py::module_ m);

} // namespace mamlpp
