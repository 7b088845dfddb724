// The update rule of the meta-learner LSTM and its reverse sweep, for all tasks and coordinates
// (kernels/plain/lstm.py has the formulas).
//
// A block of coordinates is taken through all its steps, and back, in the cache. Blocks are summed
// in chunks of a fixed size, and a task's chunks in their order.
#include "cpu.h"
#include "lstm_back.h"
#include "lstm_step.h"

namespace mamlpp {
namespace MAMLPP_ISA {

using namespace lstm;

namespace {

template <class T> int chunks(ptrdiff_t n) {
    return static_cast<int>((n + length<T> - 1) / length<T>);
}

template <class T> struct Work {
    Weights<T> weights;
    double* shares; // [tasks][chunks][numbers] of the sweep

    Work(const T* own, int tasks, ptrdiff_t n, int steps, void* memory, size_t* bytes = nullptr) {
        Carver carve(memory);
        weights.own = own;
        weights.ahead = carve.take<T>(kinds * units * (columns - 2));
        weights.back = carve.take<T>(kinds * units * units);
        shares =
            steps ? carve.take<double>(static_cast<ptrdiff_t>(tasks) * chunks<T>(n) * lstm_numbers)
                  : nullptr;
        if (bytes)
            *bytes = carve.bytes();
    }
};

// Calls f(sheet, item, from, to) for each chunk of each task.
template <class T, class F>
void over_chunks(int tasks, ptrdiff_t n, int steps, void* scratch, Team& team, F f) {
    const int count = chunks<T>(n);
    const size_t bytes = lstm_scratch_bytes<T>(steps);
    each(team, tasks * count, [&](int item, int worker) {
        const Sheet<T> s(steps, static_cast<char*>(scratch) + worker * bytes);
        const ptrdiff_t from = static_cast<ptrdiff_t>(item % count) * length<T>;
        f(s, item, from, n - from < length<T> ? n : from + length<T>);
    });
}

} // namespace

template <class T> size_t lstm_work_bytes(int tasks, ptrdiff_t n, int steps) {
    size_t bytes;
    Work<T>(nullptr, tasks, n, steps, nullptr, &bytes);
    return bytes;
}

template <class T> size_t lstm_scratch_bytes(int steps) {
    size_t bytes;
    Sheet<T>(steps, nullptr, &bytes);
    return bytes;
}

template <class T>
void lstm_fwd(const LstmStep<T>& p, int tasks, ptrdiff_t n, void* work, void* scratch, Team& team) {
    const Work<T> shared(p.own, tasks, n, 0, work);
    const Weights<T>& w = shared.weights;
    w.pack();
    const int count = chunks<T>(n);
    over_chunks<T>(tasks, n, 0, scratch, team,
                   [&](const Sheet<T>& s, int item, ptrdiff_t from, ptrdiff_t to) {
                       const int t = item / count;
                       fold_loss(w, p.loss[t], s.loss, s.bias);
                       const auto at = [&](const auto& m, ptrdiff_t i) {
                           return m.data ? m.data + t * m.stride + i : nullptr;
                       };
                       for (ptrdiff_t i = from; i < to; i += block<T>) {
                           take(at(p.gradient, i), to - i, s.row(at_gradient, 0));
                           take(at(p.c, i), to - i, s.row(at_c, 0));
                           for (int r = 0; r < lstm_memory; ++r)
                               take(at(p.memory, i * lstm_memory + r * block<T>), block<T>,
                                    s.row(remembered(r), 0));
                           step(w, s, 0, !p.memory.data);
                           copy(s.row(at_c, 1), to - i, at(p.c_out, i));
                           for (int r = 0; r < lstm_memory; ++r)
                               copy(s.row(remembered(r), 1), block<T>,
                                    at(p.memory_out, i * lstm_memory + r * block<T>));
                       }
                   });
}

template <class T>
void lstm_bwd(const LstmSweep<T>& p, int tasks, ptrdiff_t n, void* work, void* scratch,
              Team& team) {
    const Work<T> shared(p.own, tasks, n, p.steps, work);
    const Weights<T>& w = shared.weights;
    w.pack();
    const int count = chunks<T>(n);
    over_chunks<T>(tasks, n, p.steps, scratch, team,
                   [&](const Sheet<T>& s, int item, ptrdiff_t from, ptrdiff_t to) {
                       const int t = item / count;
                       for (int k = 0; k < p.steps; ++k)
                           fold_loss(w, p.losses[k * tasks + t], s.loss + 2 * k,
                                     s.bias + k * kinds * units);
                       zero(s.sum, sums * lanes<T>);
                       for (ptrdiff_t i = from; i < to; i += block<T>) {
                           take(p.start + i, to - i, s.row(at_c, 0));
                           for (int r = at_both; r < at_all; ++r)
                               zero(s.row(r, 0), block<T>);
                           for (int k = 0; k < p.steps; ++k) {
                               const Rows<const T>& g = p.gradients[k];
                               take(g.data + t * g.stride + i, to - i, s.row(at_gradient, k));
                               step(w, s, k, k == 0);
                           }
                           zero(s.d, static_cast<ptrdiff_t>(at_all) * block<T>);
                           take(p.carry.data + t * p.carry.stride + i, to - i, s.d_row(at_c));
                           for (int k = p.steps - 1; k >= 0; --k) {
                               back_both(w, s, k);
                               for (int u = 0; u < units; ++u)
                                   back_unit(w, s, u, k);
                               for (int four = 0; k && four < units / 4; ++four)
                                   for (int at = 0; at < block<T>; at += group * lanes<T>)
                                       back_h(w, s, four, k, at);
                           }
                           add_products(s, p.steps);
                           copy(s.d_row(at_c), to - i, p.d_start.data + t * p.d_start.stride + i);
                       }
                       fold(s.sum, shared.shares + static_cast<ptrdiff_t>(item) * lstm_numbers);
                   });
    each(team, tasks, [&](int t, int) {
        add_shares(shared.shares + static_cast<ptrdiff_t>(t) * count * lstm_numbers, count,
                   lstm_numbers, lstm_numbers, p.d_own.data + t * p.d_own.stride);
    });
}

template size_t lstm_work_bytes<float>(int, ptrdiff_t, int);
template size_t lstm_work_bytes<double>(int, ptrdiff_t, int);
template size_t lstm_scratch_bytes<float>(int);
template size_t lstm_scratch_bytes<double>(int);
template void lstm_fwd(const LstmStep<float>&, int, ptrdiff_t, void*, void*, Team&);
template void lstm_fwd(const LstmStep<double>&, int, ptrdiff_t, void*, void*, Team&);
template void lstm_bwd(const LstmSweep<float>&, int, ptrdiff_t, void*, void*, Team&);
template void lstm_bwd(const LstmSweep<double>&, int, ptrdiff_t, void*, void*, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
