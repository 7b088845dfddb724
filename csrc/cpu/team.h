// The threads of the CPU kernels.
#pragma once

#include "../ops.h"

namespace mamlpp {

// Runs every task: as many at once as there are threads, each by a team of one, and those left over
// by teams that share the threads out; with fewer `at_once` all of them by so many teams.
// run(context, task, team, slot), where slot < threads tells apart the tasks that run at once.
void run_tasks(int tasks, int threads, int at_once, void (*run)(void*, int, Team&, int),
               void* context);

} // namespace mamlpp
