// The inner update θ' = θ − α[segment]·g, or θ − α∘g, over the flat buffers of all tasks, its
// gradient and tangents. A piece of a segment is one item of work and one term of the sum behind
// its rate. The outer update is Adam.
#include "cpu.h"
#include "pass.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// to = from − rate·grad; from null: 0, and may be `to`
template <class T, class Rate>
MAMLPP_INLINE void subtract(const T* from, Rate rate, const T* grad, ptrdiff_t n, T* to) {
    if (from)
        for (ptrdiff_t i = 0; i < n; ++i)
            to[i] = from[i] - rate(i) * grad[i];
    else
        for (ptrdiff_t i = 0; i < n; ++i)
            to[i] = -rate(i) * grad[i];
}

// The same by the rates of a piece.
template <class T>
void subtract(const T* from, const T* rates, bool each, const Piece& p, const T* grad, T* to) {
    const ptrdiff_t n = p.to - p.from;
    if (each) {
        const T* const own = rates + p.from;
        subtract(from, [own](ptrdiff_t i) { return own[i]; }, grad, n, to);
    } else {
        const T rate = rates[p.segment];
        subtract(from, [rate](ptrdiff_t) { return rate; }, grad, n, to);
    }
}

// Σ a·b, in terms that the compiler can keep in vectors
template <class T> double product_sum(const T* a, const T* b, ptrdiff_t n) {
    constexpr int terms = 16;
    double sums[terms] = {};
    ptrdiff_t i = 0;
    for (; i + terms <= n; i += terms)
        for (int k = 0; k < terms; ++k)
            sums[k] += static_cast<double>(a[i + k]) * static_cast<double>(b[i + k]);
    for (int k = 0; i < n; ++i, ++k)
        sums[k] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    double total = 0;
    for (double sum : sums)
        total += sum;
    return total;
}

MAMLPP_INLINE float root(float x) { return __builtin_sqrtf(x); }
MAMLPP_INLINE double root(double x) { return __builtin_sqrt(x); }

template <class T> const T* row(const Rows<const T>& m, int task, ptrdiff_t at) {
    return m.data ? m.data + task * m.stride + at : nullptr;
}

} // namespace

template <class T>
void update_fwd(const UpdateFwd<T>& u, int tasks, const Piece* pieces, int count, Team& team) {
    each(team, count, [&](int item, int) {
        const Piece& p = pieces[item];
        for (int t = 0; t < tasks; ++t) {
            T* to = u.out.data + t * u.out.stride + p.from;
            const T* from = row(u.theta, t, p.from);
            if (u.grad.data) {
                subtract(from, u.rates, u.each, p, row(u.grad, t, p.from), to);
                from = to;
            }
            if (u.grad_dot.data)
                subtract(from, u.rates_dot, u.each, p, row(u.grad_dot, t, p.from), to);
        }
    });
}

template <class T>
void update_bwd(const UpdateBwd<T>& u, int tasks, const Piece* pieces, int count, Team& team) {
    each(team, count, [&](int item, int) {
        const Piece& p = pieces[item];
        const ptrdiff_t n = p.to - p.from;
        for (int t = 0; t < tasks; ++t) {
            const T* d_theta = row(u.d_theta, t, p.from);
            const T* grad = row(u.grad, t, p.from);
            if (u.rates)
                subtract<T>(nullptr, u.rates, u.each, p, d_theta,
                            u.d_grad.data + t * u.d_grad.stride + p.from);
            if (grad && u.each)
                subtract<T>(
                    nullptr, [grad](ptrdiff_t i) { return grad[i]; }, d_theta, n,
                    u.d_rates.data + t * u.d_rates.stride + p.from);
            else if (grad)
                u.shares[static_cast<ptrdiff_t>(item) * tasks + t] = product_sum(d_theta, grad, n);
        }
    });
    for (int t = 0; u.grad.data && !u.each && t < tasks; ++t)
        for (int item = 0; item < count;) {
            const int segment = pieces[item].segment;
            double sum = 0;
            for (; item < count && pieces[item].segment == segment; ++item)
                sum += u.shares[static_cast<ptrdiff_t>(item) * tasks + t];
            u.d_rates.data[t * u.d_rates.stride + segment] = static_cast<T>(-sum);
        }
}

template <class T> void adam(const AdamStep<T>& a, ptrdiff_t n, Team& team) {
    constexpr ptrdiff_t piece = 1 << 13;
    each(team, static_cast<int>((n + piece - 1) / piece), [&](int item, int) {
        const ptrdiff_t from = item * piece, to = from + piece < n ? from + piece : n;
        for (ptrdiff_t i = from; i < to; ++i) {
            T g = a.grad[i];
            g = g > a.clamp ? a.clamp : g < -a.clamp ? -a.clamp : g;
            const T m = a.first[i] + a.fresh1 * (g - a.first[i]);
            const T v = a.beta2 * a.second[i] + a.fresh2 * g * g;
            a.first_out[i] = m;
            a.second_out[i] = v;
            a.param_out[i] = a.param[i] - a.rate * m / (root(v) * a.correction + a.eps);
        }
    });
}

template void update_fwd(const UpdateFwd<float>&, int, const Piece*, int, Team&);
template void update_fwd(const UpdateFwd<double>&, int, const Piece*, int, Team&);
template void update_bwd(const UpdateBwd<float>&, int, const Piece*, int, Team&);
template void update_bwd(const UpdateBwd<double>&, int, const Piece*, int, Team&);
template void adam(const AdamStep<float>&, ptrdiff_t, Team&);
template void adam(const AdamStep<double>&, ptrdiff_t, Team&);

} // namespace MAMLPP_ISA
} // namespace mamlpp
