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
    for (int c = 0; c < g.channels; ++c, to += plane(g.side)) {
        for (ptrdiff_t i = 0; i < plane(g.side); ++i)
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

// Two columns, or rows, of a patch are at most so far apart.
constexpr int most_lag = 2;
constexpr int lags = 2 * most_lag + 1;

// Sums of one image's rows, by the column of a patch at which they begin.
struct Sums {
    double of[3];
};

// Σ a[x]·b[x + lag] over `rows` rows of two bordered images of doubles, for x = s … s + side − 1,
// every lag −2 … 2 and each s for which both stay inside; what does not is left alone.
MAMLPP_APART void lagged_sums(const double* a, const double* b, int side, int rows,
                              Sums (&to)[lags]) {
    constexpr int L = lanes<double>;
    Vec<double> inner[lags];
    double rest[lags] = {}, edge[lags][4] = {};
    for (Vec<double>& sum : inner)
        sum = Vec<double>::all(0);
    for (int y = 0; y < rows; ++y, a += side + 2, b += side + 2) {
        int x = most_lag;
        for (; x + L <= side; x += L) {
            const Vec<double> value = Vec<double>::load(a + x);
#pragma GCC unroll 5
            for (int k = 0; k < lags; ++k)
                inner[k] = fma(value, Vec<double>::load(b + x + k - most_lag), inner[k]);
        }
        for (; x < side; ++x)
            for (int k = 0; k < lags; ++k)
                rest[k] += a[x] * b[x + k - most_lag];
        const int ends[4] = {0, 1, side, side + 1};
        for (int e = 0; e < 4; ++e)
            for (int k = 0; k < lags; ++k) {
                const int at = ends[e] + k - most_lag;
                if (at >= 0 && at <= side + 1)
                    edge[k][e] += a[ends[e]] * b[at];
            }
    }
    for (int k = 0; k < lags; ++k) {
        double parts[L];
        inner[k].store(parts);
        for (int i = 0; i < L; ++i)
            rest[k] += parts[i];
        const int first = k < most_lag ? most_lag - k : 0, last = k > most_lag ? lags - 1 - k : 2;
        for (int s = first; s <= last; ++s)
            to[k].of[s] = rest[k] + (s < 1 ? edge[k][0] : 0) + (s < 2 ? edge[k][1] : 0) +
                          (s > 0 ? edge[k][2] : 0) + (s > 1 ? edge[k][3] : 0);
    }
}

// Calls found(r, k, s, Σ a[y][x]·b[y + lag][x + k − 2]) for the windows of side × side values whose
// first row and column are r and s, for all that keep both inside; `b` begins `lag` rows below `a`.
template <class F> void window_sums(const double* a, const double* b, int side, int lag, F found) {
    const ptrdiff_t row = side + 2;
    Sums inner[lags], above[2][lags], below[2][lags];
    lagged_sums(a + most_lag * row, b + most_lag * row, side, side - most_lag, inner);
    for (int r = 0; r < 2; ++r) {
        lagged_sums(a + r * row, b + r * row, side, 1, above[r]);
        if (r + lag < 2)
            lagged_sums(a + (side + r) * row, b + (side + r) * row, side, 1, below[r]);
    }
    for (int r = 0; r + lag <= 2; ++r)
        for (int k = 0; k < lags; ++k)
            for (int s = k < most_lag ? most_lag - k : 0; s <= 2 && s + k - most_lag <= 2; ++s) {
                double sum = inner[k].of[s];
                for (int i = r; i < 2; ++i)
                    sum += above[i][k].of[s];
                for (int i = 0; i < r; ++i)
                    sum += below[i][k].of[s];
                found(r, k, s, sum);
            }
}

// Σ patch and Σ patch·patchᵀ of one image, sum [d][d + 1] with the patch sums in the last column.
// Values of a patch that are as far apart have sums that differ at the edges only; `planes` are the
// image's, and room for one more.
MAMLPP_APART void patch_products(int side, int channels, double* sum, double* planes) {
    const int d = channels * taps;
    const ptrdiff_t size = plane(side);
    double* const ones = planes + channels * size;
    for (ptrdiff_t i = 0; i < size; ++i)
        ones[i] = 1;
    for (int a = 0; a < channels; ++a) {
        window_sums(planes + a * size, ones, side, 0, [&](int r, int k, int s, double value) {
            if (k == most_lag)
                sum[(a * taps + r * 3 + s) * (d + 1) + d] = value;
        });
        for (int lag = 0; lag <= most_lag; ++lag)
            for (int b = lag ? 0 : a; b < channels; ++b)
                window_sums(planes + a * size, planes + b * size + lag * (side + 2), side, lag,
                            [&](int r, int k, int s, double value) {
                                const int i = a * taps + r * 3 + s;
                                const int j = b * taps + (r + lag) * 3 + s + k - most_lag;
                                sum[i * (d + 1) + j] = sum[j * (d + 1) + i] = value;
                            });
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
    const Plan<T> plan(net, n, Decides::nothing);
    Carver carver(nullptr);
    Shares<T>(plan, carver);
    Dots<T>(plan, carver);
    return carver.bytes();
}

template <class T> size_t scratch_bytes(const Net& net, int n) {
    size_t bytes = 0;
    Scratch<T>(Plan<T>(net, n), nullptr, &bytes);
    return bytes;
}

// Of an image, for each filter and channel; the convolution is by Winograd or not.
template <class T> double products_each(const Conv<T>& g) {
    const double columns = g.tile ? tile_columns(g.side, g.tile) : g.out();
    return (g.tile ? cells(g.tile) : taps) * columns * columns;
}

template <class T> Products products(const Net& net, int n) {
    const Plan<T> plan(net, n), moved(net, n, Decides::nothing);
    Products sum;
    for (int s = 0; s < plan.count; ++s) {
        const Stage<T>& stage = plan.stages[s];
        const Conv<T>& g = stage.conv;
        const double outward = static_cast<double>(n) * g.channels * g.pitch_out;
        if (stage.stem) { // beyond its values, of the winners alone
            const double dense = stage.window.dense, pooled = stage.window.pooled;
            sum.forward += taps * dense * dense * outward;
            sum.backward += taps * pooled * pooled * outward;
            sum.tangent += 2 * taps * pooled * pooled * outward;
            continue;
        }
        const double inward = static_cast<double>(n) * g.filters * g.pitch_in;
        const bool wide = g.pitch_in % lanes<T> == 0; // see conv_wgrad
        const double of_filters = products_each(stage.back) * (wide ? inward : outward);
        const double of_inputs = s ? products_each(stage.back) * inward : 0;
        sum.forward += products_each(g) * outward;
        sum.backward += of_filters + of_inputs;
        sum.tangent += (s ? 2 : 1) * (products_each(moved.stages[s].conv) * outward + of_filters) +
                       2 * of_inputs;
    }
    return sum;
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
        T* image = stem.images + i * g.channels * plane(g.side);
        centre(g, x + i * pixels, stem.pivot, image);
        double* const planes = workers[worker].patches;
        for (ptrdiff_t k = 0; k < g.channels * plane(g.side); ++k)
            planes[k] = static_cast<double>(image[k]);
        patch_products(g.side, g.channels, shares + i * size, planes);
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
        stem.images[n * g.channels * plane(g.side) + i] = 0;
    if (plan.rounded)
        each(team, n, [&](int i, int) {
            plan.rounded->round_image(g.side, g.channels,
                                      stem.images + i * g.channels * plane(g.side),
                                      stem.rounded + i * stem.rounded_size);
        });
}

template <class T> const PassOps<T>& pass_ops() {
    static constexpr PassOps<T> table{
        images_bytes<T>, pass_bytes<T>, work_bytes<T>, tangent_bytes<T>, scratch_bytes<T>,
        products<T>,     prepare<T>,    pass<T>,       tangent<T>,       pullback<T>};
    return table;
}
template const PassOps<float>& pass_ops<float>();
template const PassOps<double>& pass_ops<double>();

} // namespace MAMLPP_ISA
} // namespace mamlpp
