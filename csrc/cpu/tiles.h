// The tile registers of AMX: eight of up to 16 rows of 64 bytes, and the instructions on them that
// the products use (Intel SDM vol. 1 chapter 18). In a unit that is compiled without them they are
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

// Macros, because the number of a tile is a part of the instruction. Steps are in bytes.
#define MAMLPP_TILES_SHAPE(shapes) _tile_loadconfig(&(shapes))
#define MAMLPP_TILES_END() _tile_release()
#define MAMLPP_TILE_ZERO(tile) _tile_zero(tile)
#define MAMLPP_TILE_LOAD(tile, from, step) _tile_loadd(tile, from, step)
#define MAMLPP_TILE_STORE(tile, to, step) _tile_stored(tile, to, step)
#define MAMLPP_TILE_DOT(sum, a, b) _tile_dpbf16ps(sum, a, b)

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
    // TDPBF16PS: of each pair the product of the high halves is added last
    void dot(int sum, int a, int b) {
        check(sum), check(a), check(b);
        require(shapes.rows[sum] == shapes.rows[a] && shapes.row_bytes[a] == 4 * shapes.rows[b] &&
                shapes.row_bytes[sum] == shapes.row_bytes[b]);
        for (int r = 0; r < shapes.rows[sum]; ++r)
            for (int k = 0; k < shapes.rows[b]; ++k)
                for (int c = 0; c < shapes.row_bytes[b] / 4; ++c) {
                    float value;
                    __builtin_memcpy(&value, &data[sum][r][4 * c], 4);
                    for (int half = 0; half < 2; ++half)
                        value += bf16(&data[a][r][4 * k + 2 * half]) *
                                 bf16(&data[b][k][4 * c + 2 * half]);
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
static thread_local EmulatedTiles emulated_tiles;

#define MAMLPP_TILES_SHAPE(shapes) emulated_tiles.shape(shapes)
#define MAMLPP_TILES_END() emulated_tiles.end()
#define MAMLPP_TILE_ZERO(tile) emulated_tiles.zero(tile)
#define MAMLPP_TILE_LOAD(tile, from, step) emulated_tiles.load(tile, from, step)
#define MAMLPP_TILE_STORE(tile, to, step) emulated_tiles.store(tile, to, step)
#define MAMLPP_TILE_DOT(sum, a, b) emulated_tiles.dot(sum, a, b)

#endif

} // namespace MAMLPP_ISA
} // namespace mamlpp
