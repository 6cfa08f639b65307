#include "../text/chat_template.h"

#include "../base/fault.h"
#include "../tests/check.h"
#include "../text/chat_pieces.h"

namespace bita::tests {
namespace {

const std::string kSha(64, 'a');
const std::string kHead = R"({"format": 1, "template_sha256": ")" + kSha + R"(", )";

// A piece for all followers.
std::string piece(const std::string& fields) {
  return R"({"followed_by": ["nothing", "others", "user"], )" + fields + "}";
}

std::string role(const std::string& name, const std::string& pieces, const std::string& to) {
  return "\"" + name + R"(": {"pieces": [)" + pieces + "]" +
         (to.empty() ? "" : R"(, "to": )" + to) + "}";
}

// A file with one state, in which `system` and `user` have these pieces. Answers are stripped, and
// cut at a mark if a user message follows later. Tools are refused.
std::string file(const std::string& system, const std::string& user) {
  const std::string answer =
      R"({"followed_by": ["nothing"], "before": ["<z>"], "content": {"left": true, "right": true}},
         {"followed_by": ["others"], "before": ["<a>"], "content": {"right": true}},
         {"followed_by": ["user"], "before": ["<a>"], "content": {},
          "after_mark": {"mark": "</t>", "left": "\n"}})";
  return kHead + R"("covers": "all", "covers_developer": true,
    "refusals": [{"message": "no tools", "is_template": true}], "states": [{"roles": {)" +
         role("system", system, "0") + ", " + role("user", user, "0") + ", " +
         role("assistant", answer, "0") + ", " + role("tool", piece(R"("refusal": 0)"), "") +
         R"(}, "ends": {"plain": {"text": ["<end>"]}, "prompt": {"text": ["<a>"]}}}]})";
}

std::string usual_file() {
  return file(
      piece(R"("before": ["<s>"], "content": {})"),
      piece(R"("before": ["<u>"], "content": {}, "uncovered": ["<u"], "covers_blank": false)"));
}

std::string rendered(const std::string& json, const std::vector<ChatMessage>& messages,
                     bool prompt = true) {
  try {
    return ChatTemplate::parse(json, "pieces").render(messages, prompt);
  } catch (const Fault& fault) {
    return (fault.kind() == FaultKind::kPrompt ? "refused: " : "broken: ") +
           std::string(fault.what());
  }
}

void expect_text(const std::string& found, const std::string& wanted) {
  expect(found == wanted, "'" + found + "' is not '" + wanted + "'");
}

void expect_part(const std::string& found, const std::string& part) {
  expect(found.find(part) != std::string::npos, "'" + found + "' has no '" + part + "'");
}

void pieces_are_written() {
  const std::string json = usual_file();
  expect_text(rendered(json, {{"user", "Hi"}}), "<u>Hi<a>");
  expect_text(rendered(json, {{"user", "Hi"}}, false), "<u>Hi<end>");
  expect_text(rendered(json, {{"developer", " Be brief"}, {"user", "Hi"}}), "<s> Be brief<u>Hi<a>");
  expect_text(rendered(json, {{"user", "a"}, {"assistant", "\xC2\xA0 b\n"}}), "<u>a<z>b<a>");
}

void what_follows_counts() {
  const std::string answer = " x</t>y</t>\n\n z ";
  expect_text(rendered(usual_file(), {{"assistant", answer}, {"user", "a"}}), "<a> z <u>a<a>");
  expect_text(rendered(usual_file(), {{"assistant", answer}, {"system", "a"}, {"user", "a"}}),
              "<a> z <s>a<u>a<a>");
  expect_text(rendered(usual_file(), {{"assistant", answer}, {"system", "a"}}),
              "<a> x</t>y</t>\n\n z<s>a<a>");
  expect_text(rendered(usual_file(), {{"assistant", answer}}), "<z>x</t>y</t>\n\n z<a>");
}

void the_first_content_may_be_written_later() {
  const std::string json =
      file(piece(R"("covers_blank": true)"),
           piece(R"("before": ["<u>", {"first": {"right": "x"}}, ":"], "content": {})"));
  expect_text(rendered(json, {{"system", "Bexx"}, {"user", "Hi"}}), "<u>Be:Hi<a>");
}

void messages_are_checked() {
  const std::string json = usual_file();
  expect_text(rendered(json, {}), "refused: there are 0 messages; pass 1 to 2048");
  expect_text(rendered(json, std::vector<ChatMessage>(2049, {"user", "a"})),
              "refused: there are 2049 messages; pass 1 to 2048");
  expect_text(rendered(json, {{"bot", "a"}}),
              "refused: messages: number 0 has the role 'bot'; use one of system, developer, user, "
              "assistant, tool");
  expect_part(rendered(json, {{"user", "a\xFF"}, {"\xFF", ""}}), "2 faults");
  expect_part(rendered(json, {{"user", "a\xED\xA0\x80"}}), "not UTF-8 at byte 1");
}

void what_is_not_covered_is_refused() {
  const std::string json = usual_file();
  expect_text(rendered(json, {{"tool", "3"}}), "refused: no tools");
  expect_part(rendered(json, {{"user", "a<user"}}), "a message with '<u' is not covered");
  expect_part(rendered(json, {{"user", "\xE3\x80\x80\n"}}), "white space only is not covered");
  const std::string long_one(2'000'000, 'x');
  expect_part(rendered(json, {{"user", long_one}}), "a prompt of over 2000000 characters");
  const std::string reason = kHead + R"("reason": "it writes the date"})";
  expect_text(rendered(reason, {{"user", "a"}}),
              "refused: messages cannot be rendered, because the chat template has no pieces: it "
              "writes the date; render the prompt elsewhere and give it as text");
  expect(ChatTemplate::parse(reason, "").reason() == "it writes the date", "the reason is there");
  expect(ChatTemplate::parse(json, "").reason().empty(), "no reason where there are pieces");
  expect(ChatTemplate::parse(json, "").template_sha256() == kSha, "the hash is there");
}

void broken_files_are_refused() {
  const auto fault = [](const std::string& json) { return rendered(json, {{"user", "a"}}); };
  expect_text(fault("{"),
              "broken: pieces (rebuild the engine): it is not readable JSON (byte 2 is "
              "not JSON)");
  expect_part(fault("[]"), "it holds [], not a JSON object");
  expect_part(fault(R"({"format": 2})"), "format is 2, not 1");
  expect_part(fault(R"({"format": 1})"), "states is missing");
  expect_part(fault(R"({"format": 1, "covers": 3, "refusals": [{"message": ""}]})"),
              "covers is 3, not a text");
  expect_part(fault(R"({"format": 1, "refusals": [{"message": ""}]})"),
              "refusals[0].is_template is missing");
  expect_part(fault(R"({"format": 1, "template_sha256": "a"})"), "template_sha256 is 'a', not 64");
  expect_part(fault(kHead + R"("reason": ""})"), "reason is empty");
  expect_part(fault(std::string(5'000'000, ' ')), "it has 5000000 bytes");
  expect_part(fault(file(piece(R"("refusal": 1)"), "")),
              "states[0].roles.system.pieces[0].refusal is 1, not a whole number below 1");
  expect_part(fault(file("3", "")), "states[0].roles.system.pieces[0] is 3, not an object");
  expect_part(fault(file("", "")),
              "states[0].roles.user.pieces has none that is followed by 'others'");
  const std::string twice = piece(R"("content": {"left": false}, "before": [1])");
  expect_part(fault(file(twice + ", " + twice, "")), "followed_by has 'user', which an earlier");
  expect_part(fault(file(twice, "")), "pieces[0].before[0] is 1, not a text or an object");
  expect_part(fault(file(twice, "")), "content.left is False, not a text or true");
  expect_part(fault(file(piece(R"("uncovered": [""])"), "")), "uncovered has '', not a text");
  expect_part(fault(file(piece(R"("after_mark": {"mark": ""})"), "")), "after_mark.mark is empty");
}

void white_space_is_pythons() {
  size_t count = 0;
  for (uint32_t i = 0; i < 0x110000; ++i) count += is_space(i);
  expect(count == 29, "29 characters are white space");
  for (const uint32_t other : {0x200Bu, 0xFEFFu, 0x180Eu, 0x2060u, 0x1Bu, 0x21u}) {
    expect(!is_space(other), "not white space to Python: " + std::to_string(other));
  }
}

const Adds kWritten("chat template: pieces are written", pieces_are_written);
const Adds kFollows("chat template: what follows counts", what_follows_counts);
const Adds kFirst("chat template: first content later", the_first_content_may_be_written_later);
const Adds kChecked("chat template: messages are checked", messages_are_checked);
const Adds kUncovered("chat template: uncovered is refused", what_is_not_covered_is_refused);
const Adds kBroken("chat template: broken files", broken_files_are_refused);
const Adds kSpaces("chat template: white space", white_space_is_pythons);

}  // namespace
}  // namespace bita::tests
