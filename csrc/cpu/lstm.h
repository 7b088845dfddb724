// The update rule of the meta-learner LSTM: what of a block of coordinates lies where.
//
// Coordinates lie in the lanes. What the steps of a block leave is a row of values for every number
// of a coordinate.
#pragma once

#include "carver.h"
#include "functions.h"
#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {
namespace lstm {

constexpr int units = lstm_units, kinds = 4; // gates of a unit: input, forget, output, candidate
constexpr int columns = units + 4;           // of the weights: of loss, gradient and h, two each
constexpr int group = 3;                     // vectors of each gate that registers hold
constexpr int chains = 6;                    // sequences of steps that do not wait for one another
constexpr int blocks_of_chunk = 40;
template <class T> constexpr int block = lstm_block<T>; // coordinates
template <class T> constexpr int length = blocks_of_chunk * block<T>;

// Rows of a block. A step reads the state, in slot k, leaves the next one in slot k + 1, and what
// the way back needs in slot k; this puts the gradients of the gates in their place.
enum Row {
    at_c,
    at_both,             // F and I, before the sigmoid
    at_s = at_both + 2,  // the LSTM's cell
    at_x = at_s + units, // inputs, of the gradient
    at_h = at_x + 2,
    at_all = at_h + units,            // gates after the sigmoid, by kinds
    at_tanh = at_all + kinds * units, // of the new cell
    at_open = at_tanh + units,        // σ(F) and σ(I)
    at_gradient = at_open + 2,
    rows
};

// The rows that are remembered from one step to the next, beside c.
constexpr int remembered(int r) { return r < 2 + units ? at_both + r : at_h + r - 2 - units; }

// What a kind's function takes its argument times.
template <class T> constexpr T scale_of(int kind) {
    return static_cast<T>(kind < 3 ? -log2_e : 2 * log2_e);
}

// Weights as the loops read them.
template <class T> struct Weights {
    const T* own; // [80][24], [80], [23] of F, [23] of I
    T* ahead;     // [20][22][4] of the kinds of a unit, without those of the loss
    T* back;      // [5][80][4] of four units of h

    const T* bias() const { return own + kinds * units * columns; }
    const T* gate(int j) const { return bias() + kinds * units + j * (units + 3); }
    void pack() const {
        for (int u = 0; u < units; ++u)
            for (int kind = 0; kind < kinds; ++kind)
                for (int j = 2; j < columns; ++j) {
                    const int r = kind * units + u;
                    const T w = own[r * columns + j];
                    ahead[(u * (columns - 2) + j - 2) * kinds + kind] = w * scale_of<T>(kind);
                    if (j >= 4)
                        back[((j - 4) / 4 * kinds * units + r) * 4 + j % 4] = w;
                }
    }
};

// Sums over coordinates, each as a vector: of the gates' gradients by h, by the gradient's inputs,
// and by the two of the loss and 1; of those of F and I by h, by c, F and I, and by 1.
constexpr int sum_h = 0, sum_x = sum_h + kinds * units * units,
              sum_loss = sum_x + kinds * units * 2, sum_gate_h = sum_loss + kinds * units * 3,
              sum_gate_c = sum_gate_h + 2 * units, sum_gate = sum_gate_c + 2 * 3,
              sums = sum_gate + 2;

// What a worker has of a block: its rows, of which those of a state hold a gradient on the way
// back, too; of each step biases and the inputs of the loss; sums.
template <class T> struct Sheet {
    int slots;
    T *steps, *d, *sum, *bias, *loss;

    // `steps`: of the sweep; 0: a single one, forward
    Sheet(int count, void* memory, size_t* bytes = nullptr) : slots(count ? count + 1 : 2) {
        Carver carve(memory);
        steps = carve.take<T>(static_cast<ptrdiff_t>(rows) * slots * block<T>);
        bias = carve.take<T>(static_cast<ptrdiff_t>(slots) * kinds * units);
        loss = carve.take<T>(static_cast<ptrdiff_t>(slots) * 2);
        d = count ? carve.take<T>(static_cast<ptrdiff_t>(at_all) * block<T>) : nullptr;
        sum = count ? carve.take<T>(static_cast<ptrdiff_t>(sums) * lanes<T>) : nullptr;
        if (bytes)
            *bytes = carve.bytes();
    }
    T* row(int r, int slot) const {
        return steps + (static_cast<ptrdiff_t>(r) * slots + slot) * block<T>;
    }
    ptrdiff_t pitch() const { return static_cast<ptrdiff_t>(slots) * block<T>; } // of the rows
    T* d_row(int r) const { return d + static_cast<ptrdiff_t>(r) * block<T>; }
};

template <class T> MAMLPP_INLINE void zero(T* to, ptrdiff_t count) {
    __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(T));
}

// `count` values, or a block's worth, which takes no call
template <class T> MAMLPP_INLINE void copy(const T* from, ptrdiff_t count, T* to) {
    if (count >= block<T>)
        for (int at = 0; at < block<T>; at += lanes<T>)
            Vec<T>::load(from + at).store(to + at);
    else
        __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

// `count` values of a block, of which the others are 0; from null: all
template <class T> MAMLPP_INLINE void take(const T* from, ptrdiff_t count, T* to) {
    if (!from || count < block<T>)
        zero(to, block<T>);
    if (from)
        copy(from, count, to);
}

} // namespace lstm
} // namespace MAMLPP_ISA
} // namespace mamlpp
