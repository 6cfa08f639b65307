// Messages of the library in addition to its results; silent unless the caller asks for them.
#pragma once

#include <functional>
#include <string>

namespace bita {

enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2 };

class Log {
 public:
  using Write = std::function<void(LogLevel level, const std::string& message)>;

  Log() = default;
  Log(Write write, LogLevel least) : write_(std::move(write)), least_(least) {}

  void operator()(LogLevel level, const std::string& message) const {
    if (write_ && level >= least_) write_(level, message);
  }

 private:
  Write write_;
  LogLevel least_ = LogLevel::kWarning;
};

}  // namespace bita
