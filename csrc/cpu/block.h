// The blocks of memory that the CPU kernels work in.
#pragma once

#include <stddef.h>

namespace mamlpp {

// A block that goes back to a cache when it is dropped, so that a later one needs no page from the
// system: the next one of its size, or the next room, which may be smaller. Aligned to 64 bytes;
// its contents are whatever was there.
class Block {
  public:
    enum class Use {
        kept, // between calls
        room  // of one call: what is too small for it makes place
    };
    explicit Block(size_t bytes, Use use = Use::kept);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    void* data_;
    size_t bytes_;
    Use use_;
};

// Frees what the cache holds; returns how many bytes that was.
size_t release_blocks();

} // namespace mamlpp
