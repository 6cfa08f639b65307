// Runs several threads on one engine: threads_tool ONNXRUNTIME ENGINE [ANSWERS [THREADS]]
//
// Each thread generates answers in its own sessions, which it creates, forks and frees. Another
// thread cancels some answers. All are compared with the answers of a single session. Prints counts
// as JSON; the exit status is 1 if an answer differs.
#include <atomic>
#include <bita/bita.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kPrompts = 12;
constexpr std::int64_t kTokens = 40;

using Ids = std::vector<std::int32_t>;

// A prompt, the options of its answer, and the expected answer.
struct Task {
  Ids prompt;
  bita::AnswerOptions options;
  Ids answer;  // of a single session
};

Ids tokens_of(bita::Session& session) {
  Ids ids;
  while (const auto step = session.next())
    ids.insert(ids.end(), step->token_ids, step->token_ids + step->num_token_ids);
  return ids;
}

std::vector<Task> make_tasks(const bita::Engine& engine) {
  std::mt19937 random(5);
  const auto size = static_cast<std::int32_t>(engine.info().vocab_size);
  std::uniform_int_distribution<std::int32_t> token(4, size - 1);
  std::vector<Task> tasks(kPrompts);
  bita::Session session(engine);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    Task& task = tasks[i];
    for (std::size_t length = 0; length < 5 + 8 * i; ++length) task.prompt.push_back(token(random));
    task.options.max_new_tokens = kTokens;
    task.options.ignore_eos = true;
    task.options.seed = i;
    task.options.temperature = i % 2 ? 0.8 : 0.0;
    session.start_tokens(task.prompt, task.options);
    task.answer = tokens_of(session);
  }
  return tasks;
}

// The session that the cancelling thread may cancel, or null.
struct Target {
  std::mutex mutex;
  bita_session* session = nullptr;

  void set(bita_session* answering) {
    const std::lock_guard<std::mutex> lock(mutex);
    session = answering;
  }
  void cancel() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (session) bita_cancel(session);
  }
};

struct Counts {
  std::atomic<int> answers{0}, cancelled{0}, wrong{0};
};

// Generates an answer in a new session, in a fork, or in the previous session.
void answer_one(const bita::Engine& engine, const Task& task,
                std::unique_ptr<bita::Session>& session, std::mt19937& random, Target& target,
                Counts& counts) {
  const unsigned kind = random() % 4;
  if (kind == 0 || !session) session = std::make_unique<bita::Session>(engine);
  if (kind == 1) session = std::make_unique<bita::Session>(session->fork());
  const bool may_be_cancelled = random() % 3 == 0;
  if (may_be_cancelled) target.set(session->get());
  session->start_tokens(task.prompt, task.options);
  const Ids found = tokens_of(*session);
  target.set(nullptr);
  const bool is_whole = found.size() == task.answer.size();
  const bool is_same = found.size() <= task.answer.size() &&
                       std::equal(found.begin(), found.end(), task.answer.begin());
  ++counts.answers;
  counts.cancelled += !is_whole;
  counts.wrong += !is_same || (!is_whole && !may_be_cancelled);
}

void answer_all(const bita::Engine& engine, const std::vector<Task>& tasks, int count,
                unsigned seed, Target& target, Counts& counts) {
  std::mt19937 random(seed);
  std::unique_ptr<bita::Session> session;
  for (int i = 0; i < count; ++i)
    answer_one(engine, tasks[random() % tasks.size()], session, random, target, counts);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) return 2;
  const int num_answers = count > 3 ? std::stoi(arguments[3]) : 200;
  const int num_threads = count > 4 ? std::stoi(arguments[4]) : 4;
  bita::EngineOptions options;
  options.onnxruntime_path = arguments[1];
  options.num_threads = 1;
  options.cache_bytes = 1 << 20;  // small, so that sessions take each other's pages
  const bita::Engine engine(arguments[2], options);
  const std::vector<Task> tasks = make_tasks(engine);
  Counts counts;
  std::vector<Target> targets(static_cast<std::size_t>(num_threads));
  std::atomic<bool> is_done{false};
  std::thread canceller([&] {
    std::mt19937 random(9);
    while (!is_done) {
      targets[random() % targets.size()].cancel();
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
    }
  });
  std::vector<std::thread> threads;
  threads.reserve(targets.size());
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      answer_all(engine, tasks, num_answers / num_threads, static_cast<unsigned>(i),
                 targets[static_cast<std::size_t>(i)], counts);
    });
  }
  for (std::thread& thread : threads) thread.join();
  is_done = true;
  canceller.join();
  std::cout << "{\"answers\": " << counts.answers << ", \"cancelled\": " << counts.cancelled
            << ", \"wrong\": " << counts.wrong << "}\n";
  return counts.wrong == 0 && counts.answers > 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
