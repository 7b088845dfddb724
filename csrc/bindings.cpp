// The Python module kernels._native.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace py = pybind11;

namespace {

py::dict cpu_features() {
    const mamlpp::CpuFeatures& f = mamlpp::cpu_features();
    py::dict d;
    d["avx2"] = f.avx2;
    d["fma"] = f.fma;
    d["avx512f"] = f.avx512f;
    d["avx512bw"] = f.avx512bw;
    d["avx512vl"] = f.avx512vl;
    d["avx512bf16"] = f.avx512bf16;
    d["amx_tile"] = f.amx_tile;
    d["amx_bf16"] = f.amx_bf16;
    d["amx_int8"] = f.amx_int8;
    return d;
}

} // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of mamlpp, free of torch.";
    m.def("version", [] { return MAMLPP_VERSION; }, "Version of the package it was built from.");
    m.def("cpu_features", &cpu_features,
          "Instruction sets that processor and operating system grant: name -> bool.");
}
