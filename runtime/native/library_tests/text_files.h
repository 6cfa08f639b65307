// Small tokenizer files for tests.
#pragma once

#include <string>

namespace bita::tests {

// Returns a tokenizer.json of a BPE model. vocabulary, merges: JSON. parts: further members, each
// followed by a comma.
inline std::string tokenizer_json(const std::string& vocabulary, const std::string& merges,
                                  const std::string& parts = "", const std::string& options = "") {
  return "{" + parts + R"("model": {"type": "BPE", )" + options + R"("vocab": )" + vocabulary +
         R"(, "merges": )" + merges + "}}";
}

// Returns a special added token.
inline std::string special_token(const std::string& content) {
  return R"({"id": 0, "content": ")" + content +
         R"(", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,)"
         R"( "special": true})";
}

}  // namespace bita::tests
