// Chat with a model: chat ENGINE. Answers are printed as they are generated.
#include <bita/bita.hpp>
#include <csignal>
#include <iomanip>
#include <iostream>

namespace {

bita_session* answering = nullptr;

void cancel(int) { bita_cancel(answering); }

}  // namespace

int main(int count, char** arguments) try {
  if (count != 2 || arguments[1][0] == '-') {
    std::cerr << "usage: chat ENGINE\n";
    return 2;
  }
  const bita::Engine engine(arguments[1]);
  bita::Session session(engine, {{}, {}, true});
  answering = session.get();
  std::signal(SIGINT, cancel);  // Ctrl-C ends the answer, Ctrl-D the conversation
  std::string line;
  while (std::cout << "> " << std::flush && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    session.start_chat({{"user", line}});
    while (const auto step = session.next()) std::cout << step->text << std::flush;
    const bita_stats stats = session.stats();
    std::cout << "\n";
    if (stats.num_steps == 0) continue;  // the prompt's step gave the whole answer
    std::cout << std::fixed << std::setprecision(1) << "["
              << 1000 * stats.num_tokens / stats.step_ms << " tokens/s, "
              << static_cast<double>(stats.num_tokens) / stats.num_steps << " tokens a step]\n";
  }
  std::cout << "\n";
  return 0;
} catch (const bita::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
