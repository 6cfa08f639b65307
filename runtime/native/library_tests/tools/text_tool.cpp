// Answers questions about a tokenizer for tests in Python, in JSON, one per line.
//
//   text_tool TOKENIZER.json < QUESTIONS > ANSWERS
//
// {"encode": TEXT, "special": BOOL, "times": N}  -> {"ids": [...], "us": MICROSECONDS EACH}
// {"bytes": [...]}                               -> like "encode", for text that may not be UTF-8
// {"decode": [IDS], "splits": [...], "continues": BOOL}  -> {"pieces": [...]}, one for each split
//                                                           and one for flush()
// {"stop": [IDS], "eos": [...], "limit": N, "stops": [...], "stop_ids": [...]}
//                             -> {"kept": [...], "reason": TEXT, "at_token": BOOL, "text": TEXT}
// {"token": ID}, {"id": TEXT}, {"starts_special": TEXT}, {"info": null}
//
// A fault is {"fault": MESSAGE}. If the tokenizer is unusable, the only line is its fault.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "../../base/fault.h"
#include "../../base/json.h"
#include "../../text/stop_rule.h"
#include "../../text/token_text.h"

namespace bita {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

size_t peak_memory_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, 6, "VmHWM:") == 0) return std::stoul(line.substr(6));
  }
  return 0;
}

Json encoded(const TextCodec& codec, const std::string& text, const Json& question) {
  const bool special = question.value("special", false);
  const int times = question.value("times", 1);
  std::vector<int32_t> ids;
  const auto start = Clock::now();
  for (int i = 0; i < times; ++i) ids = codec.encode(text, special);
  return {{"ids", ids}, {"us", microseconds_since(start) / times}};
}

Json decoded(const TextCodec& codec, const Json& question) {
  const auto ids = question["decode"].get<std::vector<int32_t>>();
  IncrementalText text(codec, question.value("continues", false));
  std::vector<std::string> pieces;
  size_t done = 0;
  for (const size_t count : question["splits"].get<std::vector<size_t>>()) {
    const size_t end = std::min(done + count, ids.size());
    pieces.push_back(text.push(std::vector<int32_t>(ids.begin() + static_cast<long>(done),
                                                    ids.begin() + static_cast<long>(end))));
    done = end;
  }
  pieces.push_back(text.flush());
  return {{"pieces", pieces}, {"whole", codec.decode(ids)}};
}

Json stopped(const TextCodec& codec, const Json& question) {
  StopOptions options;
  options.eos_ids = question["eos"].get<std::vector<int32_t>>();
  options.max_new_tokens = question["limit"].get<int64_t>();
  options.stops = question["stops"].get<std::vector<std::string>>();
  options.stop_token_ids = question["stop_ids"].get<std::vector<int32_t>>();
  StopRule rule(IncrementalText(codec), options);
  std::vector<std::string> pieces;
  for (const int32_t id : question["stop"].get<std::vector<int32_t>>()) {
    rule.feed(id);
    pieces.push_back(rule.take_text());
  }
  pieces.push_back(rule.close());
  return {{"kept", rule.token_ids()},
          {"reason", finish_reason_name(rule.finish_reason())},
          {"at_token", rule.ended_at_token()},
          {"pieces", pieces}};
}

Json about_token(const TextCodec& codec, const Json& question) {
  if (question.contains("starts_special")) {
    return codec.starts_special(question["starts_special"].get<std::string>());
  }
  if (question.contains("id")) {
    const auto id = codec.token_id(question["id"].get<std::string>());
    return id ? Json(*id) : Json();
  }
  const auto token = codec.tokenizer().token(question["token"].get<int64_t>());
  return token ? Json(std::string(*token)) : Json();
}

Json answer(const TextCodec& codec, const Json& question, double load_us) {
  if (question.contains("encode")) {
    return encoded(codec, question["encode"].get<std::string>(), question);
  }
  if (question.contains("bytes")) {
    const auto bytes = question["bytes"].get<std::vector<uint8_t>>();
    return encoded(codec, std::string(bytes.begin(), bytes.end()), question);
  }
  if (question.contains("decode")) return decoded(codec, question);
  if (question.contains("stop")) return stopped(codec, question);
  if (question.contains("info")) {
    return {
        {"num_tokens", codec.num_tokens()}, {"load_us", load_us}, {"peak_kib", peak_memory_kib()}};
  }
  return about_token(codec, question);
}

void print(const Json& line) {
  std::cout << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
}

int run(const char* path, const char* num_rows) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::string json(static_cast<size_t>(std::max<std::streamoff>(file.tellg(), 0)), '\0');
  file.seekg(0);
  file.read(json.data(), static_cast<std::streamsize>(json.size()));
  const auto start = Clock::now();
  std::optional<int64_t> rows;
  if (num_rows) rows = std::stoll(num_rows);
  const TextCodec codec = TextCodec::parse(json, "tokenizer.json", "use another one", rows);
  const double load_us = microseconds_since(start);
  for (std::string line; std::getline(std::cin, line);) {
    try {
      print(answer(codec, Json::parse(line), load_us));
    } catch (const Fault& fault) {
      print({{"fault", fault.what()}, {"is_prompt", fault.kind() == FaultKind::kPrompt}});
    }
  }
  return 0;
}

}  // namespace
}  // namespace bita

int main(int count, char** arguments) {
  if (count < 2) return 2;
  try {
    return bita::run(arguments[1], count > 2 ? arguments[2] : nullptr);
  } catch (const bita::Fault& fault) {
    bita::print({{"fault", fault.what()}});
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
