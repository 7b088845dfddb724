// The first stage by AMX, and by its emulation, against sums of doubles.

#define MAMLPP_ISA amx_stem_test
#include "../../csrc/cpu/cells.h"
#include "testing.h"

namespace mamlpp {
namespace amxbf16x3 {
const RoundedStem<float>& stem_table();
}
namespace emulatedbf16x3 {
const RoundedStem<float>& stem_table();
}

namespace {

using testing::expect;
using testing::unwritten;

constexpr int lanes = 16;

struct Shape {
    int side, channels, filters;
    std::string name() const {
        return std::to_string(channels) + "x" + std::to_string(side) + "x" + std::to_string(side) +
               " by " + std::to_string(filters);
    }
};

// A problem, and what is right for one window and filter of it.
struct Problem {
    int side, channels, filters, pooled, pitch;
    std::vector<float> planes, w, gain, centre, rstd, values; // values: of a gradient, [windows]

    explicit Problem(const Shape& s)
        : side(s.side), channels(s.channels), filters(s.filters), pooled(s.side / 2),
          pitch((s.filters + lanes - 1) / lanes * lanes) {
        testing::Random random(side + channels + filters);
        const auto some = [&](ptrdiff_t count) {
            std::vector<float> to(static_cast<size_t>(count));
            for (float& x : to)
                x = static_cast<float>(random());
            return to;
        };
        planes = some(channels * (side + 2) * (side + 2) + 16);
        w = some(static_cast<ptrdiff_t>(taps) * channels * pitch);
        gain = some(pitch);
        gain[0] = 0; // the first of equals wins
        centre = some(pitch);
        rstd = some(pitch);
        values = some(static_cast<ptrdiff_t>(windows()) * pitch);
    }
    int windows() const { return pooled * pooled; }
    int patch() const { return taps * channels; }
    double pixel(int k, int window, int place) const {
        const int y = 2 * (window / pooled) + place / 2 + k % taps / 3;
        const int x = 2 * (window % pooled) + place % 2 + k % 3;
        return static_cast<double>(
            planes[static_cast<size_t>((k / taps * (side + 2) + y) * (side + 2) + x)]);
    }
    double z(int window, int place, int f) const {
        double sum = 0;
        for (int k = 0; k < patch(); ++k)
            sum += pixel(k, window, place) *
                   static_cast<double>(w[static_cast<size_t>(k * pitch + f)]);
        return sum;
    }
};

struct Result {
    std::vector<float> x_hat;
    std::vector<uint16_t> winners;
    int pitch;
    int winner(int window, int f) const {
        const size_t at = static_cast<size_t>((window * pitch + f) / lanes * 2);
        return (winners[at] >> f % lanes & 1) + 2 * (winners[at + 1] >> f % lanes & 1);
    }
};

Result fwd(const Problem& p, const RoundedStem<float>& by, const uint16_t* image) {
    const int size = p.windows() * p.pitch;
    Result found{unwritten<float>(size), unwritten<uint16_t>(size / lanes * 2), p.pitch};
    by.fwd(p.side, p.channels, image,
           {p.pitch, p.w.data(), p.gain.data(), p.centre.data(), p.rstd.data(), found.x_hat.data(),
            found.winners.data()});
    return found;
}

std::vector<float> gradient(const Problem& p, const RoundedStem<float>& by, const uint16_t* image,
                            const Result& won) {
    std::vector<float> sum = unwritten<float>(p.patch() * p.pitch);
    by.gradient(p.side, p.channels, image,
                {p.pitch, p.values.data(), won.winners.data(), sum.data(), true});
    return sum;
}

Result check_fwd(const Problem& p, const RoundedStem<float>& by, const uint16_t* image,
                 const std::string& what) {
    Result found = fwd(p, by, image);
    for (int window = 0; window < p.windows(); ++window)
        for (int f = 0; f < p.pitch; ++f) {
            const size_t filter = static_cast<size_t>(f);
            const double gain = static_cast<double>(p.gain[filter]);
            const int sign = (gain > 0) - (gain < 0), winner = found.winner(window, f);
            const double z = p.z(window, winner, f);
            bool wins = sign || winner == 0;
            for (int place = 0; place < 4; ++place)
                wins = wins && sign * p.z(window, place, f) < sign * z + 1e-4;
            expect(wins, what + ": winner of window " + std::to_string(window));
            const double right =
                (z - static_cast<double>(p.centre[filter])) * static_cast<double>(p.rstd[filter]);
            const size_t at = static_cast<size_t>(window * p.pitch + f);
            if (!wins || !(std::abs(right - static_cast<double>(found.x_hat[at])) < 1e-4))
                expect(false, what + ": value of window " + std::to_string(window));
        }
    return found;
}

void check_gradient(const Problem& p, const RoundedStem<float>& by, const uint16_t* image,
                    const Result& won, const std::string& what) {
    const std::vector<float> once = gradient(p, by, image, won);
    std::vector<float> twice = once;
    by.gradient(p.side, p.channels, image,
                {p.pitch, p.values.data(), won.winners.data(), twice.data(), false});
    for (int k = 0; k < p.patch(); ++k)
        for (int f = 0; f < p.pitch; ++f) {
            double right = 0;
            for (int window = 0; window < p.windows(); ++window)
                right += p.pixel(k, window, won.winner(window, f)) *
                         static_cast<double>(p.values[static_cast<size_t>(window * p.pitch + f)]);
            const size_t at = static_cast<size_t>(k * p.pitch + f);
            if (!(std::abs(right - static_cast<double>(once[at])) < 1e-5 * p.pooled) ||
                !(once[at] + once[at] == twice[at]))
                return expect(false, what + ": gradient of place " + std::to_string(k));
        }
}

// What is infinite in one filter, or in the values behind it, changes no other.
void check_filters_apart(Problem p, const RoundedStem<float>& by, const uint16_t* image,
                         const Result& won, const std::string& what) {
    const int bad = p.filters / 2;
    const std::vector<float> clean = gradient(p, by, image, won);
    for (int k = 0; k < p.patch(); ++k)
        p.w[static_cast<size_t>(k * p.pitch + bad)] = INFINITY;
    for (int window = 0; window < p.windows(); ++window)
        p.values[static_cast<size_t>(window * p.pitch + bad)] = INFINITY;
    const Result found = fwd(p, by, image);
    const std::vector<float> sum = gradient(p, by, image, won);
    bool apart = true;
    for (int f = 0; f < p.pitch; ++f) {
        for (int window = 0; f != bad && window < p.windows(); ++window) {
            const size_t at = static_cast<size_t>(window * p.pitch + f);
            apart = apart && found.x_hat[at] == won.x_hat[at] &&
                    found.winner(window, f) == won.winner(window, f);
        }
        for (int k = 0; f != bad && k < p.patch(); ++k) {
            const size_t at = static_cast<size_t>(k * p.pitch + f);
            apart = apart && sum[at] == clean[at];
        }
    }
    expect(apart, what + ": a filter has another's values");
}

[[maybe_unused]] void check(const Shape& shape, const RoundedStem<float>& by,
                            const std::string& name) {
    const Problem p(shape);
    const std::string what = name + ", " + shape.name();
    expect(by.least_channels <= p.channels && p.channels <= by.most_channels,
           what + ": takes the channels");
    std::vector<uint16_t> image = unwritten<uint16_t>(by.image_size(p.side, p.channels));
    by.round_image(p.side, p.channels, p.planes.data(), image.data());
    const Result won = check_fwd(p, by, image.data(), what);
    check_gradient(p, by, image.data(), won, what);
    check_filters_apart(p, by, image.data(), won, what);
}

} // namespace
} // namespace mamlpp

int main() {
    using namespace mamlpp;
    const Shape shapes[] = {{84, 3, 48}, {33, 3, 64}, {34, 2, 16},
                            {7, 3, 33},  {2, 3, 5},   {16, 2, 80}};
    for ([[maybe_unused]] const Shape& shape : shapes) {
#ifdef MAMLPP_EMULATED_TILES
        if (cpu_features().avx512bf16)
            check(shape, emulatedbf16x3::stem_table(), "emulated");
#endif
#ifdef MAMLPP_HAS_AMX
        if (isa() == Isa::amx)
            check(shape, amxbf16x3::stem_table(), "AMX");
#endif
    }
    if (!cpu_features().avx512bf16)
        std::printf("no AVX512-BF16 here: nothing run\n");
    return testing::report();
}
