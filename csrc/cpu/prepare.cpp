// A set of images as the passes over it read them, the sizes of their blocks, and the passes'
// table.
#include "cpu.h"
#include "images.h"
#include "stage.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// NHWC → planar with a border, all less `pivot`
template <class T> void centre(const Conv<T>& g, const T* x, const double* pivot, T* to) {
    for (int c = 0; c < g.channels; ++c, to += plane<T>(g.side)) {
        for (ptrdiff_t i = 0; i < plane<T>(g.side); ++i)
            to[i] = static_cast<T>(-pivot[c]);
        for (int y = 0; y < g.side; ++y)
            for (int i = 0; i < g.side; ++i)
                to[(y + 1) * (g.side + 2) + i + 1] = static_cast<T>(
                    static_cast<double>(
                        x[(static_cast<ptrdiff_t>(y) * g.side + i) * g.channels + c]) -
                    pivot[c]);
    }
}

// The mean of each channel over one image.
template <class T> void channel_means(const Conv<T>& g, const T* x, double* mean) {
    constexpr int terms = 8; // so that an addition does not wait for the one before
    for (int c = 0; c < g.channels; ++c) {
        double sums[terms] = {}, total = 0;
        for (int i = 0; i < g.side * g.side; ++i)
            sums[i % terms] += static_cast<double>(x[static_cast<ptrdiff_t>(i) * g.channels + c]);
        for (double sum : sums)
            total += sum;
        mean[c] = total / (g.side * g.side);
    }
}

template <class T> size_t images_bytes(const Net& net, int n) {
    size_t bytes = 0;
    Images<T>(Plan<T>(net, n), nullptr, &bytes);
    return bytes;
}

template <class T> size_t pass_bytes(const Net& net, int n, bool keep) {
    size_t bytes = 0;
    Kept<T>(Plan<T>(net, n), nullptr, keep, &bytes);
    return bytes;
}

// Shares of a pass, or of the moments of the patches, which need a matrix an image.
template <class T> size_t work_bytes(const Net& net, int n) {
    const Plan<T> plan(net, n);
    Carver carver(nullptr);
    Shares<T>(plan, carver);
    Carver moments(nullptr);
    moments.take<double>(n * PatchShares<T>::size(plan));
    return carver.bytes() > moments.bytes() ? carver.bytes() : moments.bytes();
}

template <class T> size_t tangent_bytes(const Net& net, int n) {
    const Plan<T> plan(net, n);
    Carver carver(nullptr);
    Shares<T>(plan, carver);
    Dots<T>(plan, carver);
    return carver.bytes();
}

template <class T> size_t scratch_bytes(const Net& net) {
    size_t bytes = 0;
    Scratch<T>(Plan<T>(net, 1), nullptr, &bytes);
    return bytes;
}

} // namespace

template <class T>
void prepare(const Net& net, int n, const T* x, void* block, void* work, void* scratch,
             Team& team) {
    const Plan<T> plan(net, n);
    const Images<T> images(plan, block);
    const Conv<T>& g = plan.stages[0].conv;
    const ptrdiff_t pixels = static_cast<ptrdiff_t>(g.side) * g.side * g.channels;
    if (!plan.stages[0].stem) {
        each(team, n, [&](int i, int) {
            border_image(x + i * pixels, g.side, g.channels, g.channels,
                         images.bordered + i * g.in_image());
        });
        return;
    }
    const Workers<T> workers(plan, scratch);
    const StemImages<T>& stem = images.stem;
    const ptrdiff_t size = PatchShares<T>::size(plan);
    double* const shares = static_cast<double*>(work);
    each(team, n, [&](int i, int) { channel_means(g, x + i * pixels, shares + i * size); });
    add_shares(shares, n, size, g.channels, stem.pivot);
    for (int c = 0; c < g.channels; ++c)
        stem.pivot[c] /= n;
    each(team, n, [&](int i, int worker) {
        T* image = stem.images + i * g.channels * plane<T>(g.side);
        centre(g, x + i * pixels, stem.pivot, image);
        patch_products(image, g.side, g.channels, shares + i * size, workers[worker].patches);
    });
    const int d = plan.patch(), pitch = d + 1;
    const double positions = static_cast<double>(n) * g.side * g.side;
    add_shares(shares, n, size, static_cast<int>(size), shares);
    for (int i = 0; i < d; ++i)
        stem.mean[i] = shares[i * pitch + d] / positions;
    for (int i = 0; i < d; ++i)
        for (int j = 0; j < d; ++j)
            stem.cov[i * d + j] = shares[i * pitch + j] / positions - stem.mean[i] * stem.mean[j];
    for (int i = 0; i < pick_slack; ++i)
        stem.images[n * g.channels * plane<T>(g.side) + i] = 0;
}

template <class T> const PassOps<T>& pass_ops() {
    static constexpr PassOps<T> table{images_bytes<T>,  pass_bytes<T>,    work_bytes<T>,
                                      tangent_bytes<T>, scratch_bytes<T>, prepare<T>,
                                      pass<T>,          tangent<T>};
    return table;
}
template const PassOps<float>& pass_ops<float>();
#ifndef MAMLPP_PARTS
template const PassOps<double>& pass_ops<double>();
#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
