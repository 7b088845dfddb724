#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifndef _WIN32
#include <unistd.h>
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
// Never destroyed: a block may be dropped while the interpreter shuts down.
Cache& cache() {
    static Cache* const instance = new Cache;
    return *instance;
}

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// How long a thread without work looks out for more before it sleeps: longer than the gap between
// two calls of one iteration, so that it is there when the next one comes.
constexpr std::chrono::microseconds patience{200};

// Items of one loop, handed out one by one.
struct Loop {
    int items = 0;
    Team::Run run = nullptr;
    void* context = nullptr;
    std::atomic<int> next{0};

    void work(int worker) {
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;)
            run(context, i, worker);
    }
};

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {
        for (int w = 1; w < threads; ++w)
            workers_.emplace_back([this, w] { serve(w); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            ++turn_;
        }
        wake_.notify_all();
        for (std::thread& t : workers_)
            t.join();
    }
    int threads() const { return threads_; }

    void each(int items, Team::Run run, void* context) {
        loop_.items = items;
        loop_.run = run;
        loop_.context = context;
        loop_.next.store(0, std::memory_order_relaxed);
        busy_.store(threads_ - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ++turn_;
        }
        wake_.notify_all();
        loop_.work(0);
        for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins)
            if (spins < 4096)
                pause_briefly();
            else
                std::this_thread::yield(); // whoever is late may be waiting for this core
    }

  private:
    void serve(int worker) {
        for (unsigned seen = 0;;) {
            const auto until = std::chrono::steady_clock::now() + patience;
            while (turn_.load(std::memory_order_acquire) == seen &&
                   std::chrono::steady_clock::now() < until)
                pause_briefly();
            if (turn_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return turn_.load() != seen; });
            }
            if (stop_)
                return;
            ++seen;
            loop_.work(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    const int threads_;
    Loop loop_;
    std::atomic<unsigned> turn_{0};
    std::atomic<int> busy_{0};
    bool stop_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

class Solo final : public Team {
  public:
    int workers() const override { return 1; }
    void each(int items, Run run, void* context) override {
        for (int i = 0; i < items; ++i)
            run(context, i, 0);
    }
};

class All final : public Team {
  public:
    explicit All(Pool& pool) : pool_(pool) {}
    int workers() const override { return pool_.threads(); }
    void each(int items, Run run, void* context) override { pool_.each(items, run, context); }

  private:
    Pool& pool_;
};

// The pool of this process; one of another size replaces it, and a forked child makes its own,
// since threads do not survive a fork.
std::mutex pool_mutex;
Pool& pool(int threads) {
    static Pool* instance = nullptr;
#ifndef _WIN32
    static pid_t owner = 0;
    if (owner != getpid()) {
        instance = nullptr;
        owner = getpid();
    }
#endif
    if (!instance || instance->threads() != threads) {
        delete instance;
        instance = nullptr;
        instance = new Pool(threads);
    }
    return *instance;
}

} // namespace

Block::Block(size_t bytes, Use use) : data_(nullptr), bytes_(bytes), use_(use) {
    constexpr size_t page = 4096, huge = size_t{1} << 21;
    const size_t unit = bytes < huge ? page : huge;
    bytes_ = (bytes + unit - 1) / unit * unit;
    {
        Cache& c = cache();
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
        c.most_used = std::max(c.most_used, c.used);
        if (data_)
            return;
    }
    data_ = std::aligned_alloc(unit, bytes_);
    if (!data_) {
        Cache& c = cache();
        std::lock_guard<std::mutex> lock(c.mutex);
        c.used -= bytes_;
        throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    if (unit == huge)
        madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
}

Block::~Block() {
    if (!data_)
        return;
    Cache& c = cache();
    std::lock_guard<std::mutex> lock(c.mutex);
    c.used -= bytes_;
    c.cached += bytes_;
    c.blocks.push_front({bytes_, data_, use_});
    while (c.cached > c.most_used)
        std::free(c.take(std::prev(c.blocks.end())));
}

size_t release_blocks() {
    Cache& c = cache();
    std::lock_guard<std::mutex> lock(c.mutex);
    const size_t total = c.cached;
    while (!c.blocks.empty())
        std::free(c.take(c.blocks.begin()));
    return total;
}

void run_tasks(int tasks, int threads, bool one_by_one, void (*run)(void*, int, Team&, int),
               void* context) {
    struct Call {
        void (*run)(void*, int, Team&, int);
        void* context;
    } call{run, context};
    Solo solo;
    std::unique_lock<std::mutex> lock(pool_mutex, std::try_to_lock);
    if (threads <= 1 || !lock) { // another thread's call has the workers
        for (int t = 0; t < tasks; ++t)
            run(context, t, solo, 0);
        return;
    }
    Pool& workers = pool(threads);
    const int together = one_by_one ? 0 : tasks / threads * threads;
    if (together)
        workers.each(
            together,
            [](void* c, int task, int worker) {
                Solo alone;
                const Call& each = *static_cast<Call*>(c);
                each.run(each.context, task, alone, worker);
            },
            &call);
    All all(workers);
    for (int t = together; t < tasks; ++t)
        run(context, t, all, 0);
}

} // namespace mamlpp
