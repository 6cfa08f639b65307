#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

namespace bita {

namespace {

// The number of processors that the control group (version 2) may use; 0 without a limit.
double quota(long num_processors) {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double share = 0, period = 0;
  if (!(file >> share >> period) || period <= 0) return 0;  // no limit, or "max"
  share /= period;
  return share > 0 && share < static_cast<double>(num_processors) ? share : 0;
}

// An identifier of a processor's physical core, or the processor's number if it is unknown.
std::string core_of(int processor) {
  const std::string number = std::to_string(processor);
  std::ifstream file("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
  std::string siblings;
  return std::getline(file, siblings) ? siblings : number;
}

}  // namespace

int default_threads() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  const long num_processors = std::max(1L, sysconf(_SC_NPROCESSORS_ONLN));
  const double share = quota(num_processors);
  if (share == 0 && CPU_COUNT(&allowed) == num_processors) return 0;
  std::set<std::string> cores;
  for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (CPU_ISSET(processor, &allowed)) cores.insert(core_of(processor));
  }
  const int count = static_cast<int>(cores.size());
  return std::max(1, share > 0 ? std::min(count, static_cast<int>(share)) : count);
}

}  // namespace bita
