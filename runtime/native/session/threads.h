// How many threads a process may run at a time.
#pragma once

namespace bita {

// Threads where nobody says how many: 0, for one for each physical core, unless the process may not
// use all processors; then one for each core that it may use, within its group's quota.
int default_threads();

}  // namespace bita
