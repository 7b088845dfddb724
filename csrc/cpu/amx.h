// The tile registers of AMX: eight of up to 16 rows of 64 bytes, and the instructions on them that
// convolutions use (Intel SDM vol. 1 chapter 18). In a unit that is compiled without them they are
// emulated, instruction by instruction, so that tests run the code around them on any processor.
#pragma once

#include "simd.h"

namespace mamlpp {
namespace MAMLPP_ISA {

// What LDTILECFG reads.
struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int tile_rows, int bytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileShapes) == 64, "the layout of palette 1");

#ifdef __AMX_TILE__

// Not the compiler's own: those of GCC do not say that what reads memory does. Steps are in bytes.
MAMLPP_INLINE void shape_tiles(const TileShapes& shapes) {
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}
MAMLPP_INLINE void release_tiles() { __asm__ volatile("tilerelease"); }
template <int tile> MAMLPP_INLINE void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}
template <int tile> MAMLPP_INLINE void load_tile(const void* from, ptrdiff_t step) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(tile) : "memory");
}
template <int tile> MAMLPP_INLINE void store_tile(void* to, ptrdiff_t step) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(tile) : "memory");
}
template <int sum, int a, int b> MAMLPP_INLINE void add_dots() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

#else

struct EmulatedTiles {
    TileShapes shapes;
    bool configured = false;
    alignas(64) unsigned char data[8][16][64];

    void shape(const TileShapes& to) {
        shapes = to;
        configured = true;
        __builtin_memset(data, 0, sizeof data);
        for (int t = 0; t < 8; ++t)
            require(shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64 &&
                    shapes.row_bytes[t] % 4 == 0);
    }
    void end() { configured = false; }
    void zero(int t) {
        check(t);
        __builtin_memset(data[t], 0, sizeof data[t]);
    }
    void load(int t, const void* from, ptrdiff_t step) {
        zero(t);
        for (int r = 0; r < shapes.rows[t]; ++r)
            __builtin_memcpy(data[t][r], static_cast<const char*>(from) + r * step,
                             shapes.row_bytes[t]);
    }
    void store(int t, void* to, ptrdiff_t step) const {
        check(t);
        for (int r = 0; r < shapes.rows[t]; ++r)
            __builtin_memcpy(static_cast<char*>(to) + r * step, data[t][r], shapes.row_bytes[t]);
    }
    // TDPBF16PS: the products of the low halves are one sum, those of the high halves another, and
    // both together are added to what was there. (Subnormal numbers count as 0 there, not here.)
    void dot(int sum, int a, int b) {
        check(sum), check(a), check(b);
        require(shapes.rows[sum] == shapes.rows[a] && shapes.row_bytes[a] == 4 * shapes.rows[b] &&
                shapes.row_bytes[sum] == shapes.row_bytes[b]);
        for (int r = 0; r < shapes.rows[sum]; ++r)
            for (int c = 0; c < shapes.row_bytes[b] / 4; ++c) {
                float halves[2] = {};
                for (int k = 0; k < shapes.rows[b]; ++k)
                    for (int half = 0; half < 2; ++half)
                        halves[half] += bf16(&data[a][r][4 * k + 2 * half]) *
                                        bf16(&data[b][k][4 * c + 2 * half]);
                float value;
                __builtin_memcpy(&value, &data[sum][r][4 * c], 4);
                value += halves[0] + halves[1];
                __builtin_memcpy(&data[sum][r][4 * c], &value, 4);
            }
    }

  private:
    static float bf16(const unsigned char* from) {
        uint32_t bits = static_cast<uint32_t>(from[0]) << 16 | static_cast<uint32_t>(from[1]) << 24;
        float value;
        __builtin_memcpy(&value, &bits, 4);
        return value;
    }
    static void require(bool valid) { // a real processor raises #GP or #UD
        if (!valid)
            __builtin_trap();
    }
    void check(int t) const {
        require(configured && shapes.rows[t] > 0 && shapes.row_bytes[t] > 0);
    }
};
inline thread_local EmulatedTiles emulated_tiles;

inline void shape_tiles(const TileShapes& shapes) { emulated_tiles.shape(shapes); }
inline void release_tiles() { emulated_tiles.end(); }
template <int tile> void zero_tile() { emulated_tiles.zero(tile); }
template <int tile> void load_tile(const void* from, ptrdiff_t step) {
    emulated_tiles.load(tile, from, step);
}
template <int tile> void store_tile(void* to, ptrdiff_t step) {
    emulated_tiles.store(tile, to, step);
}
template <int sum, int a, int b> void add_dots() { emulated_tiles.dot(sum, a, b); }

#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
