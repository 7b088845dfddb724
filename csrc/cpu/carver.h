// Arrays in a block of memory.
#pragma once

#include "simd.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace mamlpp {
namespace MAMLPP_ISA {

// Hands out arrays of a block one behind the other; from a null block it only counts.
class Carver {
  public:
    explicit Carver(void* block) : base_(static_cast<char*>(block)) {}
    template <class T> T* take(ptrdiff_t count) {
        char* p = base_ ? base_ + at_ : nullptr;
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        at_ += (bytes + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__ // forbids what lies between the arrays
        at_ += 64;
        if (p) {
            __asan_unpoison_memory_region(p, bytes); // of another layout of the block
            __asan_poison_memory_region(p + bytes, (bytes + 63) / 64 * 64 + 64 - bytes);
        }
#endif
        return reinterpret_cast<T*>(p);
    }
    size_t bytes() const { return at_; }

  private:
    char* base_;
    size_t at_ = 0;
};

} // namespace MAMLPP_ISA
} // namespace mamlpp
