#include "team.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <xmmintrin.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

namespace mamlpp {

namespace {

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// For another thread: at first on this core, which whoever is late may be waiting for. Among more
// threads than cores (not `patient`) one without work sleeps.
void wait(bool at_first, bool patient) {
    if (!patient)
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    else if (at_first)
        pause_briefly();
    else
        std::this_thread::yield();
}

// Those that this process may run on.
int cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

// How this thread rounds, and whether it flushes denormals (torch.set_flush_denormal).
#ifdef __x86_64__
using Rounding = unsigned; // of the vector units, which compute everything; <cfenv> takes long
Rounding rounding() { return _mm_getcsr(); }
void round_as(Rounding r) { _mm_setcsr(r); }
#else
using Rounding = std::fenv_t;
Rounding rounding() {
    Rounding r;
    std::fegetenv(&r);
    return r;
}
void round_as(const Rounding& r) { std::fesetenv(&r); }
#endif

// How long a thread without work looks out for more before it sleeps: longer than the gap between
// two calls of one iteration, so that it is there when the next one comes. Of more threads than
// cores none does: it would look out on the core that another needs to work.
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

// Once in a process: a system that refuses a thread refuses the next one, too.
void say_fewer(int asked, size_t made, const char* reason) {
    static std::atomic<bool> said{false};
    if (!said.exchange(true))
        std::fprintf(stderr,
                     "mamlpp: asked for %d threads, the system gives %zu (%s): the same results, "
                     "later; raise the limit of processes or memory (ulimit -u, -v), or ask for "
                     "fewer threads\n",
                     asked, made, reason);
}

class Pool {
  public:
    // Of fewer threads where the system gives no more; results do not depend on their number.
    explicit Pool(int threads)
        : asked_(threads), patience_(threads > cores() ? 0 * patience : patience) {
        try {
            workers_.reserve(static_cast<size_t>(threads - 1));
            for (int w = 1; w < threads; ++w)
                workers_.emplace_back([this, w] { serve(w); });
        } catch (const std::system_error& error) {
            say_fewer(threads, workers_.size() + 1, error.code().message().c_str());
        } catch (const std::bad_alloc&) {
            say_fewer(threads, workers_.size() + 1, "out of memory");
        }
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
    int asked() const { return asked_; }
    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // `run` throws nothing.
    void each(int items, Team::Run run, void* context) {
        loop_.items = items;
        loop_.run = run;
        loop_.context = context;
        loop_.next.store(0, std::memory_order_relaxed);
        busy_.store(threads() - 1, std::memory_order_relaxed);
        rounding_ = rounding();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ++turn_;
        }
        wake_.notify_all();
        loop_.work(0);
        for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins)
            wait(spins < 4096, true);
    }
    // Whether each thread has a core.
    bool patient() const { return patience_ != 0 * patience; }

  private:
    void serve(int worker) {
        for (unsigned seen = 0;;) {
            const auto until = std::chrono::steady_clock::now() + patience_;
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
            round_as(rounding_);
            loop_.work(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    const int asked_;
    const std::chrono::microseconds patience_;
    Loop loop_;
    Rounding rounding_{}; // the caller's: results must not depend on the thread that took a task
    std::atomic<unsigned> turn_{0};
    std::atomic<int> busy_{0};
    bool stop_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

class Solo final : public Team {
  public:
    explicit Solo(int first) : Team(first) {}
    int workers() const override { return 1; }
    void each(int items, Run run, void* context) override {
        for (int i = 0; i < items; ++i)
            run(context, i, 0);
    }
};

// One thread and its helpers, who are there for every loop of it, and whom it waits for only where
// they took part: a helper that comes late, or never, costs nothing but its help.
class Group final : public Team {
  public:
    Group(int first, int workers, bool patient)
        : Team(first), workers_(workers), patient_(patient) {}
    int workers() const override { return workers_; }
    void each(int items, Run run, void* context) override {
        loop_.items = items;
        loop_.run = run;
        loop_.context = context;
        loop_.next.store(0, std::memory_order_relaxed);
        state_.fetch_add(1); // odd: open
        loop_.work(0);
        state_.fetch_add(1);
        for (int spins = 0; helping_.load() != 0; ++spins)
            wait(spins < 4096, true);
    }
    // Until the group ends.
    void help(int worker) {
        unsigned seen = 0;
        for (int spins = 0;; ++spins) {
            const unsigned now = state_.load();
            if (now == ended)
                return;
            if (now % 2 == 0 || now == seen) {
                wait(spins < 4096, patient_);
                continue;
            }
            helping_.fetch_add(1);
            if (state_.load() == now) // it is still open, and waits for who is in
                loop_.work(worker);
            helping_.fetch_sub(1);
            seen = now;
            spins = 0;
        }
    }
    void end() { state_.store(ended); }

  private:
    static constexpr unsigned ended = ~0u - 1; // even, and no count of loops
    const int workers_;
    const bool patient_;
    Loop loop_;
    std::atomic<unsigned> state_{0};
    std::atomic<int> helping_{0};
};

// The pool of this process; one of another size replaces it.
std::mutex pool_mutex;
Pool* the_pool = nullptr;
Pool& pool(int threads) {
    if (!the_pool || the_pool->asked() != threads) {
        delete the_pool;
        the_pool = nullptr;
        the_pool = new Pool(threads);
    }
    return *the_pool;
}

#ifndef _WIN32
// Of all threads a fork takes along only the one that calls it. A call may hold the pool for long;
// the child leaves that behind with its threads, and makes one of its own.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
    new (&pool_mutex) std::mutex;
    the_pool = nullptr;
});
#endif

} // namespace

void run_tasks(int tasks, int threads, int at_once, void (*run)(void*, int, Team&, int),
               void* context) {
    std::unique_lock<std::mutex> lock(pool_mutex, std::try_to_lock);
    if (threads <= 1 || !lock) { // another thread's call has the workers
        Solo solo(0);
        for (int t = 0; t < tasks; ++t)
            run(context, t, solo, 0);
        return;
    }
    Pool& workers = pool(threads);
    threads = workers.threads(); // perhaps fewer
    const int alone = at_once < threads ? 0 : tasks / threads * threads;
    const int groups = std::min({tasks - alone, at_once, threads});
    struct Call {
        void (*run)(void*, int, Team&, int);
        void* context;
        int tasks;
        std::atomic<int> next; // of those that groups take
        std::deque<Group> groups;
    } call{run, context, tasks, {alone}, {}};
    for (int g = 0, first = 0; g < groups; ++g) {
        const int size = (threads - g + groups - 1) / groups;
        call.groups.emplace_back(first, size, workers.patient());
        first += size;
    }
    if (alone)
        workers.each(
            alone,
            [](void* c, int task, int worker) {
                Solo solo(worker);
                const Call& each = *static_cast<Call*>(c);
                each.run(each.context, task, solo, worker);
            },
            &call);
    if (groups > 0)
        workers.each(
            threads,
            [](void* c, int role, int) {
                Call& each = *static_cast<Call*>(c);
                const int count = static_cast<int>(each.groups.size()), slot = role % count;
                Group& group = each.groups[static_cast<size_t>(slot)];
                if (role >= count)
                    return group.help(role / count);
                for (int t; (t = each.next.fetch_add(1)) < each.tasks;)
                    each.run(each.context, t, group, slot);
                group.end();
            },
            &call);
}

} // namespace mamlpp
