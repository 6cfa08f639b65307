#include <cstdio>

#include "../tests/check.h"

// Runs all cases, or those whose name has the first argument in it.
int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);  // a sanitizer may end the process
  int num_run = 0;
  for (const auto& one : bita::tests::cases()) {
    if (count > 1 && one.name.find(arguments[1]) == std::string::npos) continue;
    try {
      one.run();
    } catch (const std::exception& error) {
      bita::tests::expect(false, one.name + ": " + error.what());
    }
    ++num_run;
  }
  std::printf("%d passed, %d failed\n", num_run, bita::tests::num_failures());
  return bita::tests::num_failures() || !num_run ? 1 : 0;
}
