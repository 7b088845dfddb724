// What the CUDA module offers, free of torch and of Python: pointers into one GPU's memory, sizes
// and a stream in; nothing is allocated and nothing waited for, so that a graph can capture every
// call. All tasks at once; the same inputs give the same bits.
#pragma once

#include <string>

#include "../ops.h"

namespace mamlpp {
namespace cuda {

struct Stream {
    int device;
    void* stream; // cudaStream_t
};

// Parts of the segments of the flat buffers, in order, each at most `piece_values` long; tables in
// the GPU's memory.
constexpr int piece_values = 1024;
struct Pieces {
    int count, segments;
    const int32_t* table; // [count][3]: segment, from, to
    const int32_t* first; // [segments + 1] pieces before each segment's own
};

// A number that the host knows, or one in the GPU's memory, which a replayed graph reads again.
struct Scalar {
    double value;
    const double* at; // null: `value`
};

template <class T> struct AdamStep {
    const T *param, *first, *second, *grad;
    double clamp, beta1, beta2, eps; // as in mamlpp::AdamStep
    Scalar rate, correction;
    T *param_out, *first_out, *second_out;
};

// As the structs of the same names in mamlpp, of all tasks. A winner is 0…3 within its window.
// Images whose channels fill whole vectors of 16 bytes are aligned to them.
template <class T> struct NormFwd {
    Rows<const T> z, gain, bias, given_mean, given_var;
    Rows<T> y, mean, var, rstd, x_hat;
    Rows<uint8_t> winners; // [n][pooled][pooled][channels], of pooling
};

template <class T> struct NormSaved {
    Rows<const T> z, gain, bias, centre, rstd, x_hat;
    Rows<const uint8_t> winners;
    bool given;
};

template <class T> struct NormBwd {
    Rows<const T> dy;
    Rows<T> dz, dgain, dbias;
};

template <class T> struct NormTanFwd {
    Rows<const T> z_dot, gain_dot, bias_dot;
    Rows<T> y_dot, mean_dot, q, x_hat_dot;
};

template <class T> struct NormTanBwd {
    Rows<const T> z_dot, mean_dot, q, x_hat_dot, dy, dy_dot, gain_dot;
    Rows<T> dz_dot, dgain_dot, dbias_dot;
};

// Why a GPU cannot run the kernels, in a few words; empty if it can.
std::string refusal(int device);

// UpdateBwd::shares is [tasks][pieces] here.
template <class T> void update_fwd(const UpdateFwd<T>&, int tasks, const Pieces&, Stream);
template <class T> void update_bwd(const UpdateBwd<T>&, int tasks, const Pieces&, Stream);
template <class T> void adam(const AdamStep<T>&, ptrdiff_t n, Stream);

// `work` is norm_work_bytes(), aligned to 16 bytes.
template <class T> size_t norm_work_bytes(const NormShape&, int tasks);
template <class T>
void norm_act_fwd(const NormShape&, int tasks, const NormFwd<T>&, void* work, Stream);
template <class T>
void norm_act_bwd(const NormShape&, int tasks, const NormSaved<T>&, const NormBwd<T>&, void* work,
                  Stream);
template <class T>
void norm_act_tan_fwd(const NormShape&, int tasks, const NormSaved<T>&, const NormTanFwd<T>&,
                      void* work, Stream);
template <class T>
void norm_act_tan_bwd(const NormShape&, int tasks, const NormSaved<T>&, const NormTanBwd<T>&,
                      void* work, Stream);

} // namespace cuda
} // namespace mamlpp
