// The number of threads that a process should run at a time.
#pragma once

namespace bita {

// The default number of threads: 0, meaning one for each physical core, unless the process may not
// use all processors; then one for each core that it may use, within its group's quota.
int default_threads();

}  // namespace bita
