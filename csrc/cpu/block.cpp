#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

namespace mamlpp {

namespace {

// Blocks that were dropped, the latest first. It holds no more than were ever in use at once: what
// a run needs again and again stays, what an earlier one of other sizes left makes room.
struct Cache {
    struct Entry {
        size_t bytes;
        void* data;
        Block::Use use;
    };
    std::mutex mutex;
    std::list<Entry> blocks;
    size_t cached = 0, used = 0, most_used = 0;

    void* take(std::list<Entry>::iterator block) {
        void* const data = block->data;
        cached -= block->bytes;
        blocks.erase(block);
        return data;
    }
    void free_rooms() {
        for (auto each = blocks.begin(); each != blocks.end();) {
            const auto block = each++;
            if (block->use == Block::Use::room)
                std::free(take(block));
        }
    }
};
// Never destroyed: a block may be dropped while the interpreter shuts down. Made when the module is
// loaded: what is made when first asked for may be half made in the child of a fork.
Cache& cache = *new Cache;

// What a call runs out of memory with; Python makes a MemoryError of it.
class OutOfMemory final : public std::bad_alloc {
  public:
    OutOfMemory(size_t wanted, size_t used) {
        constexpr double mib = 1 << 20;
        std::snprintf(text_, sizeof text_,
                      "native kernels: no memory for a block of %.1f MiB beside %.1f MiB in use; "
                      "give fewer tasks, images or threads to a call, or free some memory",
                      static_cast<double>(wanted) / mib, static_cast<double>(used) / mib);
    }
    const char* what() const noexcept override { return text_; }

  private:
    char text_[224];
};

#ifndef _WIN32
// Held while the process forks, wherever other threads are, to be whole in the child.
[[maybe_unused]] const int at_fork = pthread_atfork(
    [] { cache.mutex.lock(); }, [] { cache.mutex.unlock(); }, [] { cache.mutex.unlock(); });
#endif

} // namespace

Block::Block(size_t bytes, Use use) : data_(nullptr), bytes_(bytes), use_(use) {
    constexpr size_t page = 4096, huge = size_t{1} << 21;
    const size_t unit = bytes < huge ? page : huge;
    bytes_ = (bytes + unit - 1) / unit * unit;
    {
        Cache& c = cache;
        std::lock_guard<std::mutex> lock(c.mutex);
        const auto fits = [&](const Cache::Entry& e) {
            return e.use == use && (use == Use::room ? e.bytes >= bytes_ : e.bytes == bytes_);
        };
        const auto found = std::find_if(c.blocks.begin(), c.blocks.end(), fits);
        if (found != c.blocks.end()) {
            bytes_ = found->bytes;
            data_ = c.take(found);
        } else if (use == Use::room) {
            c.free_rooms();
        }
        c.used += bytes_;
        if (data_) {
            c.most_used = std::max(c.most_used, c.used);
            return;
        }
    }
    data_ = std::aligned_alloc(unit, bytes_);
    if (!data_ && release_blocks())
        data_ = std::aligned_alloc(unit, bytes_);
    {
        std::lock_guard<std::mutex> lock(cache.mutex);
        if (!data_) {
            cache.used -= bytes_;
            throw OutOfMemory(bytes_, cache.used);
        }
        cache.most_used = std::max(cache.most_used, cache.used); // of what was granted
    }
#ifdef MADV_HUGEPAGE
    if (unit == huge)
        madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
}

Block::~Block() {
    if (!data_)
        return;
    Cache& c = cache;
    std::lock_guard<std::mutex> lock(c.mutex);
    c.used -= bytes_;
    try {
        c.blocks.push_front({bytes_, data_, use_});
    } catch (const std::bad_alloc&) { // not even for the entry
        std::free(data_);
        return;
    }
    c.cached += bytes_;
    while (c.cached > c.most_used)
        std::free(c.take(std::prev(c.blocks.end())));
}

size_t release_blocks() {
    Cache& c = cache;
    std::lock_guard<std::mutex> lock(c.mutex);
    const size_t total = c.cached;
    while (!c.blocks.empty())
        std::free(c.take(c.blocks.begin()));
    return total;
}

} // namespace mamlpp
