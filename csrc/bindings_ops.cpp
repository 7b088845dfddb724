// The single ops in the Python module, their operands as arguments.h has them.
#include "bindings.h"

#include <array>

namespace mamlpp {

namespace {

// Below this many values a call is over before another thread would have woken up.
constexpr ptrdiff_t worth_a_thread = 1 << 15;
// Values of a segment that one worker updates at once, for all tasks.
constexpr ptrdiff_t piece_values = 1 << 13;

int useful(int threads, ptrdiff_t values) { return values < worth_a_thread ? 1 : threads; }

// The operands of one product; a tangent has two of them.
using Product = std::array<Matrix, 3>; // x, w, dz

template <class T>
void conv(const ConvShape& shape, int tasks, int threads, const Product& first,
          const Product& second, const Matrix& z, const Matrix& dx, const Matrix& dw) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const ptrdiff_t pixels = static_cast<ptrdiff_t>(shape.side) * shape.side;
    threads = useful(threads, tasks * shape.n * pixels * (shape.channels + shape.filters));
    const ConvPart part = !z.first          ? ConvPart::gradients
                          : second[1].first ? ConvPart::tangent
                                            : ConvPart::value;
    Room room(tasks, threads, ops.conv_work_bytes(shape, part),
              ops.conv_scratch_bytes(shape, part));
    const auto at_task = [](const Product& p, int t) -> ConvPair<T> {
        return {row<const T>(p[0], t), row<const T>(p[1], t), row<const T>(p[2], t)};
    };
    for_tasks(tasks, threads, [&](int t, Team& team, int slot) {
        const ConvTask<T> task{
            {at_task(first, t), at_task(second, t)}, row<T>(z, t), row<T>(dx, t), row<T>(dw, t)};
        ops.task_conv(shape, part, task, room.work(slot), room.scratch(team), team);
    });
}

template <class T>
void conv_fwd(const ConvShape& shape, int tasks, int threads, const Product& first,
              const Product& second, Matrix z) {
    conv<T>(shape, tasks, threads, first, second, z, {}, {});
}

template <class T>
void conv_bwd(const ConvShape& shape, int tasks, int threads, const Product& first,
              const Product& second, Matrix dx, Matrix dw) {
    conv<T>(shape, tasks, threads, first, second, {}, dx, dw);
}

template <class T, class F> void norm(const NormShape& shape, int tasks, int threads, F f) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const ptrdiff_t values = static_cast<ptrdiff_t>(shape.side) * shape.side * shape.channels;
    threads = useful(threads, tasks * shape.n * values);
    Room room(tasks, threads, ops.norm_work_bytes(shape), ops.norm_scratch_bytes(shape));
    for_tasks(tasks, threads, [&](int t, Team& team, int slot) {
        f(ops, t, room.work(slot), room.scratch(team), team);
    });
}

template <class T>
void norm_act_fwd(const NormShape& shape, int tasks, int threads, Matrix z, Matrix gain,
                  Matrix bias, Matrix given_mean, Matrix given_var, Matrix y, Matrix mean,
                  Matrix var, Matrix rstd, Matrix x_hat, Matrix winners) {
    norm<T>(shape, tasks, threads, [&](auto& ops, int t, void* work, void* scratch, Team& team) {
        const NormFwd<T> task{row<const T>(z, t),
                              row<const T>(gain, t),
                              row<const T>(bias, t),
                              row<const T>(given_mean, t),
                              row<const T>(given_var, t),
                              row<T>(y, t),
                              row<T>(mean, t),
                              row<T>(var, t),
                              row<T>(rstd, t),
                              row<T>(x_hat, t),
                              row<uint16_t>(winners, t)};
        ops.norm_act_fwd(shape, task, work, scratch, team);
    });
}

// Of every task's op, what norm_act_fwd left; as its Python arguments.
struct NormMatrices {
    Matrix z, gain, bias, centre, rstd, x_hat, winners;
    bool given;
    template <class T> NormSaved<T> at_task(int t) const {
        return {row<const T>(z, t),
                row<const T>(gain, t),
                row<const T>(bias, t),
                row<const T>(centre, t),
                row<const T>(rstd, t),
                row<const T>(x_hat, t),
                row<const uint16_t>(winners, t),
                given};
    }
};

template <class T>
void norm_act_bwd(const NormShape& shape, int tasks, int threads, const NormMatrices& saved,
                  Matrix dy, Matrix dz, Matrix dgain, Matrix dbias) {
    norm<T>(shape, tasks, threads, [&](auto& ops, int t, void* work, void* scratch, Team& team) {
        const NormBwd<T> task{row<const T>(dy, t), row<T>(dz, t), row<T>(dgain, t),
                              row<T>(dbias, t)};
        ops.norm_act_bwd(shape, saved.at_task<T>(t), task, work, scratch, team);
    });
}

template <class T>
void norm_act_tan_fwd(const NormShape& shape, int tasks, int threads, const NormMatrices& saved,
                      Matrix z_dot, Matrix gain_dot, Matrix bias_dot, Matrix y_dot, Matrix mean_dot,
                      Matrix q, Matrix x_hat_dot) {
    norm<T>(shape, tasks, threads, [&](auto& ops, int t, void* work, void* scratch, Team& team) {
        const NormTanFwd<T> task{row<const T>(z_dot, t),    row<const T>(gain_dot, t),
                                 row<const T>(bias_dot, t), row<T>(y_dot, t),
                                 row<T>(mean_dot, t),       row<T>(q, t),
                                 row<T>(x_hat_dot, t)};
        ops.norm_act_tan_fwd(shape, saved.at_task<T>(t), task, work, scratch, team);
    });
}

template <class T>
void norm_act_tan_bwd(const NormShape& shape, int tasks, int threads, const NormMatrices& saved,
                      Matrix z_dot, Matrix mean_dot, Matrix q, Matrix x_hat_dot, Matrix dy,
                      Matrix dy_dot, Matrix gain_dot, Matrix dz_dot, Matrix dgain_dot,
                      Matrix dbias_dot) {
    norm<T>(shape, tasks, threads, [&](auto& ops, int t, void* work, void* scratch, Team& team) {
        const NormTanBwd<T> task{row<const T>(z_dot, t),    row<const T>(mean_dot, t),
                                 row<const T>(q, t),        row<const T>(x_hat_dot, t),
                                 row<const T>(dy, t),       row<const T>(dy_dot, t),
                                 row<const T>(gain_dot, t), row<T>(dz_dot, t),
                                 row<T>(dgain_dot, t),      row<T>(dbias_dot, t)};
        ops.norm_act_tan_bwd(shape, saved.at_task<T>(t), task, work, scratch, team);
    });
}

std::vector<Piece> pieces_of(const std::vector<ptrdiff_t>& sizes) {
    std::vector<Piece> pieces;
    ptrdiff_t from = 0;
    for (size_t segment = 0; segment < sizes.size(); ++segment)
        for (const ptrdiff_t end = from + sizes[segment]; from < end;) {
            const ptrdiff_t to = end - from > piece_values ? from + piece_values : end;
            pieces.push_back({static_cast<int>(segment), from, to});
            from = to;
        }
    return pieces;
}

// f(ops, pieces, team) by all threads at once, if there is enough to do; nothing that may throw.
// `own`: rates of each number.
template <class T, class F>
void update(const std::vector<Piece>& pieces, int tasks, int threads, F f) {
    const ptrdiff_t parameters = pieces.empty() ? 0 : pieces.back().to;
    for_tasks(1, useful(threads, tasks * parameters),
              [&](int, Team& team, int) { f(cpu_ops<T>(), team); });
}

template <class T>
void update_fwd(const std::vector<ptrdiff_t>& sizes, int tasks, int threads, bool own, Matrix theta,
                uintptr_t rates, Matrix grad, uintptr_t rates_dot, Matrix grad_dot, Matrix out) {
    const std::vector<Piece> pieces = pieces_of(sizes);
    update<T>(pieces, tasks, threads, [&](auto& ops, Team& team) {
        const UpdateFwd<T> u{rows<const T>(theta),
                             at<const T>(rates, 0),
                             rows<const T>(grad),
                             at<const T>(rates_dot, 0),
                             rows<const T>(grad_dot),
                             rows<T>(out),
                             own};
        ops.update_fwd(u, tasks, pieces.data(), static_cast<int>(pieces.size()), team);
    });
}

template <class T>
void update_bwd(const std::vector<ptrdiff_t>& sizes, int tasks, int threads, bool own,
                Matrix d_theta, Matrix grad, uintptr_t rates, Matrix d_grad, Matrix d_rates) {
    const std::vector<Piece> pieces = pieces_of(sizes);
    std::vector<double> shares(pieces.size() * static_cast<size_t>(tasks));
    update<T>(pieces, tasks, threads, [&](auto& ops, Team& team) {
        const UpdateBwd<T> u{rows<const T>(d_theta),
                             rows<const T>(grad),
                             at<const T>(rates, 0),
                             rows<T>(d_grad),
                             rows<T>(d_rates),
                             shares.data(),
                             own};
        ops.update_bwd(u, tasks, pieces.data(), static_cast<int>(pieces.size()), team);
    });
}

template <class T>
void adam(ptrdiff_t n, int threads, uintptr_t param, uintptr_t first, uintptr_t second,
          uintptr_t grad, double clamp, double beta1, double beta2, double rate, double correction,
          double eps, uintptr_t param_out, uintptr_t first_out, uintptr_t second_out) {
    const AdamStep<T> step{
        at<const T>(param, 0),      at<const T>(first, 0),     at<const T>(second, 0),
        at<const T>(grad, 0),       static_cast<T>(clamp),     static_cast<T>(1 - beta1),
        static_cast<T>(beta2),      static_cast<T>(1 - beta2), static_cast<T>(rate),
        static_cast<T>(correction), static_cast<T>(eps),       at<T>(param_out, 0),
        at<T>(first_out, 0),        at<T>(second_out, 0)};
    for_tasks(1, useful(threads, n),
              [&](int, Team& team, int) { cpu_ops<T>().adam(step, n, team); });
}

template <class T>
void lstm_fwd(int tasks, ptrdiff_t n, int threads, uintptr_t own, uintptr_t loss, Matrix gradient,
              Matrix c, Matrix memory, Matrix c_out, Matrix memory_out) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const LstmStep<T> step{at<const T>(own, 0), at<const T>(loss, 0),  rows<const T>(gradient),
                           rows<const T>(c),    rows<const T>(memory), rows<T>(c_out),
                           rows<T>(memory_out)};
    threads = useful(threads, tasks * n * lstm_memory);
    Room room(1, threads, ops.lstm_work_bytes(tasks, n, 0), ops.lstm_scratch_bytes(0));
    for_tasks(1, threads, [&](int, Team& team, int slot) {
        ops.lstm_fwd(step, tasks, n, room.work(slot), room.scratch(team), team);
    });
}

template <class T>
void lstm_bwd(int tasks, ptrdiff_t n, int threads, uintptr_t own, uintptr_t losses,
              const std::vector<Matrix>& gradients, uintptr_t start, Matrix carry, Matrix d_start,
              Matrix d_own) {
    const CpuOps<T>& ops = cpu_ops<T>();
    std::vector<Rows<const T>> of_steps;
    for (const Matrix& each : gradients)
        of_steps.push_back(rows<const T>(each));
    const int steps = static_cast<int>(of_steps.size());
    const LstmSweep<T> sweep{at<const T>(own, 0),    steps,
                             at<const T>(losses, 0), of_steps.data(),
                             at<const T>(start, 0),  rows<const T>(carry),
                             rows<T>(d_start),       rows<T>(d_own)};
    threads = useful(threads, tasks * n * lstm_memory * steps);
    Room room(1, threads, ops.lstm_work_bytes(tasks, n, steps), ops.lstm_scratch_bytes(steps));
    for_tasks(1, threads, [&](int, Team& team, int slot) {
        ops.lstm_bwd(sweep, tasks, n, room.work(slot), room.scratch(team), team);
    });
}

template <class T> double multiply_adds(int threads, ptrdiff_t rounds) {
    std::vector<T> left(static_cast<size_t>(threads));
    double done = 0;
    for_tasks(1, threads, [&](int, Team& team, int) {
        done = cpu_ops<T>().multiply_adds(rounds, left.data(), threads, team);
    });
    return done;
}

} // namespace

template <class T> void bind_ops(py::module_ m) {
    m.def("conv_fwd", &conv_fwd<T>);
    m.def("conv_bwd", &conv_bwd<T>);
    m.def("winner_words", [](const NormShape& shape) { return cpu_ops<T>().winner_words(shape); });
    m.def("norm_act_fwd", &norm_act_fwd<T>);
    m.def("norm_act_bwd", &norm_act_bwd<T>);
    m.def("norm_act_tan_fwd", &norm_act_tan_fwd<T>);
    m.def("norm_act_tan_bwd", &norm_act_tan_bwd<T>);
    m.def("update_fwd", &update_fwd<T>);
    m.def("update_bwd", &update_bwd<T>);
    m.def("adam", &adam<T>);
    m.attr("lstm_block") = lstm_block<T>;
    m.def("lstm_fwd", &lstm_fwd<T>);
    m.def("lstm_bwd", &lstm_bwd<T>);
    m.def("multiply_adds", &multiply_adds<T>);
}
template void bind_ops<float>(py::module_);
template void bind_ops<double>(py::module_);

void bind_shapes(py::module_ m) {
    py::class_<ConvShape>(m, "ConvShape")
        .def(py::init([](int n, int channels, int side, int filters, int stride, int size) {
            return ConvShape{n, channels, side, filters, stride, size};
        }));
    py::class_<NormShape>(m, "NormShape")
        .def(py::init([](int n, int channels, int side, bool pool, double slope, double eps) {
            return NormShape{n, channels, side, pool, slope, eps};
        }));
    py::class_<NormMatrices>(m, "NormMatrices")
        .def(py::init([](Matrix z, Matrix gain, Matrix bias, Matrix centre, Matrix rstd,
                         Matrix x_hat, Matrix winners, bool given) {
            return NormMatrices{z, gain, bias, centre, rstd, x_hat, winners, given};
        }));
}

} // namespace mamlpp
