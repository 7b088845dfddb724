#include "launch.cuh"

namespace mamlpp {
namespace cuda {

namespace {
__global__ void probe() {}
} // namespace

std::string refusal(int device) {
    // The device's code for a kernel is looked up, and built by the driver where there is only PTX.
    cudaFuncAttributes attributes;
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess)
        error = cudaSetDevice(device);
    if (error == cudaSuccess)
        error = cudaFuncGetAttributes(&attributes, probe);
    cudaGetLastError(); // not the next launch's
    cudaSetDevice(before);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

} // namespace cuda
} // namespace mamlpp
