// Requests and replies of both programs of cpp_speed.py.
//
// A request is a line of numbers: the number of new tokens, then the prompt's token ids. A reply is
// a JSON line. When the input ends, a last line reports the process's peak memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace timed {

using Clock = std::chrono::steady_clock;

inline double milliseconds(Clock::time_point began) {
  return std::chrono::duration<double, std::milli>(Clock::now() - began).count();
}

struct Request {
  int num_new = 0;
  std::vector<std::int32_t> prompt;
};

inline bool read(Request& request) {
  std::string line;
  if (!std::getline(std::cin, line)) return false;
  std::istringstream numbers(line);
  request = {};
  numbers >> request.num_new;
  for (std::int32_t id; numbers >> id;) request.prompt.push_back(id);
  return true;
}

struct Reply {
  std::vector<std::int32_t> ids;
  double first_ms = 0, whole_ms = 0, host_share = 0;
};

inline void write(const Reply& reply) {
  std::printf("{\"first_ms\": %.4f, \"whole_ms\": %.4f, \"host_share\": %.6f, \"token_ids\": [",
              reply.first_ms, reply.whole_ms, reply.host_share);
  for (std::size_t i = 0; i < reply.ids.size(); ++i)
    std::printf("%s%d", i ? ", " : "", reply.ids[i]);
  std::printf("]}\n");
  std::fflush(stdout);
}

inline void write_opened(double open_ms) {
  std::printf("{\"open_ms\": %.3f}\n", open_ms);
  std::fflush(stdout);
}

inline void write_memory() {
  std::ifstream status("/proc/self/status");
  long kilobytes = 0;
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) kilobytes = std::stol(line.substr(6));
  std::printf("{\"peak_memory_mb\": %.1f}\n", static_cast<double>(kilobytes) * 1024 / 1e6);
}

}  // namespace timed
