// A two-way map between the strings and the ids of tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

// Returns a number that is unknown outside of the process, to seed hash tables of untrusted keys.
uint64_t hash_seed();

// The strings are stored in one block of memory. 262,144 tokens take 15 MB.
class Vocabulary {
 public:
  static constexpr uint32_t kMaxId = (1u << 22) - 1;

  // Adds a token; returns false if its string or its id already exists.
  bool add(std::string_view token, uint32_t id);

  // Frees memory reserved for more tokens.
  void shrink();

  std::optional<uint32_t> id(std::string_view token) const;
  std::optional<std::string_view> token(uint64_t id) const;

  size_t size() const { return size_; }
  uint32_t id_limit() const { return static_cast<uint32_t>(spans_.size()); }

 private:
  struct Span {
    uint32_t start = 0;
    uint32_t length = 0;
    bool is_there = false;
  };
  struct Slot {  // complete except for the text, which saves a memory access
    uint32_t hash = 0;
    uint32_t id = kNone;
    uint32_t start = 0;
    uint32_t length = 0;
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  size_t slot_of(std::string_view token, uint32_t hash) const;
  std::string_view text(uint32_t start, uint32_t length) const {
    return {text_.data() + start, length};
  }
  uint32_t hash(std::string_view token) const;
  void grow();

  uint64_t seed_ = hash_seed();
  size_t size_ = 0;
  std::string text_;
  std::vector<Span> spans_;  // by id
  std::vector<Slot> slots_;  // a power of two of them, at least a quarter free
};

}  // namespace bita
