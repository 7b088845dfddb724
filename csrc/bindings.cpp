// The Python module kernels._native. Arguments are checked in kernels/native/; here pointers are
// trusted. Addresses are those of contiguous arrays, 0 for one that is not wanted.
#include "bindings.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

using namespace mamlpp;

namespace {

template <class T> const PassOps<T>& ops_of(const Net& net) {
    const PassOps<T>* const ops = pass_ops<T>(net.precision);
    if (!ops)
        throw std::invalid_argument(
            "passes: this instruction set has no products of that precision");
    return *ops;
}

// What a block was written for. Python holds blocks between calls, beside the sizes that it gives
// to each: the two must agree, or a pass would read past a block's end, or another's values.
struct Made {
    Net net;
    int n;
    size_t type; // bytes of a value
    Isa isa;     // whose vectors it is made of

    bool operator==(const Made& other) const {
        const Net &a = net, &b = other.net;
        return a.channels == b.channels && a.side == b.side && a.filters == b.filters &&
               a.stages == b.stages && a.ways == b.ways && a.pool == b.pool && a.slope == b.slope &&
               a.eps == b.eps && a.precision == b.precision && n == other.n && type == other.type;
    }
    std::string text() const {
        std::string sizes;
        for (const int size : {net.channels, net.side, net.filters, net.stages, net.ways})
            sizes += std::to_string(size) + " ";
        return std::to_string(n) + " images of float" + std::to_string(8 * type) + ", sizes " +
               sizes + (net.pool ? "pool" : "stride");
    }
};

// The images of one task, or what a pass over them kept.
struct Held {
    Held(size_t bytes, const Made& m, uint64_t of, uintptr_t at)
        : block(bytes), made(m), images(of ? of : next()), theta(at) {}
    static uint64_t next() {
        static std::atomic<uint64_t> last{0};
        return ++last;
    }
    const Block block;
    const Made made;
    const uint64_t images; // their number, which no others have
    const uintptr_t theta; // of a pass: the task's parameters; of images 0
    std::mutex writing;    // of a pullback, which works in what the pass kept: one at a time
};
using Blocks = std::vector<std::shared_ptr<Held>>;

const char* name(Isa isa) {
    constexpr const char* names[] = {"portable", "neon", "avx2", "avx512", "avx512bf16", "amx"};
    return names[static_cast<int>(isa)];
}

// Throws unless a block is what a call takes it for. `from` and `to`: the calls of which the second
// reads what the first wrote.
void check_held(const std::shared_ptr<Held>& held, const Made& made, bool of_pass, const char* from,
                const char* to) {
    if (!held || (held->theta != 0) != of_pass)
        throw std::invalid_argument("native passes: " + std::string(to) + " takes the blocks of " +
                                    from + ", got others; hand on what it gave as it is");
    if (held->made.isa != made.isa)
        throw std::invalid_argument(
            std::string("native passes: the instruction set changed from ") + name(held->made.isa) +
            " to " + name(made.isa) + " between " + from + " and " + to +
            "; call limit_isa before or after both");
    if (!(held->made == made))
        throw std::invalid_argument("native passes: " + std::string(from) + " was given " +
                                    held->made.text() + ", " + to + " " + made.text() +
                                    "; they must be of one network and the same images");
}

void check_images(const Blocks& images, const Made& made, const char* to) {
    for (const auto& each : images)
        check_held(each, made, false, "prepare", to);
}

// x [tasks][n][side][side][channels] → one prepared block a task
template <class T> Blocks prepare(const Net& net, int tasks, int n, int threads, uintptr_t x) {
    const PassOps<T>& ops = ops_of<T>(net);
    const Made made{net, n, sizeof(T), isa()};
    Blocks images;
    for (int t = 0; t < tasks; ++t)
        images.push_back(std::make_shared<Held>(ops.images_bytes(net, n), made, 0, 0));
    Room room(tasks, threads, ops.work_bytes(net, n), ops.scratch_bytes(net, n));
    const ptrdiff_t size = static_cast<ptrdiff_t>(n) * net.side * net.side * net.channels;
    for_tasks(tasks, threads, [&](int t, Team& team, int slot) {
        ops.prepare(net, n, at<const T>(x, t * size), images[t]->block.data(), room.work(slot),
                    room.scratch(team), team);
    });
    return images;
}

void check_labels(const int64_t* labels, ptrdiff_t count, int ways) {
    for (ptrdiff_t i = 0; i < count; ++i)
        if (labels[i] < 0 || labels[i] >= ways)
            throw std::invalid_argument("labels: " + std::to_string(labels[i]) + " is not in 0.." +
                                        std::to_string(ways - 1) +
                                        "; number the classes of a task from 0");
}

// Of passes that work in more than this there is one at once for so many threads: they need its
// memory once, and its stages are long enough for them to share.
constexpr size_t large_pass = size_t{16} << 20;
constexpr int threads_of_large = 16;

// Strides are in elements, 0 for an operand that the tasks share. Returns what was kept.
template <class T>
Blocks pass(const Net& net, int n, int threads, const Blocks& images, uintptr_t labels,
            uintptr_t theta, ptrdiff_t theta_stride, ptrdiff_t parameters, uintptr_t row,
            ptrdiff_t row_stride, uintptr_t given_mean, uintptr_t given_var, ptrdiff_t given_stride,
            uintptr_t loss, uintptr_t logits, uintptr_t gradient, uintptr_t norm_gradient,
            uintptr_t mean, uintptr_t var, bool keep, uintptr_t features, ptrdiff_t width) {
    const PassOps<T>& ops = ops_of<T>(net);
    const int tasks = static_cast<int>(images.size()), stats = net.stages * net.filters;
    const Made made{net, n, sizeof(T), isa()};
    check_images(images, made, "run");
    const auto theta_of = [&](int t) { return at<const T>(theta, t * theta_stride); };
    if (gradient)
        check_labels(at<const int64_t>(labels, 0), static_cast<ptrdiff_t>(tasks) * n, net.ways);
    const size_t bytes = ops.pass_bytes(net, n, keep);
    const int at_once =
        bytes > large_pass ? (threads + threads_of_large - 1) / threads_of_large : threads;
    Room room(std::min(tasks, at_once), threads, ops.work_bytes(net, n), ops.scratch_bytes(net, n),
              keep ? 0 : bytes);
    Blocks kept;
    for (int t = 0; keep && t < tasks; ++t)
        kept.push_back(std::make_shared<Held>(bytes, made, images[t]->images,
                                              reinterpret_cast<uintptr_t>(theta_of(t))));
    const auto run = [&](int t, Team& team, int slot) {
        const PassTask<T> task{images[t]->block.data(),
                               at<const int64_t>(labels, static_cast<ptrdiff_t>(t) * n),
                               theta_of(t),
                               at<const T>(row, t * row_stride),
                               at<const T>(given_mean, t * given_stride),
                               at<const T>(given_var, t * given_stride),
                               at<T>(loss, t),
                               at<T>(logits, static_cast<ptrdiff_t>(t) * n * net.ways),
                               at<T>(gradient, t * parameters),
                               at<T>(norm_gradient, static_cast<ptrdiff_t>(t) * 2 * stats),
                               at<T>(mean, static_cast<ptrdiff_t>(t) * stats),
                               at<T>(var, static_cast<ptrdiff_t>(t) * stats),
                               keep ? kept[t]->block.data() : room.left(slot),
                               keep,
                               at<T>(features, static_cast<ptrdiff_t>(t) * n * width)};
        ops.pass(net, n, task, room.work(slot), room.scratch(team), team);
    };
    for_tasks(tasks, threads, run, at_once);
    return kept;
}

// Throws unless `kept` is of a pass over these images with this theta. `from` and `to` as above.
template <class T, class F>
void check_kept(const Blocks& images, const Blocks& kept, const Made& made, F theta_of,
                const char* from, const char* to) {
    for (const auto& each : kept)
        check_held(each, made, true, from, to);
    check_images(images, made, to);
    bool alike = kept.size() == images.size();
    for (size_t t = 0; alike && t < images.size(); ++t)
        alike = kept[t]->images == images[t]->images &&
                kept[t]->theta == reinterpret_cast<uintptr_t>(theta_of(static_cast<int>(t)));
    if (!alike)
        throw std::invalid_argument("native passes: " + std::string(to) +
                                    " was given other images or another theta than the pass that "
                                    "kept; hand on what " +
                                    from + " kept as it is");
}

template <class T>
void pullback(const Net& net, int n, int threads, const Blocks& images, const Blocks& kept,
              uintptr_t theta, ptrdiff_t theta_stride, ptrdiff_t parameters, uintptr_t d_features,
              ptrdiff_t width, uintptr_t gradient, uintptr_t norm_gradient) {
    const PassOps<T>& ops = ops_of<T>(net);
    const int tasks = static_cast<int>(images.size()), affine = 2 * net.stages * net.filters;
    const auto theta_of = [&](int t) { return at<const T>(theta, t * theta_stride); };
    check_kept<T>(images, kept, {net, n, sizeof(T), isa()}, theta_of, "embed", "pullback");
    Room room(tasks, threads, ops.work_bytes(net, n), ops.scratch_bytes(net, n));
    for_tasks(tasks, threads, [&](int t, Team& team, int slot) {
        const std::lock_guard<std::mutex> alone(kept[t]->writing);
        const PullbackTask<T> task{images[t]->block.data(),
                                   theta_of(t),
                                   at<const T>(d_features, static_cast<ptrdiff_t>(t) * n * width),
                                   kept[t]->block.data(),
                                   at<T>(gradient, t * parameters),
                                   at<T>(norm_gradient, static_cast<ptrdiff_t>(t) * affine)};
        ops.pullback(net, n, task, room.work(slot), room.scratch(team), team);
    });
}

template <class T>
void tangent(const Net& net, int n, int threads, const Blocks& images, const Blocks& kept,
             uintptr_t theta, ptrdiff_t theta_stride, ptrdiff_t parameters, uintptr_t direction,
             uintptr_t product, uintptr_t norm_product) {
    const PassOps<T>& ops = ops_of<T>(net);
    const int tasks = static_cast<int>(images.size()), width = 2 * net.stages * net.filters;
    const auto theta_of = [&](int t) { return at<const T>(theta, t * theta_stride); };
    check_kept<T>(images, kept, {net, n, sizeof(T), isa()}, theta_of, "run", "tangent");
    Room room(tasks, threads, ops.tangent_bytes(net, n), ops.scratch_bytes(net, n));
    for_tasks(tasks, threads, [&](int t, Team& team, int slot) {
        const TangentTask<T> task{images[t]->block.data(),
                                  theta_of(t),
                                  at<const T>(direction, t * parameters),
                                  kept[t]->block.data(),
                                  at<T>(product, t * parameters),
                                  at<T>(norm_product, static_cast<ptrdiff_t>(t) * width)};
        ops.tangent(net, n, task, room.work(slot), room.scratch(team), team);
    });
}

template <class T> py::tuple products(const Net& net, int n) {
    const Products found = ops_of<T>(net).products(net, n);
    return py::make_tuple(found.forward, found.backward, found.tangent);
}

template <class T> void bind(py::module_ m) {
    m.def("products", &products<T>);
    m.def("prepare", &prepare<T>);
    m.def("pass_", &pass<T>);
    m.def("tangent", &tangent<T>);
    m.def("pullback", &pullback<T>);
    bind_ops<T>(m);
}

py::dict features() {
    const CpuFeatures& f = cpu_features();
    py::dict d;
    d["neon"] = f.neon;
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
    m.def("cpu_features", &features,
          "Instruction sets that processor and operating system grant: name -> bool.");
    py::enum_<Isa>(m, "Isa")
        .value("portable", Isa::portable)
        .value("neon", Isa::neon)
        .value("avx2", Isa::avx2)
        .value("avx512", Isa::avx512)
        .value("avx512bf16", Isa::avx512bf16)
        .value("amx", Isa::amx);
    py::enum_<Precision>(m, "Precision")
        .value("fp32", Precision::fp32)
        .value("bf16x3", Precision::bf16x3)
        .value("bf16", Precision::bf16);
    m.def(
        "has_passes", [](Precision precision) { return pass_ops<float>(precision) != nullptr; },
        "Whether the instruction set in use takes products of float32 data in this precision.");
    m.def("isa", &isa, "Instruction set of the kernels in use.");
    m.def("limit_isa", &limit_isa, "Use none beyond this one; returns the one in use now.");
    m.def("release_blocks", &release_blocks,
          "Give the memory that is kept for reuse back to the system; returns its bytes.");
    py::class_<Held, std::shared_ptr<Held>>(m, "Block")
        .def_property_readonly("bytes", [](const Held& held) { return held.block.bytes(); });
    py::class_<Net>(m, "Net").def(
        py::init([](int channels, int side, int filters, int stages, int ways, bool pool,
                    double slope, double eps, Precision precision) {
            return Net{channels, side, filters, stages, ways, pool, slope, eps, precision};
        }));
    bind_shapes(m);
    bind<float>(m.def_submodule("float32"));
    bind<double>(m.def_submodule("float64"));
}
