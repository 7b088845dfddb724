// How tasks and their loops are shared out among threads, without any kernel.
#include <atomic>
#include <numeric>

#include "testing.h"

using namespace mamlpp;
using namespace mamlpp::testing;

namespace {

// Counts of what ran, each to be 1, and who was at work at once.
struct Seen {
    std::vector<std::atomic<int>> tasks, items, slots, workers;
    std::atomic<bool> strange{false};

    Seen(int count, int of_each, int threads)
        : tasks(static_cast<size_t>(count)), items(static_cast<size_t>(count * of_each)),
          slots(static_cast<size_t>(threads)), workers(static_cast<size_t>(threads)) {}
    // Whether nobody else has this place.
    void enter(std::vector<std::atomic<int>>& places, int at) {
        if (at < 0 || static_cast<size_t>(at) >= places.size() ||
            places[static_cast<size_t>(at)].fetch_add(1) != 0)
            strange = true;
    }
    void leave(std::vector<std::atomic<int>>& places, int at) {
        if (!strange)
            places[static_cast<size_t>(at)].fetch_sub(1);
    }
};

bool all_once(const std::vector<std::atomic<int>>& counts) {
    return std::all_of(counts.begin(), counts.end(), [](const auto& c) { return c == 1; });
}

// Every task once, every item of its loops once and by a worker of its team, whose scratch is
// nobody else's meanwhile; a loop sees what the ones before it wrote.
void each_runs_once(int tasks, int threads, int at_once) {
    constexpr int loops = 50, items = 7;
    Seen seen(tasks, items * loops, threads);
    for_tasks(
        tasks, threads,
        [&](int task, Team& team, int slot) {
            seen.tasks[static_cast<size_t>(task)].fetch_add(1);
            seen.enter(seen.slots, slot);
            std::vector<int> values(items, 0);
            for (int loop = 0; loop < loops; ++loop) {
                const auto body = [&](int item, int worker) {
                    if (worker < 0 || worker >= team.workers())
                        seen.strange = true;
                    seen.enter(seen.workers, team.first() + worker);
                    seen.items[static_cast<size_t>((task * loops + loop) * items + item)].fetch_add(
                        1);
                    values[static_cast<size_t>(item)] += loop + item; // not atomic
                    seen.leave(seen.workers, team.first() + worker);
                };
                team.each(
                    items,
                    [](void* context, int item, int worker) {
                        (*static_cast<const decltype(body)*>(context))(item, worker);
                    },
                    const_cast<void*>(static_cast<const void*>(&body)));
            }
            const int total = std::accumulate(values.begin(), values.end(), 0);
            if (total != items * loops * (loops - 1) / 2 + loops * items * (items - 1) / 2)
                seen.strange = true;
            seen.leave(seen.slots, slot);
        },
        at_once);
    const std::string what = std::to_string(tasks) + " tasks on " + std::to_string(threads) +
                             " threads, " + std::to_string(at_once) + " at once";
    expect(all_once(seen.tasks) && all_once(seen.items), what + ": not each once");
    expect(!seen.strange, what + ": a place that another has, or a sum without its share");
}

// Of what is left over the threads are shared out, so that none is without a team.
void teams_have_all_threads() {
    for (int tasks = 1; tasks < 6; ++tasks) {
        std::vector<std::atomic<int>> workers(static_cast<size_t>(tasks));
        for_tasks(tasks, 6, [&](int, Team& team, int slot) {
            workers[static_cast<size_t>(slot)] = team.workers();
        });
        int found = 0, least = 6, most = 0;
        for (const std::atomic<int>& count : workers)
            if (count) { // a fast thread may have run two tasks
                found += count;
                least = std::min<int>(least, count);
                most = std::max<int>(most, count);
            }
        expect(most - least <= 1 && found <= 6, std::to_string(tasks) + " teams of 6 threads");
    }
}

} // namespace

int main() {
    for (int threads : {1, 2, 3, 5, 8})
        for (int tasks : {0, 1, 2, 3, 5, 9})
            for (int at_once : {1, 2, 8})
                each_runs_once(tasks, threads, at_once);
    teams_have_all_threads();
    return report();
}
