// Blocks of both products in registers: `register_rows` scalars against up to `max_columns`
// vectors.
#include "products.h"
#include "bf16.h"

namespace mamlpp {
namespace MAMLPP_ISA {

namespace {

// Products of `multiply` in one running sum. Their filters stay in the first-level cache.
constexpr int longest_sum = 64;

// out[p][v] (+)= Σ_terms Σ_c in[p][c] · w[c][v] for P pixels and V vectors, in registers.
template <class S, class T, int P, int V>
MAMLPP_INLINE void multiply_block(const Term<S>* terms, int count, ptrdiff_t at, ptrdiff_t in_step,
                                  ptrdiff_t w_at, int channels, int pitch, T* out,
                                  ptrdiff_t out_step, bool fresh) {
    constexpr int L = lanes<T>;
    Vec<T> sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            sum[p][v] = Vec<T>::all(0);
    for (int t = 0; t < count; ++t) {
        const S* in = terms[t].in + at;
        const S* w = terms[t].w + w_at;
        for (int c = 0; c < channels; ++c, w += pitch) {
            Vec<S> row[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                row[v] = Vec<S>::load(w + v * L);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const Vec<S> x = Vec<S>::all(in[p * in_step + c]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v)
                    sum[p][v] = fma(x, row[v], sum[p][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            T* const to = out + p * out_step + v * L;
            (fresh ? sum[p][v] : Vec<T>::load(to) + sum[p][v]).store(to);
        }
}

// The block of `pixels` ≤ P, chosen at run time among all sizes down to 1.
template <class S, class T, int P, int V, class... A>
MAMLPP_INLINE void multiply_pixels(int pixels, A... a) {
    if constexpr (P > 1)
        if (pixels < P)
            return multiply_pixels<S, T, P - 1, V>(pixels, a...);
    multiply_block<S, T, P, V>(a...);
}

// One run of pixels of a row, V vectors of channels.
template <class S, class T, int V>
void multiply_row(const Term<S>* terms, int count, int pixels, ptrdiff_t in_step, ptrdiff_t w_at,
                  int channels, int pitch, T* out, ptrdiff_t out_step) {
    constexpr int most = register_rows[V];
    const int blocks = (pixels + most - 1) / most;
    const int sweeps = (channels + longest_sum - 1) / longest_sum;
    const int depth = (channels + sweeps - 1) / sweeps, taken = longest_sum / depth;
    bool fresh = true;
    for (int c = 0; c < channels; c += depth)
        for (int t = 0; t < count || fresh; t += taken) { // a pixel may meet no tap at all
            const int deep = channels - c < depth ? channels - c : depth;
            const int met = count - t < taken ? count - t : taken;
            for (int b = 0, at = 0; b < blocks; ++b) {
                const int size = pixels / blocks + (b < pixels % blocks);
                multiply_pixels<S, T, most, V>(size, terms + t, met, at * in_step + c, in_step,
                                               w_at + static_cast<ptrdiff_t>(c) * pitch, deep,
                                               pitch, out + at * out_step, out_step, fresh);
                at += size;
            }
            fresh = false;
        }
}

// sum[i][v] (+)= Σ_runs Σ_pixels scalars[i] · vectors[v] for R scalars and V vectors, in registers.
template <class S, class T, int R, int V>
MAMLPP_INLINE void outer_block(const Run<S>* runs, int count, int pixels, ptrdiff_t s_at,
                               ptrdiff_t s_step, ptrdiff_t v_at, ptrdiff_t v_step, T* sum,
                               ptrdiff_t sum_step, bool fresh) {
    constexpr int L = lanes<T>;
    Vec<T> acc[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            acc[r][v] = Vec<T>::all(0);
            if (!fresh)
                __builtin_prefetch(sum + r * sum_step + v * L, 1);
        }
    for (int k = 0; k < count; ++k) {
        const S* s = runs[k].scalars + s_at;
        const S* x = runs[k].vectors + v_at;
        for (int p = 0; p < pixels; ++p, s += s_step, x += v_step) {
            Vec<S> row[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                row[v] = Vec<S>::load(x + v * L);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec<S> scalar = Vec<S>::all(s[r]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v)
                    acc[r][v] = fma(scalar, row[v], acc[r][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            T* const to = sum + r * sum_step + v * L;
            (fresh ? acc[r][v] : Vec<T>::load(to) + acc[r][v]).store(to);
        }
}

template <class S, class T, int R, int V, class... A>
MAMLPP_INLINE void outer_scalars(int scalars, A... a) {
    if constexpr (R > 1)
        if (scalars < R)
            return outer_scalars<S, T, R - 1, V>(scalars, a...);
    outer_block<S, T, R, V>(a...);
}

template <class S, class T, int V>
void outer_rows(const Run<S>* runs, int count, int pixels, int scalars, ptrdiff_t s_step,
                ptrdiff_t v_at, ptrdiff_t v_step, T* sum, ptrdiff_t sum_step, bool fresh) {
    constexpr int most = register_rows[V];
    const int blocks = (scalars + most - 1) / most;
    for (int b = 0, at = 0; b < blocks; ++b) {
        const int size = scalars / blocks + (b < scalars % blocks);
        outer_scalars<S, T, most, V>(size, runs, count, pixels, static_cast<ptrdiff_t>(at), s_step,
                                     v_at, v_step, sum + at * sum_step, sum_step, fresh);
        at += size;
    }
}

} // namespace

template <class S, class T>
void multiply(const Term<S>* terms, int count, int pixels, ptrdiff_t in_step, int channels,
              int pitch, T* out, ptrdiff_t out_step, bool panels) {
    for_panels<T>(pitch, [&](int first, int size) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(first) * lanes<T>;
        const ptrdiff_t w_at = panels ? at * channels : at;
        const int w_step = panels ? size * lanes<T> : pitch;
        const auto columns = [&](auto run) {
            run(terms, count, pixels, in_step, w_at, channels, w_step, out + at, out_step);
        };
        if (size == 1)
            columns(multiply_row<S, T, 1>);
        if (size == 2)
            columns(multiply_row<S, T, 2>);
        if (size == 3)
            columns(multiply_row<S, T, 3>);
        if constexpr (max_columns > 3)
            if (size == 4)
                columns(multiply_row<S, T, 4>);
    });
}

template <class S, class T>
void outer(const Run<S>* runs, int count, int pixels, int scalars, ptrdiff_t s_step, int pitch,
           ptrdiff_t v_step, T* sum, ptrdiff_t sum_step, bool fresh) {
    for_panels<T>(pitch, [&](int first, int size) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(first) * lanes<T>;
        const auto columns = [&](auto run) {
            run(runs, count, pixels, scalars, s_step, at, v_step, sum + at, sum_step, fresh);
        };
        if (size == 1)
            columns(outer_rows<S, T, 1>);
        if (size == 2)
            columns(outer_rows<S, T, 2>);
        if (size == 3)
            columns(outer_rows<S, T, 3>);
        if constexpr (max_columns > 3)
            if (size == 4)
                columns(outer_rows<S, T, 4>);
    });
}

#define MAMLPP_PRODUCTS(S, T)                                                                      \
    template void multiply(const Term<S>*, int, int, ptrdiff_t, int, int, T*, ptrdiff_t, bool);    \
    template void outer(const Run<S>*, int, int, int, ptrdiff_t, int, ptrdiff_t, T*, ptrdiff_t,    \
                        bool);
#ifdef MAMLPP_PARTS
MAMLPP_PRODUCTS(Bf16Pair, float)
#else
MAMLPP_PRODUCTS(float, float)
MAMLPP_PRODUCTS(double, double)
#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
