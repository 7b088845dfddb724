// The kernels without Python, for the sanitizers and for other compilers: whole passes on every
// instruction set that this machine grants, alone and in teams, on nets of awkward sizes. A tangent
// is checked against differences of gradients, a gradient against differences of losses, and the
// sets against each other.
#include "testing.h"

using namespace mamlpp;
using namespace mamlpp::testing;

namespace mamlpp {
void emulate_tiles(bool on);
}

namespace {

struct Case {
    Net net;
    int n, tasks;
    bool given; // statistics
    std::string name() const {
        return std::to_string(net.channels) + "x" + std::to_string(net.side) + "x" +
               std::to_string(net.side) + (net.pool ? " pool " : " stride ") +
               std::to_string(net.stages) + "x" + std::to_string(net.filters) + " n" +
               std::to_string(n) + " t" + std::to_string(tasks) + (given ? " given" : "");
    }
    int stats() const { return net.stages * net.filters; }
    int features() const { // of an image
        int side = net.side;
        for (int s = 0; s < net.stages; ++s)
            side = net.pool ? side / 2 : (side + 1) / 2;
        return net.filters * (net.pool ? side * side : 1);
    }
    ptrdiff_t parameters() const {
        ptrdiff_t count = 0;
        int channels = net.channels;
        for (int s = 0; s < net.stages; ++s, channels = net.filters)
            count += static_cast<ptrdiff_t>(net.filters) * 9 * channels;
        return count + static_cast<ptrdiff_t>(net.ways) * (features() + 1);
    }
};

template <class T> struct Inputs {
    std::vector<T> x, theta, direction, row, mean, var;
    std::vector<int64_t> labels;

    Inputs(const Case& c, double step) {
        Random random(c.net.side * 1000 + c.net.filters);
        const ptrdiff_t image = c.net.side * c.net.side * c.net.channels;
        x = random.values<T>(c.tasks * c.n * image, 1, 0.5);
        theta = random.values<T>(c.tasks * c.parameters(), 0.4);
        direction = random.values<T>(c.tasks * c.parameters(), 0.5);
        row = random.values<T>(2 * c.stats(), 0.8, 0.3);
        row[0] = 0; // no gain: all of a window are equal
        if (c.net.filters > 2)
            row[2] = static_cast<T>(-0.7);
        mean = random.values<T>(c.given ? c.stats() : 0, 0.3);
        var = random.values<T>(c.given ? c.stats() : 0, 0.4, 0.9);
        labels.resize(static_cast<size_t>(c.tasks * c.n));
        for (size_t i = 0; i < labels.size(); ++i)
            labels[i] = static_cast<int64_t>(i) % c.net.ways;
        for (size_t i = 0; i < theta.size(); ++i)
            theta[i] += static_cast<T>(step) * direction[i];
    }
};

template <class T> struct Outputs {
    std::vector<T> loss, logits, gradient, norm_gradient, mean, var, product, norm_product;

    explicit Outputs(const Case& c)
        : loss(unwritten<T>(c.tasks)), logits(unwritten<T>(c.tasks * c.n * c.net.ways)),
          gradient(unwritten<T>(c.tasks * c.parameters())),
          norm_gradient(unwritten<T>(c.tasks * 2 * c.stats())),
          mean(unwritten<T>(c.tasks * c.stats())), var(mean), product(gradient),
          norm_product(norm_gradient) {}

    std::vector<const std::vector<T>*> all() const {
        return {&loss, &logits, &gradient, &norm_gradient, &mean, &var, &product, &norm_product};
    }
};

constexpr const char* output_names[] = {"loss", "logits", "gradient", "norm_gradient",
                                        "mean", "var",    "product",  "norm_product"};

// A pass of every task: forward alone, or with its gradient, or also kept for a tangent.
enum class Extent { forward, gradient, kept };

template <class T>
void pass(const PassOps<T>& ops, const Case& c, const Inputs<T>& in, int threads, Extent extent,
          const std::vector<Exact>& images, const std::vector<Exact>& kept,
          const std::vector<Exact>& scratch, Outputs<T>& out) {
    const Net& net = c.net;
    const std::vector<Exact> work = exact_blocks(threads, ops.work_bytes(net, c.n));
    const bool keep = extent == Extent::kept, backward = extent != Extent::forward;
    for_tasks(c.tasks, threads, [&](int t, Team& team, int slot) {
        PassTask<T> task{};
        task.images = images[t].data();
        task.theta = in.theta.data() + t * c.parameters();
        task.row = in.row.data();
        task.given_mean = c.given ? in.mean.data() : nullptr;
        task.given_var = c.given ? in.var.data() : nullptr;
        task.logits = out.logits.data() + t * c.n * net.ways;
        task.mean = out.mean.data() + t * c.stats();
        task.var = out.var.data() + t * c.stats();
        if (backward) {
            task.labels = in.labels.data() + t * c.n;
            task.loss = out.loss.data() + t;
            task.gradient = out.gradient.data() + t * c.parameters();
            task.norm_gradient = out.norm_gradient.data() + t * 2 * c.stats();
        }
        task.kept = kept[keep ? t : slot].data();
        task.keep = keep;
        ops.pass(net, c.n, task, work[slot].data(), scratch[slot].data(), team);
    });
}

// What the loss's gradient is in the features: residual·w.
template <class T>
std::vector<T> loss_in_features(const Case& c, const Inputs<T>& in, const Outputs<T>& out) {
    const int ways = c.net.ways, d = c.features();
    std::vector<T> dh(static_cast<size_t>(c.tasks * c.n * d));
    for (int i = 0; i < c.tasks * c.n; ++i) {
        const T* logits = out.logits.data() + static_cast<ptrdiff_t>(i) * ways;
        const T* w = in.theta.data() + (i / c.n + 1) * c.parameters() - ways * (d + 1);
        double total = 0;
        for (int k = 0; k < ways; ++k)
            total += std::exp(static_cast<double>(logits[k]));
        for (int k = 0; k < ways; ++k) {
            const double p = std::exp(static_cast<double>(logits[k])) / total;
            const double residual = (p - (in.labels[static_cast<size_t>(i)] == k)) / c.n;
            for (int j = 0; j < d; ++j)
                dh[static_cast<size_t>(i * d + j)] +=
                    static_cast<T>(residual * static_cast<double>(w[k * d + j]));
        }
    }
    return dh;
}

// A pass that stops at the features, and back from them: the body's gradient as by the loss, the
// classifier's 0.
template <class T>
void check_features(const PassOps<T>& ops, const Case& c, const Inputs<T>& in, int threads,
                    const std::vector<Exact>& images, const std::vector<Exact>& scratch,
                    const Outputs<T>& out) {
    const ptrdiff_t parameters = c.parameters(), d = c.features(), head = c.net.ways * (d + 1);
    const std::vector<Exact> kept = exact_blocks(c.tasks, ops.pass_bytes(c.net, c.n, true));
    const std::vector<Exact> work = exact_blocks(threads, ops.work_bytes(c.net, c.n));
    const std::vector<T> dh = loss_in_features(c, in, out);
    std::vector<T> h = unwritten<T>(c.tasks * c.n * d);
    Outputs<T> ours(c);
    for_tasks(c.tasks, threads, [&](int t, Team& team, int slot) {
        PassTask<T> task{};
        task.images = images[t].data();
        task.theta = in.theta.data() + t * parameters;
        task.row = in.row.data();
        task.given_mean = c.given ? in.mean.data() : nullptr;
        task.given_var = c.given ? in.var.data() : nullptr;
        task.mean = ours.mean.data() + t * c.stats();
        task.var = ours.var.data() + t * c.stats();
        task.kept = kept[t].data();
        task.keep = true;
        task.features = h.data() + t * c.n * d;
        ops.pass(c.net, c.n, task, work[slot].data(), scratch[slot].data(), team);
        const PullbackTask<T> back{images[t].data(),
                                   task.theta,
                                   dh.data() + t * c.n * d,
                                   kept[t].data(),
                                   ours.gradient.data() + t * parameters,
                                   ours.norm_gradient.data() + t * 2 * c.stats()};
        ops.pullback(c.net, c.n, back, work[slot].data(), scratch[slot].data(), team);
    });
    std::vector<T> expected = out.gradient;
    for (int t = 1; t <= c.tasks; ++t)
        std::fill_n(expected.data() + t * parameters - head, head, static_cast<T>(0));
    const double tolerance = sizeof(T) == sizeof(double)          ? 1e-10
                             : c.net.precision == Precision::fp32 ? 1e-3
                                                                  : 2e-2;
    expect(ours.mean == out.mean && ours.var == out.var, c.name() + ": moments of features");
    const double e =
        std::max(error(ours.gradient, expected), error(ours.norm_gradient, out.norm_gradient));
    expect(e <= tolerance, c.name() + ": pullback off by " + std::to_string(e));
}

// A pass and its tangent; what a pass does not keep or does not compute changes nothing else.
template <class T> Outputs<T> run(const Case& c, const Inputs<T>& in, int threads) {
    const PassOps<T>& ops = *pass_ops<T>(c.net.precision);
    const Net& net = c.net;
    const ptrdiff_t parameters = c.parameters(), image = net.side * net.side * net.channels;
    const std::vector<Exact> images = exact_blocks(c.tasks, ops.images_bytes(net, c.n));
    const std::vector<Exact> kept = exact_blocks(c.tasks, ops.pass_bytes(net, c.n, true));
    const std::vector<Exact> lost = exact_blocks(threads, ops.pass_bytes(net, c.n, false));
    const std::vector<Exact> work = exact_blocks(threads, ops.work_bytes(net, c.n));
    const std::vector<Exact> dots = exact_blocks(threads, ops.tangent_bytes(net, c.n));
    const std::vector<Exact> scratch =
        exact_blocks(threads, ops.scratch_bytes(net, c.n) * static_cast<size_t>(threads));

    for_tasks(c.tasks, threads, [&](int t, Team& team, int slot) {
        ops.prepare(net, c.n, in.x.data() + t * c.n * image, images[t].data(), work[slot].data(),
                    scratch[slot].data(), team);
    });
    Outputs<T> out(c), forward(c), gradient(c);
    pass(ops, c, in, threads, Extent::forward, images, lost, scratch, forward);
    pass(ops, c, in, threads, Extent::gradient, images, lost, scratch, gradient);
    pass(ops, c, in, threads, Extent::kept, images, kept, scratch, out);
    expect(forward.logits == out.logits && forward.mean == out.mean && forward.var == out.var,
           c.name() + ": a forward pass alone");
    expect(gradient.gradient == out.gradient && gradient.norm_gradient == out.norm_gradient,
           c.name() + ": a pass that is not kept");
    for_tasks(c.tasks, threads, [&](int t, Team& team, int slot) {
        const TangentTask<T> task{images[t].data(),
                                  in.theta.data() + t * parameters,
                                  in.direction.data() + t * parameters,
                                  kept[t].data(),
                                  out.product.data() + t * parameters,
                                  out.norm_product.data() + t * 2 * c.stats()};
        ops.tangent(net, c.n, task, dots[slot].data(), scratch[slot].data(), team);
    });
    check_features(ops, c, in, threads, images, scratch, out);
    return out;
}

template <class T>
void compare(const Outputs<T>& a, const Outputs<T>& b, double tolerance, const std::string& what) {
    for (size_t i = 0; i < a.all().size(); ++i) {
        const double e = error(*a.all()[i], *b.all()[i]);
        expect(e <= tolerance, what + ": " + output_names[i] + " off by " + std::to_string(e));
    }
}

// Central differences along the direction.
void differences(const Case& c, const Outputs<double>& out, const std::string& what) {
    const double h = 1e-6, tolerance = 1e-6;
    const Outputs<double> above = run(c, Inputs<double>(c, h), 1),
                          below = run(c, Inputs<double>(c, -h), 1);
    const Inputs<double> in(c, 0);
    std::vector<double> along(out.loss.size(), 0.0);
    const size_t parameters = in.theta.size() / along.size();
    for (size_t i = 0; i < in.theta.size(); ++i)
        along[i / parameters] += out.gradient[i] * in.direction[i];
    const std::vector<double> ours[] = {along, out.product, out.norm_product};
    const std::vector<double> numeric[] = {slope(above.loss, below.loss, h),
                                           slope(above.gradient, below.gradient, h),
                                           slope(above.norm_gradient, below.norm_gradient, h)};
    const char* const names[] = {"loss", "gradient", "norm_gradient"};
    for (int i = 0; i < 3; ++i) {
        const double e = error(ours[i], numeric[i]);
        expect(e <= tolerance,
               what + ": differences of " + names[i] + " off by " + std::to_string(e));
    }
}

// f(outputs, what) of the instruction sets; of each, any number of threads gives the same bits.
template <class T, class F> void on_every_isa(const Case& c, F f) {
    const Inputs<T> in(c, 0);
    testing::on_every_isa([&](const std::string& isa) {
        const std::string what = c.name() + (sizeof(T) == 8 ? " double " : " float ") + isa;
        const Outputs<T> out = run(c, in, 1);
        for (int threads : {2, 3, 5})
            compare(run(c, in, threads), out, 0,
                    what + ", " + std::to_string(threads) + " threads");
        f(out, what);
    });
}

void check(const Case& c) {
    std::printf("%s\n", c.name().c_str());
    std::fflush(stdout);
    std::vector<Outputs<double>> exact; // of the portable set
    on_every_isa<double>(c, [&](const Outputs<double>& out, const std::string& what) {
        if (exact.empty())
            exact.push_back(out);
        compare(out, exact[0], 1e-10, what + " and portable");
        differences(c, out, what);
    });
    Budget budget;
    on_every_isa<float>(c, [&](const Outputs<float>& out, const std::string& what) {
        for (size_t i = 0; i < out.all().size(); ++i)
            budget.expect_within(i, *out.all()[i], *exact[0].all()[i],
                                 what + ": " + output_names[i]);
    });
}

// By bfloat16: any number of threads gives the same bits, AMX those of its emulation, and two parts
// what float32 does. What one part gives the tiles is for amx_test.cpp: they round other operands
// than the vectors, which then choose other winners.
void check_bf16([[maybe_unused]] Case c) {
#ifdef MAMLPP_EMULATED_TILES
    limit_isa(Isa::avx512bf16);
    const Inputs<float> in(c, 0);
    const Outputs<float> exact = run(c, in, 1);
    for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
        const bool rounded = precision == Precision::bf16;
        const std::string what = c.name() + (rounded ? " bf16" : " bf16x3");
        c.net.precision = precision;
        const Outputs<float> vectors = run(c, in, 1);
        compare(run(c, in, 3), vectors, 0, what + ", 3 threads");
#ifndef __SANITIZE_THREAD__ // slow under it, and no other threads than the vectors have
        emulate_tiles(true);
        const Outputs<float> tiles = run(c, in, 1);
        compare(run(c, in, 3), tiles, 0, what + ", tiles, 3 threads");
        emulate_tiles(false);
        if (limit_isa(Isa::amx) == Isa::amx)
            compare(run(c, in, 1), tiles, 0, what + ", tiles and AMX");
        limit_isa(Isa::avx512bf16);
        if (!rounded)
            compare(tiles, exact, 1e-3, what + ", tiles and fp32");
#endif
        if (!rounded)
            compare(vectors, exact, 1e-3, what + " and fp32");
    }
    limit_isa(Isa::amx);
#endif
}

// Callers of several threads at once; one of them has the pool, the others work alone.
void concurrent_callers(const Case& c) {
    const Inputs<float> in(c, 0);
    const Outputs<float> expected = run(c, in, 1);
    std::vector<std::thread> callers;
    std::vector<Outputs<float>> results(3, Outputs<float>(c));
    for (size_t i = 0; i < results.size(); ++i)
        callers.emplace_back([&, i] {
            for (int repeat = 0; repeat < 5; ++repeat)
                results[i] = run(c, in, 3);
        });
    for (std::thread& caller : callers)
        caller.join();
    for (const Outputs<float>& result : results)
        compare(result, expected, 0, "concurrent callers");
}

void blocks_are_reused() {
    release_blocks();
    std::vector<std::thread> users;
    for (int i = 0; i < 3; ++i)
        users.emplace_back([] {
            for (size_t bytes = 1; bytes < (size_t{8} << 20); bytes *= 3) {
                const Block block(bytes);
                static_cast<char*>(block.data())[block.bytes() - 1] = 1;
            }
        });
    for (std::thread& user : users)
        user.join();
    release_blocks();
    void* const first = Block(100).data();
    expect(Block(200).data() == first, "a block of the same size is reused");
    expect(release_blocks() > 0 && release_blocks() == 0, "release_blocks gives everything back");
}

} // namespace

int main() {
    const auto net = [](int channels, int side, int filters, int stages, bool pool,
                        double leak = 0.01) {
        return Net{channels, side, filters, stages, 3, pool, leak, 1e-5};
    };
    const Case cases[] = {
        {net(3, 21, 6, 3, true), 5, 2, false},
        {net(1, 18, 16, 3, true, 0), 4, 1, true}, // Winograd's on an odd side
        {net(2, 13, 20, 2, true, 1), 9, 1, false},
        {net(1, 2, 1, 1, true), 1, 3, false}, // the smallest
        {net(4, 5, 5, 2, true), 3, 4, true},
        {net(3, 13, 17, 3, false), 7, 2, false},
        {net(1, 6, 3, 2, false, 0), 5, 3, true},
        {net(1, 1, 1, 1, false), 2, 1, false},
        {net(16, 7, 5, 2, false), 6, 1, false},     // whole vectors of image channels
        {net(1, 5, 4, 16, false), 4, 1, false},     // the most stages
        {net(3, 100, 3, 2, false, 1), 3, 1, false}, // a chunk's operands one image at a time
    };
    const Case wide[] = {
        // tiles in rows and sums of more than one, and what is left of them
        {net(1, 20, 48, 2, true), 3, 1, false},
        {net(2, 14, 33, 2, true), 2, 2, true},   // Winograd's of 4×4 for gradients and tangents
        {net(1, 14, 17, 2, true), 32, 1, false}, // the same by 16 lanes
        {net(1, 13, 80, 2, true), 2, 1, false},
    };
    for (const Case& c : cases)
        check(c);
    for (const Case& c : wide)
        check(c);
    if (cpu_features().avx512bf16) {
        for (const Case& c : cases)
            check_bf16(c);
        for (const Case& c : wide)
            check_bf16(c);
    } else
        std::printf("no AVX512-BF16 here: bf16 not run\n");
    concurrent_callers(cases[0]);
    blocks_are_reused();
    return report();
}
