#include "character_classes.h"

#include <initializer_list>
#include <utility>

namespace bita {

namespace {

// Characters that Unicode 15, 15.1 and 16 added to each general category.
constexpr const char* kNewLu =
    "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}";
constexpr const char* kNewLl =
    "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}";
constexpr const char* kNewLm =
    "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}"
    "\\x{1e4eb}";
constexpr const char* kNewLo =
    "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}"
    "\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}"
    "\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}"
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"
    "\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}\\x{1b132}\\x{1b155}"
    "\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"
    "\\x{31350}-\\x{323af}";
constexpr const char* kNewMn =
    "\\x{897}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}"
    "\\x{113bb}-\\x{113c0}\\x{113ce}\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}"
    "\\x{11f00}-\\x{11f01}\\x{11f36}-\\x{11f3a}\\x{11f40}\\x{11f42}\\x{11f5a}\\x{13440}"
    "\\x{13447}-\\x{13455}\\x{1611e}-\\x{16129}\\x{1612d}-\\x{1612f}\\x{1e08f}"
    "\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}";
constexpr const char* kNewMc =
    "\\x{cf3}\\x{113b8}-\\x{113ba}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}"
    "\\x{113cc}-\\x{113cd}\\x{113cf}\\x{1171e}\\x{11f03}\\x{11f34}-\\x{11f35}"
    "\\x{11f3e}-\\x{11f3f}\\x{11f41}\\x{1612a}-\\x{1612c}";
constexpr const char* kNewNd =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
    "\\x{1e5f1}-\\x{1e5fa}";
constexpr const char* kNewNo = "\\x{1d2c0}-\\x{1d2d3}";
constexpr const char* kNewPd = "\\x{10d6e}";
constexpr const char* kNewPo =
    "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}"
    "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}";
constexpr const char* kNewSm = "\\x{10d8e}-\\x{10d8f}";
constexpr const char* kNewSo =
    "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}\\x{1cc00}-\\x{1ccef}"
    "\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}\\x{1f7d9}"
    "\\x{1f8b2}-\\x{1f8bb}\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}"
    "\\x{1fa8f}\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}"
    "\\x{1fada}-\\x{1fadc}\\x{1fadf}\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}"
    "\\x{1fbcb}-\\x{1fbef}";
constexpr const char* kNewCf = "\\x{13439}-\\x{1343f}";

constexpr const char* kHan =
    "\\x{2e80}-\\x{2e99}\\x{2e9b}-\\x{2ef3}\\x{2f00}-\\x{2fd5}\\x{3005}\\x{3007}"
    "\\x{3021}-\\x{3029}\\x{3038}-\\x{303b}\\x{3400}-\\x{4dbf}\\x{4e00}-\\x{9fff}"
    "\\x{f900}-\\x{fa6d}\\x{fa70}-\\x{fad9}\\x{16fe2}-\\x{16fe3}\\x{16ff0}-\\x{16ff1}"
    "\\x{20000}-\\x{2a6df}\\x{2a700}-\\x{2b739}\\x{2b740}-\\x{2b81d}\\x{2b820}-\\x{2cea1}"
    "\\x{2ceb0}-\\x{2ebe0}\\x{2ebf0}-\\x{2ee5d}\\x{2f800}-\\x{2fa1d}\\x{30000}-\\x{3134a}"
    "\\x{31350}-\\x{323af}";
constexpr const char* kHiragana =
    "\\x{3041}-\\x{3096}\\x{309d}-\\x{309f}\\x{1b001}-\\x{1b11f}\\x{1b132}"
    "\\x{1b150}-\\x{1b152}\\x{1f200}";
constexpr const char* kKatakana =
    "\\x{30a1}-\\x{30fa}\\x{30fd}-\\x{30ff}\\x{31f0}-\\x{31ff}\\x{32d0}-\\x{32fe}"
    "\\x{3300}-\\x{3357}\\x{ff66}-\\x{ff6f}\\x{ff71}-\\x{ff9d}\\x{1aff0}-\\x{1aff3}"
    "\\x{1aff5}-\\x{1affb}\\x{1affd}-\\x{1affe}\\x{1b000}\\x{1b120}-\\x{1b122}\\x{1b155}"
    "\\x{1b164}-\\x{1b167}";
constexpr const char* kHangul =
    "\\x{1100}-\\x{11ff}\\x{302e}-\\x{302f}\\x{3131}-\\x{318e}\\x{3200}-\\x{321e}"
    "\\x{3260}-\\x{327e}\\x{a960}-\\x{a97c}\\x{ac00}-\\x{d7a3}\\x{d7b0}-\\x{d7c6}"
    "\\x{d7cb}-\\x{d7fb}\\x{ffa0}-\\x{ffbe}\\x{ffc2}-\\x{ffc7}\\x{ffca}-\\x{ffcf}"
    "\\x{ffd2}-\\x{ffd7}\\x{ffda}-\\x{ffdc}";
constexpr const char* kThai = "\\x{e01}-\\x{e3a}\\x{e40}-\\x{e5b}";

constexpr const char* kNoPunctuation =
    "\\x{61d}\\x{9fd}\\x{a76}\\x{c77}\\x{c84}\\x{1b4e}-\\x{1b4f}\\x{1b7d}-\\x{1b7f}"
    "\\x{2e43}-\\x{2e4f}\\x{2e52}-\\x{2e5d}\\x{10d6e}\\x{10ead}\\x{10f55}-\\x{10f59}"
    "\\x{10f86}-\\x{10f89}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}\\x{1144b}-\\x{1144f}"
    "\\x{1145a}-\\x{1145b}\\x{1145d}\\x{11660}-\\x{1166c}\\x{116b9}\\x{1183b}"
    "\\x{11944}-\\x{11946}\\x{119e2}\\x{11a3f}-\\x{11a46}\\x{11a9a}-\\x{11a9c}"
    "\\x{11a9e}-\\x{11aa2}\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11c41}-\\x{11c45}"
    "\\x{11c70}-\\x{11c71}\\x{11ef7}-\\x{11ef8}\\x{11f43}-\\x{11f4f}\\x{11fff}"
    "\\x{12ff1}-\\x{12ff2}\\x{16d6d}-\\x{16d6f}\\x{16e97}-\\x{16e9a}\\x{16fe2}\\x{1e5ff}"
    "\\x{1e95e}-\\x{1e95f}";
constexpr const char* kNoAccents =
    "\\x{7fd}\\x{897}-\\x{89f}\\x{8ca}-\\x{8d3}\\x{9fe}\\x{afa}-\\x{aff}\\x{b55}\\x{c04}"
    "\\x{c3c}\\x{cf3}\\x{d00}\\x{d3b}-\\x{d3c}\\x{d81}\\x{eba}\\x{ece}\\x{1715}\\x{180f}"
    "\\x{1abf}-\\x{1ace}\\x{1cf7}\\x{1df6}-\\x{1dfa}\\x{a82c}\\x{a8ff}\\x{10d24}-\\x{10d27}"
    "\\x{10d69}-\\x{10d6d}\\x{10eab}-\\x{10eac}\\x{10efc}-\\x{10eff}\\x{10f46}-\\x{10f50}"
    "\\x{10f82}-\\x{10f85}\\x{11070}\\x{11073}-\\x{11074}\\x{110c2}\\x{11145}-\\x{11146}"
    "\\x{111c9}\\x{111ce}-\\x{111cf}\\x{11241}\\x{1133b}\\x{113b8}-\\x{113c0}\\x{113c2}"
    "\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}"
    "\\x{1145e}\\x{1182c}-\\x{1183a}\\x{11930}-\\x{11935}\\x{11937}-\\x{11938}"
    "\\x{1193b}-\\x{1193e}\\x{11940}\\x{11942}-\\x{11943}\\x{119d1}-\\x{119d7}"
    "\\x{119da}-\\x{119e0}\\x{119e4}\\x{11a01}-\\x{11a0a}\\x{11a33}-\\x{11a39}"
    "\\x{11a3b}-\\x{11a3e}\\x{11a47}\\x{11a51}-\\x{11a5b}\\x{11a8a}-\\x{11a99}"
    "\\x{11d31}-\\x{11d36}\\x{11d3a}\\x{11d3c}-\\x{11d3d}\\x{11d3f}-\\x{11d45}\\x{11d47}"
    "\\x{11d8a}-\\x{11d8e}\\x{11d90}-\\x{11d91}\\x{11d93}-\\x{11d97}\\x{11ef3}-\\x{11ef6}"
    "\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}\\x{11f5a}"
    "\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}\\x{16f4f}\\x{16f7f}-\\x{16f87}"
    "\\x{16fe4}\\x{16ff0}-\\x{16ff1}\\x{1cf00}-\\x{1cf2d}\\x{1cf30}-\\x{1cf46}\\x{1e08f}"
    "\\x{1e130}-\\x{1e136}\\x{1e2ae}\\x{1e2ec}-\\x{1e2ef}\\x{1e4ec}-\\x{1e4ef}"
    "\\x{1e5ee}-\\x{1e5ef}";

// Letters, marks and numbers that belong to words.
constexpr const char* kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
    "\\x{1f170}-\\x{1f189}";
constexpr const char* kWordOfOniguruma = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
constexpr const char* kWordOfRust = "\\x{200c}\\x{200d}";

// PCRE2's own \s has U+180E too.
constexpr const char* kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

std::string joined(std::initializer_list<const char*> parts) {
  std::string all;
  for (const char* part : parts) all += part;
  return all;
}

std::string new_letters() { return joined({kNewLu, kNewLl, kNewLm, kNewLo}); }
std::string new_marks() { return joined({kNewMn, kNewMc}); }
std::string new_numbers() { return joined({kNewNd, kNewNo}); }

std::string new_members(std::string_view category) {
  const std::pair<std::string_view, const char*> kAdded[] = {
      {"Lu", kNewLu}, {"Ll", kNewLl}, {"Lm", kNewLm}, {"Lo", kNewLo}, {"Mn", kNewMn},
      {"Mc", kNewMc}, {"Nd", kNewNd}, {"No", kNewNo}, {"Pd", kNewPd}, {"Po", kNewPo},
      {"Sm", kNewSm}, {"So", kNewSo}, {"Cf", kNewCf}};
  if (category == "L") return new_letters();
  if (category == "M") return new_marks();
  if (category == "N") return new_numbers();
  if (category == "P") return joined({kNewPd, kNewPo});
  if (category == "S") return joined({kNewSm, kNewSo});
  for (const auto& [name, members] : kAdded) {
    if (name == category) return members;
  }
  return "";
}

std::string words() {
  return joined({kWord, kNewLu, kNewLl, kNewLm, kNewLo, kNewMn, kNewMc, kNewNd});
}

std::string script_members(std::string_view name) {
  if (name == "Han") return kHan;
  if (name == "Hiragana") return kHiragana;
  if (name == "Katakana") return kKatakana;
  if (name == "Hangul") return kHangul;
  if (name == "Thai") return kThai;
  return "";
}

}  // namespace

std::string property_members(std::string_view name) {
  // Cn and C are missing because they change with every version of Unicode.
  constexpr std::string_view kCategories =
      " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc "
      "Cf Co ";
  const std::string padded = " " + std::string(name) + " ";
  if (name.empty() || kCategories.find(padded) == std::string_view::npos) {
    return script_members(name);
  }
  return "\\p{" + std::string(name) + "}" + new_members(name);
}

std::string space_members() { return kSpace; }
std::string word_members(bool in_set) { return in_set ? words() : words() + kWordOfOniguruma; }
std::string hex_members() { return "0-9A-Fa-f"; }

std::string rust_word() { return "[" + words() + kWordOfRust + "]"; }

std::string rust_words_and_marks() {
  const std::string word = words() + kWordOfRust;
  return "[" + word + "]+|[^" + word + kSpace + "]+";
}

std::string numeric_character() {  // of Unicode 17
  return "[\\p{N}" + new_numbers() + "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}]";
}

std::string punctuation_character() {  // of an early Unicode, and of ASCII
  return std::string("(?![") + kNoPunctuation + "])[\\p{P}$+<=>\\^`|~\\x{166d}\\x{111c9}]";
}

std::string combining_mark() {  // of Unicode 9
  return std::string("(?![") + kNoAccents + "])[\\p{M}\\x{1cf2}\\x{1cf3}]";
}

}  // namespace bita
