// Renders conversations: reads requests as JSON, one per line, and writes one line for each.
//
// {"pieces": …, "messages": [{"role": …, "content": …}, …], "add_generation_prompt": true}
// Without "pieces" the last pieces are used again. The answer is {"text": …} or {"error": …}.
#include <iostream>
#include <string>
#include <vector>

#include "../../base/fault.h"
#include "../../base/json.h"
#include "../../text/chat_template.h"

namespace {

// Renders one request. chats: the templates so far; the last one is used.
bita::Json answer(const bita::Json& line, std::vector<bita::ChatTemplate>& chats) {
  if (line.contains("pieces")) {
    chats.push_back(bita::ChatTemplate::parse(line["pieces"].dump(), "pieces"));
  }
  if (chats.empty()) throw bita::Fault(bita::FaultKind::kUse, "the first line has no pieces");
  std::vector<bita::ChatMessage> messages;
  for (const bita::Json& each : line.at("messages")) {
    messages.push_back({each.at("role"), each.at("content")});
  }
  return {{"text", chats.back().render(messages, line.at("add_generation_prompt"))}};
}

}  // namespace

int main() {  // NOLINT(bugprone-exception-escape): an invalid request ends it
  std::vector<bita::ChatTemplate> chats;
  for (std::string line; std::getline(std::cin, line);) {
    bita::Json found;
    try {
      found = answer(bita::parse_json(line), chats);
    } catch (const bita::Fault& fault) {
      found = {{"error", fault.what()}};
    }
    std::cout << found.dump() << '\n';
  }
}
