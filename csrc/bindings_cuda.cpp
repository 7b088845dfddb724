// The Python module kernels._cuda: the ops of cuda/ops.h, their operands as arguments.h has them,
// in the memory of one GPU. Arguments are checked in kernels/cuda/; here pointers are trusted.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arguments.h"
#include "cuda/ops.h"

namespace py = pybind11;
using namespace mamlpp;

namespace {

using On = std::pair<int, uintptr_t>; // number of the GPU, address of the stream

cuda::Stream stream(const On& on) { return {on.first, reinterpret_cast<void*>(on.second)}; }
void* memory(uintptr_t address) { return reinterpret_cast<void*>(address); }

// count, segments, and the tables' addresses
using PieceTables = std::tuple<int, int, uintptr_t, uintptr_t>;

cuda::Pieces pieces_of(const PieceTables& p) {
    return {std::get<0>(p), std::get<1>(p), at<const int32_t>(std::get<2>(p), 0),
            at<const int32_t>(std::get<3>(p), 0)};
}

using Scalar = std::pair<double, uintptr_t>; // a number, or the address of one

cuda::Scalar scalar(const Scalar& s) { return {s.first, at<const double>(s.second, 0)}; }

template <class T>
void update_fwd(const On& on, int tasks, const PieceTables& pieces, bool own, Matrix theta,
                uintptr_t rates, Matrix grad, uintptr_t rates_dot, Matrix grad_dot, Matrix out) {
    const UpdateFwd<T> u{rows<const T>(theta),
                         at<const T>(rates, 0),
                         rows<const T>(grad),
                         at<const T>(rates_dot, 0),
                         rows<const T>(grad_dot),
                         rows<T>(out),
                         own};
    cuda::update_fwd(u, tasks, pieces_of(pieces), stream(on));
}

template <class T>
void update_bwd(const On& on, int tasks, const PieceTables& pieces, bool own, Matrix d_theta,
                Matrix grad, uintptr_t rates, Matrix d_grad, Matrix d_rates, uintptr_t shares) {
    const UpdateBwd<T> u{rows<const T>(d_theta),
                         rows<const T>(grad),
                         at<const T>(rates, 0),
                         rows<T>(d_grad),
                         rows<T>(d_rates),
                         at<double>(shares, 0),
                         own};
    cuda::update_bwd(u, tasks, pieces_of(pieces), stream(on));
}

template <class T>
void adam(const On& on, ptrdiff_t n, uintptr_t param, uintptr_t first, uintptr_t second,
          uintptr_t grad, double clamp, double beta1, double beta2, double eps, Scalar rate,
          Scalar correction, uintptr_t param_out, uintptr_t first_out, uintptr_t second_out) {
    const cuda::AdamStep<T> step{at<const T>(param, 0),
                                 at<const T>(first, 0),
                                 at<const T>(second, 0),
                                 at<const T>(grad, 0),
                                 clamp,
                                 beta1,
                                 beta2,
                                 eps,
                                 scalar(rate),
                                 scalar(correction),
                                 at<T>(param_out, 0),
                                 at<T>(first_out, 0),
                                 at<T>(second_out, 0)};
    cuda::adam(step, n, stream(on));
}

template <class T>
void norm_act_fwd(const On& on, const NormShape& shape, int tasks, uintptr_t work, Matrix z,
                  Matrix gain, Matrix bias, Matrix given_mean, Matrix given_var, Matrix y,
                  Matrix mean, Matrix var, Matrix rstd, Matrix x_hat, Matrix winners) {
    const cuda::NormFwd<T> f{rows<const T>(z),
                             rows<const T>(gain),
                             rows<const T>(bias),
                             rows<const T>(given_mean),
                             rows<const T>(given_var),
                             rows<T>(y),
                             rows<T>(mean),
                             rows<T>(var),
                             rows<T>(rstd),
                             rows<T>(x_hat),
                             rows<uint8_t>(winners)};
    cuda::norm_act_fwd(shape, tasks, f, memory(work), stream(on));
}

// What norm_act_fwd left; as its Python arguments.
struct Saved {
    Matrix z, gain, bias, centre, rstd, x_hat, winners;
    bool given;
    template <class T> cuda::NormSaved<T> as() const {
        return {rows<const T>(z),
                rows<const T>(gain),
                rows<const T>(bias),
                rows<const T>(centre),
                rows<const T>(rstd),
                rows<const T>(x_hat),
                rows<const uint8_t>(winners),
                given};
    }
};

template <class T>
void norm_act_bwd(const On& on, const NormShape& shape, int tasks, uintptr_t work,
                  const Saved& saved, Matrix dy, Matrix dz, Matrix dgain, Matrix dbias) {
    const cuda::NormBwd<T> f{rows<const T>(dy), rows<T>(dz), rows<T>(dgain), rows<T>(dbias)};
    cuda::norm_act_bwd(shape, tasks, saved.as<T>(), f, memory(work), stream(on));
}

template <class T>
void norm_act_tan_fwd(const On& on, const NormShape& shape, int tasks, uintptr_t work,
                      const Saved& saved, Matrix z_dot, Matrix gain_dot, Matrix bias_dot,
                      Matrix y_dot, Matrix mean_dot, Matrix q, Matrix x_hat_dot) {
    const cuda::NormTanFwd<T> f{rows<const T>(z_dot),    rows<const T>(gain_dot),
                                rows<const T>(bias_dot), rows<T>(y_dot),
                                rows<T>(mean_dot),       rows<T>(q),
                                rows<T>(x_hat_dot)};
    cuda::norm_act_tan_fwd(shape, tasks, saved.as<T>(), f, memory(work), stream(on));
}

template <class T>
void norm_act_tan_bwd(const On& on, const NormShape& shape, int tasks, uintptr_t work,
                      const Saved& saved, Matrix z_dot, Matrix mean_dot, Matrix q, Matrix x_hat_dot,
                      Matrix dy, Matrix dy_dot, Matrix gain_dot, Matrix dz_dot, Matrix dgain_dot,
                      Matrix dbias_dot) {
    const cuda::NormTanBwd<T> f{rows<const T>(z_dot),    rows<const T>(mean_dot),
                                rows<const T>(q),        rows<const T>(x_hat_dot),
                                rows<const T>(dy),       rows<const T>(dy_dot),
                                rows<const T>(gain_dot), rows<T>(dz_dot),
                                rows<T>(dgain_dot),      rows<T>(dbias_dot)};
    cuda::norm_act_tan_bwd(shape, tasks, saved.as<T>(), f, memory(work), stream(on));
}

template <class T> void bind(py::module_ m) {
    m.def("update_fwd", &update_fwd<T>);
    m.def("update_bwd", &update_bwd<T>);
    m.def("adam", &adam<T>);
    m.def("norm_work_bytes", &cuda::norm_work_bytes<T>);
    m.def("norm_act_fwd", &norm_act_fwd<T>);
    m.def("norm_act_bwd", &norm_act_bwd<T>);
    m.def("norm_act_tan_fwd", &norm_act_tan_fwd<T>);
    m.def("norm_act_tan_bwd", &norm_act_tan_bwd<T>);
}

} // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of mamlpp, free of torch.";
    m.def("version", [] { return MAMLPP_VERSION; }, "Version of the package it was built from.");
    m.def(
        "architectures", [] { return MAMLPP_CUDA_ARCHITECTURES; },
        "GPUs it was built for, as CMake lists them.");
    m.def("refusal", &cuda::refusal,
          "Why the GPU of this number cannot run the kernels; empty if it can.");
    m.attr("piece_values") = cuda::piece_values;
    // Of this module alone: _native has a NormShape too.
    py::class_<NormShape>(m, "NormShape", py::module_local())
        .def(py::init([](int n, int channels, int side, bool pool, double slope, double eps) {
            return NormShape{n, channels, side, pool, slope, eps};
        }));
    py::class_<Saved>(m, "Saved", py::module_local())
        .def(py::init([](Matrix z, Matrix gain, Matrix bias, Matrix centre, Matrix rstd,
                         Matrix x_hat, Matrix winners, bool given) {
            return Saved{z, gain, bias, centre, rstd, x_hat, winners, given};
        }));
    bind<float>(m.def_submodule("float32"));
    bind<double>(m.def_submodule("float64"));
}
