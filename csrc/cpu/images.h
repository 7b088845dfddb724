// Images between tensors, NHWC with as many channels as they have, and the buffers of the kernels,
// whose pixels are whole vectors.
#pragma once

#include "conv.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// Pixels of one pitch → pixels of another. Channels that only pad get 0.
template <class T>
MAMLPP_APART void copy_pixels(const T* from, ptrdiff_t pixels, int from_pitch, int to_pitch,
                              T* to) {
    if (from_pitch == to_pitch) {
        __builtin_memcpy(to, from, static_cast<size_t>(pixels * from_pitch) * sizeof(T));
        return;
    }
    const int both = from_pitch < to_pitch ? from_pitch : to_pitch;
    for (ptrdiff_t p = 0; p < pixels; ++p, from += from_pitch, to += to_pitch) {
        for (int c = 0; c < both; ++c)
            to[c] = from[c];
        for (int c = both; c < to_pitch; ++c)
            to[c] = 0;
    }
}

// [side][side][channels] → [span][span][pitch] with zeros around it
template <class T>
inline void border_image(const T* image, int side, int channels, int pitch, T* to) {
    clear_border(to, side, pitch);
    for (int y = 0; y < side; ++y)
        copy_pixels(image + static_cast<ptrdiff_t>(y) * side * channels, side, channels, pitch,
                    to + (static_cast<ptrdiff_t>(y + 1) * span(side) + 1) * pitch);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
