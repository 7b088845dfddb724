// Batch norm + affine + leaky ReLU + 2×2 max pool of one task's images as an op of its own:
// forward, backward, and the tangent of both (formulas in norm_act.h and
// kernels/plain/norm_act.py).
#include "cpu.h"
#include "norm_task.h"

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> size_t winner_words(const NormShape& shape) {
    return static_cast<size_t>(
        window_of(shape, padded<T>(shape.channels)).template winner_words<T>());
}

template <class T> size_t norm_work_bytes(const NormShape& shape) {
    size_t bytes = 0;
    NormWork<T>(shape.n, padded<T>(shape.channels), nullptr, &bytes);
    return bytes;
}

template <class T> size_t norm_scratch_bytes(const NormShape& shape) {
    size_t bytes = 0;
    const int pitch = padded<T>(shape.channels);
    NormScratch<T>(window_of(shape, pitch), shape.channels == pitch, nullptr, &bytes);
    return bytes;
}

template <class T>
void norm_act_fwd(const NormShape& shape, const NormFwd<T>& task, void* work, void* scratch,
                  Team& team) {
    const Norm<T> op(shape, work, scratch, team);
    const NormWork<T>& v = op.v;
    const Window& g = op.g;
    op.load(task.gain, v.gain);
    op.load(task.bias, v.bias);
    each(team, op.n, [&](int i, int worker) {
        const T* z = op.read(task.z, i, op.dense, op.room(worker).z);
        for (int y = 0; y < g.dense; ++y)
            add_moments<T>({op.share(i, 0), op.share(i, 1)},
                           z + static_cast<ptrdiff_t>(y) * g.dense * g.pitch, g.dense, g.pitch,
                           y * g.dense);
    });
    op.statistics(task, shape.eps);
    each(team, op.n, [&](int i, int worker) {
        const NormScratch<T> room = op.room(worker);
        const T* z = op.read(task.z, i, op.dense, room.z);
        T* x_hat = g.pool ? op.target(task.x_hat, i, op.pooled, room.x_hat) : room.x_hat;
        T* y = op.target(task.y, i, op.pooled, room.y);
        normalise(g, z, v.gain, v.centre, v.rstd, x_hat, op.winners_of(task.winners, i));
        activate(g.pooled, g.pitch, x_hat, v.gain, v.bias, op.slope, y, false);
        if (g.pool)
            op.finish(x_hat, op.pooled, task.x_hat, i);
        op.finish(y, op.pooled, task.y, i);
    });
}

template <class T>
void norm_act_bwd(const NormShape& shape, const NormSaved<T>& saved, const NormBwd<T>& task,
                  void* work, void* scratch, Team& team) {
    const Norm<T> op(shape, work, scratch, team);
    const NormWork<T>& v = op.v;
    op.load(saved);
    each(team, op.n, [&](int i, int worker) {
        const NormScratch<T> room = op.room(worker);
        op.bend_image(task.dy, i, op.standard(saved, i, room), 0, room.delta);
    });
    op.merge(0);
    op.merge(1);
    op.store_sum(0, task.dbias);
    op.store_sum(1, task.dgain);
    const T part = op.per_value();
    for (int c = 0; c < op.g.pitch; ++c) {
        v.b0[c] = v.gain[c] * v.rstd[c];
        v.b2[c] = saved.given ? 0 : -v.b0[c] * v.rstd[c] * op.sum(1)[c] * part;
        v.b4[c] = saved.given ? 0 : -v.b0[c] * op.sum(0)[c] * part;
    }
    each(team, op.n, [&](int i, int worker) {
        const NormScratch<T> room = op.room(worker);
        // δ again, rather than keeping it for all images; its shares are the same once more.
        op.bend_image(task.dy, i, op.standard(saved, i, room), 0, room.delta);
        const Addend<T> sparse[1] = {{room.delta, v.b0, nullptr}};
        const Addend<T> dense[1] = {{op.read(saved.z, i, op.dense, room.z), v.b2, v.centre}};
        T* dz = op.target(task.dz, i, op.dense, room.out);
        const uint16_t* const winners = op.winners_of(saved.winners, i);
        if (saved.given)
            build_dz<true>(op.g, sparse, dense, v.b4, winners, dz, false);
        else
            build_dz(op.g, sparse, dense, v.b4, winners, dz, false);
        op.finish(dz, op.dense, task.dz, i);
    });
}

template <class T>
void norm_act_tan_fwd(const NormShape& shape, const NormSaved<T>& saved, const NormTanFwd<T>& task,
                      void* work, void* scratch, Team& team) {
    const Norm<T> op(shape, work, scratch, team);
    const NormWork<T>& v = op.v;
    const Window& g = op.g;
    op.load(saved);
    op.load(task.gain_dot, v.gain_dot);
    op.load(task.bias_dot, v.bias_dot);
    op.load(nullptr, v.mean_dot);
    op.load(nullptr, v.q);
    if (task.z_dot && !saved.given) {
        each(team, op.n, [&](int i, int worker) {
            const NormScratch<T> room = op.room(worker);
            const T* z = op.read(saved.z, i, op.dense, room.z);
            const T* z_dot = op.read(task.z_dot, i, op.dense, room.z_dot);
            T* const sums[2] = {op.share(i, 0), op.share(i, 1)};
            const ptrdiff_t row = static_cast<ptrdiff_t>(g.dense) * g.pitch;
            for (int y = 0; y < g.dense; ++y)
                add_products(sums, z_dot + y * row, z + y * row, v.centre, g.dense, g.pitch,
                             y == 0);
        });
        op.merge(0);
        op.merge(1);
        for (int c = 0; c < op.channels; ++c) {
            task.mean_dot[c] = v.mean_dot[c] = op.sum(0)[c] * op.per_value();
            task.q[c] = v.q[c] = op.sum(1)[c] * op.per_value() * v.rstd[c];
        }
    }
    each(team, op.n, [&](int i, int worker) {
        const NormScratch<T> room = op.room(worker);
        const T* x_hat = op.standard(saved, i, room);
        T* x_hat_dot = nullptr;
        if (task.z_dot) {
            x_hat_dot = op.target(task.x_hat_dot, i, op.pooled, room.x_hat_dot);
            normalise_dot(g, op.read(task.z_dot, i, op.dense, room.z_dot), x_hat,
                          op.winners_of(saved.winners, i), v.rstd, v.mean_dot, v.q, x_hat_dot);
            op.finish(x_hat_dot, op.pooled, task.x_hat_dot, i);
        }
        T* y_dot = op.target(task.y_dot, i, op.pooled, room.y);
        direction(g.pooled_image(), v, g.pitch, op.slope, x_hat, x_hat_dot, y_dot);
        op.finish(y_dot, op.pooled, task.y_dot, i);
    });
}

template <class T>
void norm_act_tan_bwd(const NormShape& shape, const NormSaved<T>& saved, const NormTanBwd<T>& task,
                      void* work, void* scratch, Team& team) {
    const Norm<T> op(shape, work, scratch, team);
    const NormWork<T>& v = op.v;
    op.load(saved);
    op.load(task.gain_dot, v.gain_dot);
    op.load(task.mean_dot, v.mean_dot);
    op.load(task.q, v.q);
    // δ and δ_dot of an image, and what they add to Σδ, Σδx̂, Σδ_dot and Σ(δ_dot·x̂ + δ·x̂_dot)
    const auto bend_both = [&](int i, const NormScratch<T>& room) {
        const T* x_hat = op.standard(saved, i, room);
        const T* x_hat_dot = op.read(task.x_hat_dot, i, op.pooled, room.x_hat_dot);
        op.bend_image(task.dy, i, x_hat, 0, room.delta);
        if (task.dy_dot)
            op.bend_image(task.dy_dot, i, x_hat, 2, room.delta_dot);
        for (int c = 0; !task.dy_dot && c < op.g.pitch; ++c)
            op.share(i, 2)[c] = op.share(i, 3)[c] = 0;
        if (x_hat_dot)
            op.runs([&](int first, int pixels) {
                const ptrdiff_t at = static_cast<ptrdiff_t>(first) * op.g.pitch;
                add_product(static_cast<ptrdiff_t>(pixels) * op.g.pitch, op.g.pitch,
                            room.delta + at, x_hat_dot + at, op.share(i, 3));
            });
    };
    each(team, op.n, [&](int i, int worker) { bend_both(i, op.room(worker)); });
    for (int which = 0; which < image_sums; ++which)
        op.merge(which);
    op.store_sum(2, task.dbias_dot);
    op.store_sum(3, task.dgain_dot);
    op.dot_coefficients(saved.given);
    each(team, op.n, [&](int i, int worker) {
        const NormScratch<T> room = op.room(worker);
        bend_both(i, room);
        T* dz_dot = op.target(task.dz_dot, i, op.dense, room.out);
        op.build_dot(room.delta, task.dy_dot ? room.delta_dot : nullptr,
                     op.read(saved.z, i, op.dense, room.z),
                     op.read(task.z_dot, i, op.dense, room.z_dot), op.winners_of(saved.winners, i),
                     saved.given, dz_dot);
        op.finish(dz_dot, op.dense, task.dz_dot, i);
    });
}

#define MAMLPP_INSTANTIATE(T)                                                                      \
    template size_t winner_words<T>(const NormShape&);                                             \
    template size_t norm_work_bytes<T>(const NormShape&);                                          \
    template size_t norm_scratch_bytes<T>(const NormShape&);                                       \
    template void norm_act_fwd(const NormShape&, const NormFwd<T>&, void*, void*, Team&);          \
    template void norm_act_bwd(const NormShape&, const NormSaved<T>&, const NormBwd<T>&, void*,    \
                               void*, Team&);                                                      \
    template void norm_act_tan_fwd(const NormShape&, const NormSaved<T>&, const NormTanFwd<T>&,    \
                                   void*, void*, Team&);                                           \
    template void norm_act_tan_bwd(const NormShape&, const NormSaved<T>&, const NormTanBwd<T>&,    \
                                   void*, void*, Team&)
MAMLPP_INSTANTIATE(float);
MAMLPP_INSTANTIATE(double);

} // namespace MAMLPP_ISA
} // namespace mamlpp
