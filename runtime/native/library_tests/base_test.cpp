// Tests of hashes, of values in messages, and of the fields of JSON objects.
#include <stdexcept>

#include "../base/json.h"
#include "../base/sha256.h"
#include "../tests/check.h"

namespace bita::tests {
namespace {

void expect_text(const std::string& found, const std::string& wanted) {
  expect(found == wanted, "\"" + found + "\" is not \"" + wanted + "\"");
}

const Adds hashes("SHA-256 of the standard's examples", [] {
  expect_text(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  expect_text(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  expect_text(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  expect_text(sha256(std::string(1000000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
});

const Adds values("values are shown as Python writes them", [] {
  expect_text(shown(Json::parse(R"({"a": [1, 2.5, true, null, "x"]})")),
              "{'a': [1, 2.5, True, None, 'x']}");
  expect_text(shown(std::string("it's")), "\"it's\"");
  expect_text(shown(std::string("a\nb\x01")), "'a\\nb\\x01'");
  expect_text(shown(std::string(100, 'x')), "'" + std::string(56, 'x') + "...");
  const std::string wide = "\u00e9";
  std::string text;
  for (int i = 0; i < 100; ++i) text += wide;
  const std::string cut = shown(text);
  expect(cut.size() == 1 + 2 * 56 + 3, "cut between characters, not bytes");
});

std::string fault_of(const std::string& text) {
  try {
    parse_json(text);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

const Adds broken("broken JSON is refused on one line", [] {
  expect_text(fault_of("[1, 2"), "byte 6 is not JSON");
  expect_text(fault_of(std::string(200, '[')), "it is nested over 100 deep");
  expect_text(fault_of("\"" + std::string(300, '[') + "\""), "");
  expect_text(fault_of("1e999"), "a number in it is too large");
});

const Adds fields("fields are read by name and type, and all faults are kept", [] {
  const Json object = Json::parse(R"({"whole": 3, "real": 2.0, "text": "x", "list": [1, 2]})");
  std::vector<std::string> faults;
  Fields values(object, "at.", faults);
  expect(values.whole("whole", 0, 5) == 3 && values.whole("real", 0, 5) == 2, "whole numbers");
  expect(values.whole("missing", 0, 5, 4) == 4, "the default");
  expect(values.wholes("list", 0, 5) == std::vector<int64_t>({1, 2}), "a list");
  expect(faults.empty(), "no fault so far");
  values.whole("whole", 4, 5);
  values.whole("missing", 1, kMaxIndex);
  values.text("list");
  values.number("real", 3, 4);
  values.wholes("list", 2, 9);
  const std::vector<std::string> wanted = {
      "at.whole is 3, not a whole number of 4 to 5",
      "at.missing is missing, not a whole number of 1 or more", "at.list is [1, 2], not a text",
      "at.real is 2.0, not a number of 3 to 4",
      "at.list is [1, 2], not a list of whole numbers of 2 to 9"};
  expect(faults.size() == wanted.size(), "as many faults");
  for (size_t i = 0; i < std::min(faults.size(), wanted.size()); ++i)
    expect_text(faults[i], wanted[i]);
});

}  // namespace
}  // namespace bita::tests
