// The convolution by AMX, and by its emulation, against sums of doubles: of one part with operands
// that bfloat16 holds, of two with one operand that takes both.

#define MAMLPP_ISA amx_test
#include <numeric>

#include "../../csrc/cpu/convolve.h"
#include "testing.h"

namespace mamlpp {
#define MAMLPP_ROUNDED(name)                                                                       \
    namespace name {                                                                               \
    template <class T> const Winograd<T>& winograd();                                              \
    }
#ifdef MAMLPP_EMULATED_TILES
MAMLPP_ROUNDED(emulatedbf16)
MAMLPP_ROUNDED(emulatedbf16x3)
#endif
#ifdef MAMLPP_HAS_AMX
MAMLPP_ROUNDED(amxbf16)
MAMLPP_ROUNDED(amxbf16x3)
#endif

namespace {

using amx_test::each_row;
using testing::Exact;
using testing::expect;

struct Shape {
    int side, channels, filters, images, pairs;
    std::string name() const {
        return std::to_string(channels) + "x" + std::to_string(side) + "x" + std::to_string(side) +
               " by " + std::to_string(filters) + ", " + std::to_string(images) + " images, " +
               std::to_string(pairs) + " pairs";
    }
};

int padded_to_vectors(int n) { return (n + 15) / 16 * 16; }

// Multiples of 1/4 below 2, which one bfloat16 holds; `fine` ones differ from them by up to 1/128.
float value(uint32_t& seed, bool fine) {
    seed = seed * 1103515245 + 12345;
    const int bits = static_cast<int>(seed >> 16 & 0x7fff);
    return static_cast<float>(bits % 15 - 7) / 4 +
           (fine ? static_cast<float>(bits / 15 % 17 - 8) / 1024 : 0);
}

float* floats(const Exact& block) { return static_cast<float*>(block.data()); }
Exact block_of(ptrdiff_t count) { return Exact(static_cast<size_t>(count) * sizeof(float)); }

struct Problem {
    Shape shape;
    Conv<float> g;
    std::vector<std::vector<float>> x, w, dz; // of each pair, x and dz with their borders

    Problem(const Shape& s, bool fine_images, bool fine_filters)
        : shape(s), g{s.channels, padded_to_vectors(s.channels), s.side, 1,
                      s.filters,  padded_to_vectors(s.filters),  1} {
        uint32_t seed = 1;
        const auto image = [&](ptrdiff_t size, ptrdiff_t row, int pitch, int channels, bool fine) {
            std::vector<float> to(static_cast<size_t>(s.images * size));
            for (int i = 0; i < s.images; ++i)
                for (int y = 1; y <= s.side; ++y)
                    for (int at = 1; at <= s.side; ++at)
                        for (int c = 0; c < channels; ++c)
                            to[static_cast<size_t>(i * size + y * row + at * pitch + c)] =
                                value(seed, fine);
            return to;
        };
        for (int k = 0; k < s.pairs; ++k) {
            x.push_back(image(g.in_image(), g.in_row(), g.pitch_in, g.channels, fine_images));
            dz.push_back(image(g.dz_image(), g.dz_row(), g.pitch_out, g.filters, fine_filters));
            w.emplace_back(static_cast<size_t>(taps * g.channels * g.pitch_out));
            for (int row = 0; row < taps * g.channels; ++row)
                for (int f = 0; f < g.filters; ++f)
                    w[static_cast<size_t>(k)][static_cast<size_t>(row * g.pitch_out + f)] =
                        value(seed, fine_filters);
        }
    }
    double of(const std::vector<float>& from, ptrdiff_t at) const {
        return static_cast<double>(from[static_cast<size_t>(at)]);
    }
};

Exact packed(const Conv<float>& g, const std::vector<float>& w, const Winograd<float>& by) {
    Exact cells = block_of(by.operands_size(1, g.channels, g.pitch_out));
    by.pack(1, w.data(), g.channels, {0, g.channels}, g.pitch_out,
            static_cast<ptrdiff_t>(g.channels) * g.pitch_out, g.pitch_out, false, cells.data());
    return cells;
}

void check_values(const Problem& p, const Winograd<float>& by, const Tiles<float>& room,
                  const std::string& what) {
    const Conv<float>& g = p.g;
    std::vector<Exact> cells;
    Factors<float> factors[2];
    for (int k = 0; k < p.shape.pairs; ++k) {
        const size_t i = static_cast<size_t>(k);
        cells.push_back(packed(g, p.w[i], by));
        factors[k] = {p.x[i].data(), {nullptr, cells.back().data()}};
    }
    const int rows = p.shape.images * g.side;
    const Exact z = block_of(static_cast<ptrdiff_t>(rows) * g.side * g.pitch_out);
    std::vector<int> seen;
    const auto see = [&](int image, int y, const float*) { seen.push_back(image * g.side + y); };
    const EachRow<float> each = each_row<float>(see);
    // in two parts that end within an image, the later one first
    by.fwd(g, factors, p.shape.pairs, {rows / 2, rows}, room, floats(z), each);
    if (rows / 2)
        by.fwd(g, factors, p.shape.pairs, {0, rows / 2}, room, floats(z), each);
    std::sort(seen.begin(), seen.end());
    std::vector<int> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), 0);
    expect(seen == all, what + ": each row once");
    for (int row = 0; row < rows; ++row)
        for (int at = 0; at < g.side; ++at)
            for (int f = 0; f < g.filters; ++f) {
                double sum = 0;
                for (size_t k = 0; k < p.x.size(); ++k)
                    for (int t = 0; t < taps; ++t) {
                        const ptrdiff_t from = row / g.side * g.in_image() +
                                               (row % g.side + t / 3) * g.in_row() +
                                               static_cast<ptrdiff_t>(at + t % 3) * g.pitch_in;
                        for (int c = 0; c < g.channels; ++c)
                            sum += p.of(p.x[k], from + c) *
                                   p.of(p.w[k],
                                        (static_cast<ptrdiff_t>(t) * g.channels + c) * g.pitch_out +
                                            f);
                    }
                const ptrdiff_t pixel = static_cast<ptrdiff_t>(row) * g.side + at;
                if (!(std::abs(sum - static_cast<double>(floats(z)[pixel * g.pitch_out + f])) <
                      2e-3))
                    return expect(false, what + ": values of row " + std::to_string(row));
            }
}

// What is infinite in one image is in no value of the others.
void check_images_apart(Problem p, const Winograd<float>& by, const Tiles<float>& room,
                        const std::string& what) {
    const Conv<float>& g = p.g;
    const int bad = p.shape.images / 2, rows = p.shape.images * g.side;
    for (int y : {1, g.side})
        for (int at : {1, g.side})
            for (int c = 0; c < g.channels; ++c)
                p.x[0][static_cast<size_t>(bad * g.in_image() + y * g.in_row() + at * g.pitch_in +
                                           c)] = INFINITY;
    const Exact cells = packed(g, p.w[0], by);
    const Factors<float> factors{p.x[0].data(), {nullptr, cells.data()}};
    const Exact z = block_of(static_cast<ptrdiff_t>(rows) * g.side * g.pitch_out);
    by.fwd(g, &factors, 1, {0, rows}, room, floats(z),
           each_row<float>([](int, int, const float*) {}));
    for (int row = 0; row < rows; ++row)
        for (int i = 0; row / g.side != bad && i < g.side * g.pitch_out; ++i)
            if (!std::isfinite(floats(z)[row * g.side * g.pitch_out + i]))
                return expect(false, what + ": an image has another's values");
}

void check_gradient(const Problem& p, const Winograd<float>& by, const Tiles<float>& room,
                    const std::string& what) {
    const Conv<float>& g = p.g;
    Pair<float> pairs[2];
    for (size_t k = 0; k < p.x.size(); ++k)
        pairs[k] = {p.x[k].data(), p.dz[k].data()};
    const int rows = p.shape.images * g.side;
    const Exact sum = block_of(static_cast<ptrdiff_t>(taps) * g.pitch_out * g.pitch_in);
    const bool parts = rows > 1;
    by.wgrad(g, pairs, p.shape.pairs, {0, parts ? rows / 2 : rows}, room, floats(sum), true);
    if (parts)
        by.wgrad(g, pairs, p.shape.pairs, {rows / 2, rows}, room, floats(sum), false);
    for (int t = 0; t < taps; ++t)
        for (int f = 0; f < g.filters; ++f)
            for (int c = 0; c < g.channels; ++c) {
                double expected = 0;
                for (size_t k = 0; k < p.x.size(); ++k)
                    for (int row = 0; row < rows; ++row)
                        for (int at = 0; at < g.side; ++at) {
                            const int image = row / g.side, y = row % g.side;
                            const double of_x = p.of(
                                p.x[k], image * g.in_image() + (y + t / 3) * g.in_row() +
                                            static_cast<ptrdiff_t>(at + t % 3) * g.pitch_in + c);
                            const double of_dz =
                                p.of(p.dz[k], image * g.dz_image() + (y + 1) * g.dz_row() +
                                                  static_cast<ptrdiff_t>(at + 1) * g.pitch_out + f);
                            expected += of_x * of_dz;
                        }
                const ptrdiff_t at = (static_cast<ptrdiff_t>(t) * g.pitch_out + f) * g.pitch_in + c;
                if (!(std::abs(expected - static_cast<double>(floats(sum)[at])) < 2e-3))
                    return expect(false, what + ": gradient of tap " + std::to_string(t));
            }
}

void check(const Problem& p, const Winograd<float>& by, const std::string& what) {
    const StripSizes strip = by.strip(p.g);
    const ptrdiff_t larger = strip.operands > strip.products ? strip.operands : strip.products;
    const Exact x0 = block_of(strip.operands), x1 = block_of(strip.operands);
    const Exact z = block_of(larger), dz1 = block_of(strip.operands);
    const Tiles<float> room{{x0.data(), x1.data()}, {z.data(), dz1.data()}, floats(z)};
    expect(by.most == 1, what + ": takes the taps as they are");
    check_values(p, by, room, what);
    check_images_apart(p, by, room, what);
    check_gradient(p, by, room, what);
}

} // namespace
} // namespace mamlpp

int main() {
    using namespace mamlpp;
    const Shape shapes[] = {{14, 64, 64, 1, 2}, {6, 16, 16, 1, 1}, {5, 20, 40, 3, 2},
                            {42, 48, 16, 1, 1}, {3, 64, 64, 5, 1}, {1, 80, 16, 2, 2},
                            {7, 112, 33, 3, 2}, {33, 17, 5, 1, 1}};
    for (const Shape& shape : shapes) {
        const Problem coarse(shape, false, false), images(shape, true, false),
            filters(shape, false, true);
        const auto by_parts = [&](const Winograd<float>& one, const Winograd<float>& two,
                                  const std::string& name) {
            const std::string what = name + ", " + shape.name();
            check(coarse, one, what + ", one part");
            check(coarse, two, what + ", two parts");
            check(images, two, what + ", fine images");
            check(filters, two, what + ", fine filters");
        };
        (void)by_parts;
#ifdef MAMLPP_EMULATED_TILES
        if (cpu_features().avx512bf16)
            by_parts(emulatedbf16::winograd<float>(), emulatedbf16x3::winograd<float>(),
                     "emulated");
#endif
#ifdef MAMLPP_HAS_AMX
        if (isa() == Isa::amx)
            by_parts(amxbf16::winograd<float>(), amxbf16x3::winograd<float>(), "AMX");
#endif
    }
    if (!cpu_features().avx512bf16)
        std::printf("no AVX512-BF16 here: nothing run\n");
    return testing::report();
}
