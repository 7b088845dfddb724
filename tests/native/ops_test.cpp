// The single ops without Python, as passes_test.cpp has the passes. The three contractions of a
// convolution are checked against each other, the tangents of the normalisation against
// differences.
#include "testing.h"

using namespace mamlpp;
using namespace mamlpp::testing;

namespace {

template <class T> using Results = std::vector<std::vector<T>>;

template <class T>
void compare(const Results<T>& a, const Results<T>& b, double tolerance, const std::string& what) {
    for (size_t i = 0; i < a.size(); ++i) {
        const double e = error(a[i], b[i]);
        expect(e <= tolerance,
               what + ": result " + std::to_string(i) + " off by " + std::to_string(e));
    }
}

// f(team, work, scratch) by one task, which is left over for a team of all threads.
template <class F> void by_team(int threads, size_t work_bytes, size_t scratch_bytes, F f) {
    const Exact work(work_bytes), scratch(scratch_bytes * static_cast<size_t>(threads));
    for_tasks(1, threads, [&](int, Team& team, int) { f(team, work.data(), scratch.data()); });
}

// f(results, what) of the instruction sets; of each, any number of threads gives the same bits.
template <class T, class R, class F> void on_every_isa(const std::string& name, R run, F f) {
    testing::on_every_isa([&](const std::string& isa) {
        const std::string what = name + (sizeof(T) == 8 ? " double " : " float ") + isa;
        const Results<T> results = run(T{}, 1);
        compare(run(T{}, 2), results, 0, what + ", 2 threads");
        compare(run(T{}, 3), results, 0, what + ", 3 threads");
        f(results, what);
    });
}

// run(T{}, threads) of the same inputs in both types gives about the same in double on every
// instruction set, which `verify` accepts, and in float what is next to it.
template <class R, class V> void check(const std::string& name, R run, V verify) {
    std::printf("%s\n", name.c_str());
    std::fflush(stdout);
    Results<double> exact; // of the portable set
    on_every_isa<double>(name, run, [&](const Results<double>& results, const std::string& what) {
        if (exact.empty())
            exact = results;
        compare(results, exact, 1e-10, what + " and portable");
        verify(results, what);
    });
    Budget budget;
    on_every_isa<float>(name, run, [&](const Results<float>& results, const std::string& what) {
        for (size_t i = 0; i < results.size(); ++i)
            budget.expect_within(i, results[i], exact[i], what + ": result " + std::to_string(i));
    });
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i)
        sum += a[i] * b[i];
    return sum;
}

template <class T> struct ConvInputs {
    Results<T> x, w, dz; // of two products

    explicit ConvInputs(const ConvShape& s) {
        const int out = (s.side - 1) / s.stride + 1;
        Random random(s.side * 100 + s.filters);
        for (int k = 0; k < 2; ++k) {
            x.push_back(random.values<T>(s.n * s.side * s.side * s.channels));
            w.push_back(random.values<T>(s.filters * s.size * s.size * s.channels));
            dz.push_back(random.values<T>(s.n * out * out * s.filters));
        }
    }
};

// z, dx and dw of as many products; one gradient alone gets the operands of that one.
template <class T>
void run_conv(const ConvShape& s, const ConvInputs<T>& in, int products, bool need_dx, bool need_dw,
              Team& team, void* work, void* scratch, Results<T>& results) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const auto like = [](const std::vector<T>& v) {
        return unwritten<T>(static_cast<ptrdiff_t>(v.size()));
    };
    std::vector<T> z = like(in.dz[0]), dx = like(in.x[0]), dw = like(in.w[0]);
    ConvTask<T> fwd{}, bwd{};
    for (int k = 0; k < products; ++k) {
        fwd.pairs[k] = {in.x[k].data(), in.w[k].data(), nullptr};
        bwd.pairs[k] = {need_dw ? in.x[k].data() : nullptr, need_dx ? in.w[k].data() : nullptr,
                        in.dz[k].data()};
    }
    fwd.z = z.data();
    bwd.dx = need_dx ? dx.data() : nullptr;
    bwd.dw = need_dw ? dw.data() : nullptr;
    const ConvPart value = products > 1 ? ConvPart::tangent : ConvPart::value;
    ops.task_conv(s, value, fwd, work, scratch, team);
    ops.task_conv(s, ConvPart::gradients, bwd, work, scratch, team);
    results.push_back(z);
    if (need_dx)
        results.push_back(dx);
    if (need_dw)
        results.push_back(dw);
}

// All that run_conv gives, of one product and of two.
template <class T> Results<T> run_convs(const ConvShape& s, int threads) {
    const ConvInputs<T> in(s);
    const CpuOps<T>& ops = cpu_ops<T>();
    Results<T> results;
    size_t work_bytes = 0, scratch_bytes = 0;
    for (const ConvPart part : {ConvPart::value, ConvPart::tangent, ConvPart::gradients}) {
        work_bytes = std::max(work_bytes, ops.conv_work_bytes(s, part));
        scratch_bytes = std::max(scratch_bytes, ops.conv_scratch_bytes(s, part));
    }
    by_team(threads, work_bytes, scratch_bytes, [&](Team& team, void* work, void* scratch) {
        for (int products = 1; products <= 2; ++products) {
            run_conv(s, in, products, true, true, team, work, scratch, results);
            run_conv(s, in, products, true, false, team, work, scratch, results);
            run_conv(s, in, products, false, true, team, work, scratch, results);
        }
    });
    return results;
}

void check_conv(const ConvShape& s) {
    const ConvInputs<double> in(s);
    const auto run = [&](auto zero, int threads) { return run_convs<decltype(zero)>(s, threads); };
    // ⟨dz, z⟩ = ⟨dx, x⟩ = ⟨dw, w⟩
    const auto verify = [&](const Results<double>& r, const std::string& what) {
        const double value = dot(in.dz[0], r[0]);
        const double slack = 1e-12 * static_cast<double>(in.dz[0].size());
        expect(std::abs(dot(in.x[0], r[1]) - value) <= slack, what + ": input gradient");
        expect(std::abs(dot(in.w[0], r[2]) - value) <= slack, what + ": weight gradient");
    };
    const std::string name = "conv " + std::to_string(s.n) + "x" + std::to_string(s.side) + "x" +
                             std::to_string(s.channels) + " to " + std::to_string(s.filters) +
                             " stride " + std::to_string(s.stride) + " size " +
                             std::to_string(s.size);
    check(name, run, verify);
}

template <class T> struct NormInputs {
    std::vector<T> z, gain, bias, dy, z_dot, gain_dot, bias_dot, dy_dot, mean, var;

    NormInputs(const NormShape& s, bool given, double step) {
        const int side = s.pool ? s.side / 2 : s.side;
        const ptrdiff_t dense = s.n * s.side * s.side * s.channels,
                        small = s.n * side * side * s.channels;
        Random random(s.side * 100 + s.channels);
        std::vector<T>* const values[] = {&z, &z_dot, &dy, &dy_dot};
        for (int i = 0; i < 4; ++i)
            *values[i] = random.values<T>(i < 2 ? dense : small);
        std::vector<T>* const rows[] = {&gain, &bias, &gain_dot, &bias_dot};
        for (std::vector<T>* row : rows)
            *row = random.values<T>(s.channels, 1, 0.2);
        mean = random.values<T>(given ? s.channels : 0);
        var = random.values<T>(given ? s.channels : 0, 0.4, 0.9);
        move(z, z_dot, step);
        move(gain, gain_dot, step);
        move(bias, bias_dot, step);
        move(dy, dy_dot, step);
    }
    static void move(std::vector<T>& values, const std::vector<T>& direction, double step) {
        for (size_t i = 0; i < values.size(); ++i)
            values[i] += static_cast<T>(step) * direction[i];
    }
};

// y, its gradients dz, dgain, dbias, and the directions of these four.
template <class T>
Results<T> run_norm(const NormShape& s, const NormInputs<T>& in, int threads, bool partly) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const bool given = !in.mean.empty();
    const ptrdiff_t dense = static_cast<ptrdiff_t>(in.z.size()),
                    small = static_cast<ptrdiff_t>(in.dy.size());
    const auto row = [&] { return unwritten<T>(s.channels); };
    std::vector<T> y = unwritten<T>(small), x_hat = y, y_dot = y, x_hat_dot = y;
    std::vector<T> dz = unwritten<T>(dense), dz_dot = dz, mean = row(), var = row(), rstd = row();
    std::vector<T> dgain = row(), dbias = row(), dgain_dot = row(), dbias_dot = row();
    std::vector<T> mean_dot = row(), q = row();
    std::vector<uint16_t> winners(static_cast<size_t>(s.n) * ops.winner_words(s));
    by_team(threads, ops.norm_work_bytes(s), ops.norm_scratch_bytes(s),
            [&](Team& team, void* work, void* scratch) {
                const NormFwd<T> fwd{in.z.data(),
                                     in.gain.data(),
                                     in.bias.data(),
                                     given ? in.mean.data() : nullptr,
                                     given ? in.var.data() : nullptr,
                                     y.data(),
                                     mean.data(),
                                     var.data(),
                                     rstd.data(),
                                     x_hat.data(),
                                     s.pool ? winners.data() : nullptr};
                ops.norm_act_fwd(s, fwd, work, scratch, team);
                const NormSaved<T> saved{in.z.data(),    in.gain.data(),
                                         in.bias.data(), given ? in.mean.data() : mean.data(),
                                         rstd.data(),    x_hat.data(),
                                         fwd.winners,    given};
                ops.norm_act_bwd(s, saved, {in.dy.data(), dz.data(), dgain.data(), dbias.data()},
                                 work, scratch, team);
                // All directions, or that of z alone; z's own statistics move with it.
                T* const moved[] = {given ? nullptr : mean_dot.data(), given ? nullptr : q.data()};
                const T* const gain_dot = partly ? nullptr : in.gain_dot.data();
                const NormTanFwd<T> tan_fwd{
                    in.z_dot.data(), gain_dot, partly ? nullptr : in.bias_dot.data(),
                    y_dot.data(),    moved[0], moved[1],
                    x_hat_dot.data()};
                ops.norm_act_tan_fwd(s, saved, tan_fwd, work, scratch, team);
                const NormTanBwd<T> tan_bwd{in.z_dot.data(),  moved[0],
                                            moved[1],         x_hat_dot.data(),
                                            in.dy.data(),     partly ? nullptr : in.dy_dot.data(),
                                            gain_dot,         dz_dot.data(),
                                            dgain_dot.data(), dbias_dot.data()};
                ops.norm_act_tan_bwd(s, saved, tan_bwd, work, scratch, team);
            });
    return {y, dz, dgain, dbias, y_dot, dz_dot, dgain_dot, dbias_dot};
}

void check_norm(const NormShape& s, bool given) {
    const std::string name = "norm_act " + std::to_string(s.n) + "x" + std::to_string(s.side) +
                             "x" + std::to_string(s.channels) + (s.pool ? " pool" : "") +
                             (given ? " given" : "");
    const auto run = [&](bool partly) {
        return [&s, given, partly](auto zero, int threads) {
            return run_norm(s, NormInputs<decltype(zero)>(s, given, 0), threads, partly);
        };
    };
    check(name + " z_dot", run(true), [](const Results<double>&, const std::string&) {});
    check(name, run(false), [&](const Results<double>& r, const std::string& what) {
        const double h = 1e-6;
        const Results<double> above = run_norm(s, NormInputs<double>(s, given, h), 1, false);
        const Results<double> below = run_norm(s, NormInputs<double>(s, given, -h), 1, false);
        for (size_t i = 0; i < 4; ++i) {
            const double e = error(r[4 + i], slope(above[i], below[i], h));
            expect(e <= 1e-6,
                   what + ": direction " + std::to_string(i) + " off by " + std::to_string(e));
        }
    });
}

template <class T> struct UpdateInputs {
    std::vector<T> theta, grad, rates;

    UpdateInputs(int tasks, ptrdiff_t size, int segments) {
        Random random(tasks);
        theta = random.values<T>(size);
        grad = random.values<T>(tasks * size);
        rates = random.values<T>(segments);
    }
};

template <class T>
Results<T> run_update(const UpdateInputs<T>& in, int tasks, const std::vector<Piece>& pieces,
                      bool each, int threads) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const ptrdiff_t size = pieces.back().to, segments = static_cast<ptrdiff_t>(in.rates.size());
    const int count = static_cast<int>(pieces.size());
    std::vector<T> out = unwritten<T>(tasks * size), d_grad = out;
    std::vector<T> d_rates(static_cast<size_t>(tasks * segments)); // zeros, as asked for
    std::vector<double> shares = unwritten<double>(count * tasks);
    for_tasks(1, threads, [&](int, Team& team, int) {
        // The tasks share theta: a stride of 0.
        ops.update_fwd({{in.theta.data(), 0},
                        in.rates.data(),
                        {in.grad.data(), size},
                        nullptr,
                        {},
                        {out.data(), size},
                        each},
                       tasks, pieces.data(), count, team);
        ops.update_bwd({{out.data(), size},
                        {in.grad.data(), size},
                        in.rates.data(),
                        {d_grad.data(), size},
                        {d_rates.data(), segments},
                        shares.data(),
                        each},
                       tasks, pieces.data(), count, team);
    });
    return {out, d_grad, d_rates};
}

void check_update(int tasks, const std::vector<Piece>& pieces, bool each) {
    const ptrdiff_t size = pieces.back().to;
    const int segments = each ? static_cast<int>(size) : pieces.back().segment + 1;
    const UpdateInputs<double> in(tasks, size, segments);
    const auto run = [&](auto zero, int threads) {
        const UpdateInputs<decltype(zero)> inputs(tasks, size, segments);
        return run_update(inputs, tasks, pieces, each, threads);
    };
    check("update", run, [&](const Results<double>& r, const std::string& what) {
        const double first = in.theta[0] - in.rates[0] * in.grad[0];
        expect(std::abs(r[0][0] - first) < 1e-14, what + ": value");
    });
}

template <class T> Results<T> run_adam(ptrdiff_t n, int threads) {
    Random random(1);
    const std::vector<T> param = random.values<T>(n), first = random.values<T>(n),
                         second = random.values<T>(n, 0.5, 0.5), grad = random.values<T>(n, 2);
    std::vector<T> moved = unwritten<T>(n), m = moved, v = moved;
    AdamStep<T> step{};
    step.param = param.data(), step.first = first.data(), step.second = second.data();
    step.grad = grad.data(), step.clamp = 1.5;
    step.fresh1 = 0.125, step.beta2 = 0.96875, step.fresh2 = 0.03125, step.rate = 0.125;
    step.correction = 2, step.eps = 0.0078125;
    step.param_out = moved.data(), step.first_out = m.data(), step.second_out = v.data();
    for_tasks(1, threads, [&](int, Team& team, int) { cpu_ops<T>().adam(step, n, team); });
    return {moved, m, v, param, first, second, grad};
}

void check_adam(ptrdiff_t n) {
    const auto run = [&](auto zero, int threads) { return run_adam<decltype(zero)>(n, threads); };
    check("adam", run, [&](const Results<double>& r, const std::string& what) {
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            const double g = std::max(-1.5, std::min(1.5, r[6][i]));
            const double m = 0.875 * r[4][i] + 0.125 * g;
            const double v = 0.96875 * r[5][i] + 0.03125 * g * g;
            const double moved = r[3][i] - 0.125 * m / (2 * std::sqrt(v) + 0.0078125);
            const double off = std::max(std::abs(r[1][i] - m), std::abs(r[2][i] - v));
            expect(std::max(off, std::abs(r[0][i] - moved)) < 1e-14, what);
        }
    });
}

// c after some steps, and the gradients of where they began and of the rule's numbers, these
// against differences.
template <class T> struct LstmInputs {
    std::vector<T> own, losses, gradients, start, carry;

    LstmInputs(int tasks, int n, int steps) {
        Random random(n);
        own = random.values<T>(lstm_numbers, 0.3);
        losses = random.values<T>(steps * tasks, 0.4, 0.6);
        gradients = random.values<T>(steps * tasks * n);
        start = random.values<T>(n);
        carry = random.values<T>(tasks * n);
    }
};

template <class T>
Results<T> run_lstm(const LstmInputs<T>& in, int tasks, int n, int steps, int threads) {
    const CpuOps<T>& ops = cpu_ops<T>();
    const ptrdiff_t blocks = (n + lstm_block<T> - 1) / lstm_block<T>,
                    size = blocks * lstm_memory * lstm_block<T>;
    std::vector<T> c[2], memory = unwritten<T>(tasks * size);
    std::vector<T> d_start = unwritten<T>(tasks * n), d_own = unwritten<T>(tasks * lstm_numbers);
    std::vector<Rows<const T>> gradients;
    by_team(threads, ops.lstm_work_bytes(tasks, n, 0), ops.lstm_scratch_bytes(0),
            [&](Team& team, void* work, void* scratch) {
                for (int k = 0; k < steps; ++k) {
                    gradients.push_back({in.gradients.data() + k * tasks * n, n});
                    c[k % 2] = unwritten<T>(tasks * n);
                    const Rows<const T> start{in.start.data(), 0}, from{c[1 - k % 2].data(), n};
                    ops.lstm_fwd({in.own.data(),
                                  in.losses.data() + k * tasks,
                                  gradients[k],
                                  k ? from : start,
                                  {k ? memory.data() : nullptr, size},
                                  {c[k % 2].data(), n},
                                  {memory.data(), size}},
                                 tasks, n, work, scratch, team);
                }
            });
    by_team(threads, ops.lstm_work_bytes(tasks, n, steps), ops.lstm_scratch_bytes(steps),
            [&](Team& team, void* work, void* scratch) {
                ops.lstm_bwd({in.own.data(),
                              steps,
                              in.losses.data(),
                              gradients.data(),
                              in.start.data(),
                              {in.carry.data(), n},
                              {d_start.data(), n},
                              {d_own.data(), lstm_numbers}},
                             tasks, n, work, scratch, team);
            });
    return {c[(steps - 1) % 2], d_start, d_own};
}

void check_lstm(int tasks, int n, int steps) {
    const auto run = [&](auto zero, int threads) {
        return run_lstm(LstmInputs<decltype(zero)>(tasks, n, steps), tasks, n, steps, threads);
    };
    const std::string name = "lstm " + std::to_string(tasks) + "x" + std::to_string(n);
    check(name, run, [&](const Results<double>& r, const std::string& what) {
        const double h = 1e-6;
        for (const int at : {0, 7, 1925, 2019, 2022, 2045}) { // one of each kind
            double moved[2];
            for (int side = 0; side < 2; ++side) {
                LstmInputs<double> near(tasks, n, steps);
                near.own[at] += side ? -h : h;
                moved[side] = dot(run_lstm(near, tasks, n, steps, 1)[0], near.carry);
            }
            double slope_of = 0;
            for (int t = 0; t < tasks; ++t)
                slope_of += r[2][t * lstm_numbers + at];
            const double off = std::abs(slope_of - (moved[0] - moved[1]) / (2 * h));
            expect(off <= 1e-6 * n * tasks,
                   what + ": number " + std::to_string(at) + " off by " + std::to_string(off));
        }
    });
}

void check_all() {
    for (int stride = 1; stride <= 2; ++stride) {
        check_conv({1, 1, 1, 1, stride});
        check_conv({5, 3, 7, 6, stride});
        check_conv({13, 2, 4, 16, stride});
        check_conv({2, 16, 5, 17, stride});
        check_conv({3, 16, 14, 24, stride});  // tiles that the edge cuts
        check_conv({15, 16, 11, 24, stride}); // so many that 16 lanes take the large ones
        check_conv({1, 1, 1, 1, stride, 1});
        check_conv({13, 16, 4, 16, stride, 1});
        check_conv({2, 70, 10, 67, stride, 1}); // more than one sweep of channels and pixels
        check_conv({1, 1, 1, 1, stride, 5});
        check_conv({3, 3, 7, 6, stride, 5});
        check_conv({2, 2, 3, 17, stride, 9}); // larger than the image
    }
    check_conv({3, 2, 100, 3, 2}); // a chunk's operands one image at a time
    for (const bool given : {false, true}) {
        check_norm({1, 1, 2, true, 0.01, 1e-5}, given);
        check_norm({5, 6, 7, true, 0, 1e-5}, given);
        check_norm({4, 16, 5, true, 0.01, 1e-5}, given);
        check_norm({3, 5, 4, false, 1, 1e-5}, given);
        check_norm({2, 32, 3, false, 0.01, 1e-5}, given);
    }
    for (const bool each : {false, true})
        check_update(3, {{0, 0, 7}, {0, 7, 9}, {1, 9, 41}, {3, 41, 42}}, each);
    check_adam(10000); // more than one piece
    check_lstm(1, 1, 1);
    check_lstm(2, 51, 3);
}

} // namespace

int main() {
    check_all();
    return report();
}
