// Small tokenizers for tests.
#pragma once

#include <string>

namespace bita::tests {

// A tokenizer.json of BPE. vocabulary, merges: JSON. parts: further members, each with a comma
// after it.
inline std::string tokenizer_json(const std::string& vocabulary, const std::string& merges,
                                  const std::string& parts = "", const std::string& options = "") {
  return "{" + parts + R"("model": {"type": "BPE", )" + options + R"("vocab": )" + vocabulary +
         R"(, "merges": )" + merges + "}}";
}

// An added token that is special.
inline std::string special_token(const std::string& content) {
  return R"({"id": 0, "content": ")" + content +
         R"(", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,)"
         R"( "special": true})";
}

}  // namespace bita::tests
