// What the C++ tests share. Memory given to a kernel has exactly the size that it asked for, and
// starts as NaN.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/block.h"
#include "../../csrc/cpu/team.h"
#include "../../csrc/ops.h"

namespace mamlpp {
namespace testing {

inline int failures = 0;

inline void expect(bool good, const std::string& what) {
    if (good)
        return;
    ++failures;
    std::printf("FAILED: %s\n", what.c_str());
}

// The exit status of the program.
inline int report() {
    if (failures)
        std::printf("%d FAILED\n", failures);
    else
        std::printf("passed\n");
    return failures != 0;
}

// All bits 1 is a NaN of either type.
class Exact {
  public:
    explicit Exact(size_t bytes) : data_(std::aligned_alloc(64, bytes)) {
        if (!data_)
            std::abort();
        std::memset(data_.get(), 0xff, bytes);
    }
    void* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> data_;
};

inline std::vector<Exact> exact_blocks(int count, size_t bytes) {
    std::vector<Exact> blocks;
    for (int i = 0; i < count; ++i)
        blocks.emplace_back(bytes);
    return blocks;
}

template <class T> std::vector<T> unwritten(ptrdiff_t size) {
    std::vector<T> values(static_cast<size_t>(size));
    if (size)
        std::memset(values.data(), 0xff, values.size() * sizeof(T));
    return values;
}

// Uniform in −1..1; Knuth's MMIX generator. Values are float32's in both types, so that the results
// in double are what those in float should be.
class Random {
  public:
    explicit Random(int seed) : state_(static_cast<uint64_t>(seed)) {}
    double operator()() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<double>(state_ >> 11) * 0x1p-52 - 1;
    }
    template <class T> std::vector<T> values(ptrdiff_t size, double scale = 1, double offset = 0) {
        std::vector<T> to(static_cast<size_t>(size));
        for (T& value : to)
            value = static_cast<float>(offset + scale * (*this)());
        return to;
    }

  private:
    uint64_t state_;
};

template <class F> void for_tasks(int tasks, int threads, F f, int at_once = INT_MAX) {
    run_tasks(
        tasks, threads, at_once,
        [](void* context, int task, Team& team, int slot) {
            (*static_cast<F*>(context))(task, team, slot);
        },
        &f);
}

// Largest difference in units of the largest value; NaN is infinitely wrong.
template <class T> double error(const std::vector<T>& a, const std::vector<T>& b) {
    double worst = 0, scale = 1e-30;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        worst = std::isfinite(d) ? std::max(worst, d) : INFINITY;
        scale = std::max(scale, std::abs(static_cast<double>(b[i])));
    }
    return worst / scale;
}

// What errors of float32 are granted to the results of every set: those of the first one, which is
// portable, four times over. Of few values these may be next to none, so there are roundings
// beside.
class Budget {
  public:
    void expect_within(size_t result, const std::vector<float>& values,
                       const std::vector<double>& exact, const std::string& what) {
        const double e = error(std::vector<double>(values.begin(), values.end()), exact);
        if (result == granted_.size())
            granted_.push_back(std::min(4 * e + 4 * 0x1p-24, 1e-4));
        char text[64];
        std::snprintf(text, sizeof text, " off by %.2g, granted %.2g", e, granted_[result]);
        expect(e <= granted_[result], what + text);
    }

  private:
    std::vector<double> granted_;
};

// Of central differences.
inline std::vector<double> slope(const std::vector<double>& above, const std::vector<double>& below,
                                 double h) {
    std::vector<double> result(above.size());
    for (size_t i = 0; i < above.size(); ++i)
        result[i] = (above[i] - below[i]) / (2 * h);
    return result;
}

// f(name) on each instruction set that this machine grants, from the least one on.
template <class F> void on_every_isa(F f) {
    constexpr const char* names[] = {"portable", "neon", "avx2", "avx512"};
    for (int i = 0; i <= static_cast<int>(Isa::avx512); ++i)
        if (limit_isa(static_cast<Isa>(i)) == static_cast<Isa>(i))
            f(std::string(names[i]));
    limit_isa(Isa::amx);
}

} // namespace testing
} // namespace mamlpp
