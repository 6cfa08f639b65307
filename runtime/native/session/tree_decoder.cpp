#include "tree_decoder.h"

#include <algorithm>
#include <chrono>

#include "soundness.h"

namespace bita {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point began, Clock::time_point ended) {
  return std::chrono::duration<double, std::milli>(ended - began).count();
}

// The acceptable children of each node: only those on the spine if branches are not accepted.
std::vector<std::vector<int64_t>> accepted_children(const Tree& tree, bool accepts_branches) {
  std::vector<std::vector<int64_t>> children = tree.children();
  if (accepts_branches) return children;
  for (auto& nodes : children) {
    nodes.erase(std::remove_if(nodes.begin(), nodes.end(),
                               [&](int64_t node) { return node > tree.spine_length(); }),
                nodes.end());
  }
  return children;
}

}  // namespace

void TokenSequence::extend(const std::vector<int64_t>& ids) {
  token_ids.insert(token_ids.end(), ids.begin(), ids.end());
  if (guesses) guesses->extend(ids.data(), static_cast<int64_t>(ids.size()));
}

TreeDecoder::BoundTree::BoundTree(StepHost& host, const Tree& bound, const BoundAdapter& adapter,
                                  bool with_logits, std::shared_ptr<const PairTables> pairs,
                                  const StepRules& rules)
    : tree(bound),
      step(host, tree_layout(bound, rules.min_rows), adapter, with_logits),
      drafter(bound, std::move(pairs)),
      children(accepted_children(bound, rules.accepts_branches)) {}

TreeDecoder::TreeDecoder(StepHost& host, std::shared_ptr<const BoundAdapter> adapter,
                         TreeTable table, const StepRules& rules,
                         std::shared_ptr<const PairTables> pairs)
    : host_(host),
      adapter_(std::move(adapter)),
      table_(std::move(table)),
      rules_(rules),
      depth_(table_.max_depth()),
      pairs_(std::move(pairs)) {
  raise_faults(FaultKind::kTree, "the tree does not fit the engine",
               table_.misfits(adapter_->adapter().num_masks(), host.manifest().num_ranks,
                              host.capacity() - adapter_->prefix_length()));
  if (!table_.costs.empty()) guarded_ = std::make_unique<GuardedTrees>(table_);
}

int64_t TreeDecoder::max_prompt_tokens() const {
  const int64_t num_slots = std::max(rules_.min_rows, host_.graph().min_slots());
  return host_.capacity() - adapter_->prefix_length() - num_slots;
}

void TreeDecoder::check_prompt(const std::vector<int64_t>& token_ids) const {
  const auto count = static_cast<int64_t>(token_ids.size());
  if (!count) throw Fault(FaultKind::kPrompt, "the prompt is empty; give at least one token");
  if (count > max_prompt_tokens()) {
    throw Fault(FaultKind::kPrompt, "the prompt has " + std::to_string(count) +
                                        " tokens; this engine holds " +
                                        std::to_string(max_prompt_tokens()) +
                                        ": shorten it, or rebuild with a larger CAPACITY");
  }
  const int64_t size = host_.manifest().vocab_size;
  for (const int64_t token : token_ids) {
    if (token >= 0 && token < size) continue;
    throw Fault(FaultKind::kPrompt, "token ids must be in [0, " + std::to_string(size) +
                                        "); the prompt has " + std::to_string(token));
  }
}

bool TreeDecoder::is_full(const TokenSequence& sequence) const {
  return sequence.has_answer() &&
         static_cast<int64_t>(sequence.token_ids.size()) - 1 > max_prompt_tokens();
}

TokenSequence TreeDecoder::begin(const std::vector<int64_t>& prompt_ids, Chooser chooser) const {
  const Adapter& adapter = adapter_->adapter();
  const int64_t num_ranks = host_.manifest().num_ranks;
  const auto num_prompt = static_cast<int64_t>(prompt_ids.size());
  TokenSequence sequence{
      {},          num_prompt,         Drafts(std::max(depth_, adapter.num_masks()), num_ranks),
      nullptr,     std::move(chooser), std::nullopt,
      std::nullopt};
  if (table_.uses_text() && num_ranks <= kMaxDrafts) {
    GuessSources sources{};
    if (adapter.continuations) {
      sources.marks = adapter.continuations->marks.data();
      sources.values = adapter.continuations->values.data();
      sources.num_slots = static_cast<int64_t>(adapter.continuations->values.size());
    }
    if (pairs_) sources.pairs = {pairs_->left, pairs_->right, pairs_->rank};
    sources.ids = sequence.drafts.ids.data();
    sources.logits = sequence.drafts.logits.data();
    sources.max_masks = static_cast<int64_t>(sequence.drafts.ids.size()) / num_ranks;
    sources.num_ranks = num_ranks;
    sources.bonuses = adapter.bonuses.data();
    sequence.guesses = std::make_unique<Guesses>(sources);
  }
  if (guarded_) sequence.guard.emplace(*guarded_);
  sequence.extend(prompt_ids);
  return sequence;
}

std::vector<int64_t> TreeDecoder::step(TokenSequence& sequence, CachedText& text, Stats& stats) {
  const size_t num_tokens = sequence.token_ids.size();
  try {
    next_step(sequence, text, stats);
  } catch (const UnsoundFault&) {
    if (sequence.is_plain) throw;
    sequence.is_plain = true;  // invalid values from mask rows must not affect the text
    text.clear_rest();
    next_step(sequence, text, stats);
  }
  sequence.num_read = std::max(sequence.num_read, text.length());
  return {sequence.token_ids.begin() + static_cast<int64_t>(num_tokens), sequence.token_ids.end()};
}

void TreeDecoder::next_step(TokenSequence& sequence, CachedText& text, Stats& stats) {
  if (!sequence.num_reused) {
    host_.take_prefix(text, adapter_->adapter());
    sequence.num_reused = text.length();
    stats.num_prompt_tokens += sequence.num_prompt_tokens;
    stats.num_reused_tokens += text.length();
  }
  const int64_t num_missing = static_cast<int64_t>(sequence.token_ids.size()) - text.length();
  if (sequence.has_answer() && num_missing == 1) {
    advance(sequence, text, stats);
    return;
  }
  const auto began = Clock::now();
  read(sequence, text, num_missing);
  stats.prefill_ms += milliseconds(began, Clock::now());
}

void TreeDecoder::read(TokenSequence& sequence, CachedText& text, int64_t num_missing) {
  if (sequence.has_answer() || num_missing > rules_.prefill_rows) {
    const int64_t count = std::min(num_missing - 1, rules_.prefill_rows);
    read_piece(sequence.token_ids.data() + text.length(), count, text);
  } else {
    read_end(sequence, text, num_missing);
  }
}

void TreeDecoder::read_piece(const int64_t* tokens, int64_t count, CachedText& text) {
  const bool is_whole = count == rules_.prefill_rows;
  std::unique_ptr<BoundStep> made;
  std::unique_ptr<BoundStep>& step = is_whole ? whole_piece_ : made;
  if (!step) {
    step = std::make_unique<BoundStep>(host_, prefill_layout(count, 0, rules_.min_rows), *adapter_,
                                       false);
  }
  std::copy(tokens, tokens + count, step->token_ids());
  step->run(text);
  text.append(count);
}

// Run the last piece of the prompt with the first mask group after it, and choose the token that
// follows.
void TreeDecoder::read_end(TokenSequence& sequence, CachedText& text, int64_t count) {
  const int64_t room = host_.capacity() - adapter_->prefix_length() - text.length() - count;
  const int64_t num_masks = sequence.is_plain ? 0 : std::min(table_.max_masks(), room);
  BoundStep step(host_, prefill_layout(count, num_masks, rules_.min_rows), *adapter_,
                 sequence.chooser.needs_logits());
  const int64_t* tokens = sequence.token_ids.data() + text.length();
  std::copy(tokens, tokens + count, step.token_ids());
  step.run(text);
  text.append(count);
  sequence.drafts.read(step.top_ids(1), step.top_logits(1), num_masks);
  sequence.extend({choose(sequence, step, 0)});
}

void TreeDecoder::advance(TokenSequence& sequence, CachedText& text, Stats& stats) {
  const auto began = Clock::now();
  const PickedTree picked = pick_tree(sequence, text);
  BoundTree& bound = *picked.bound;
  int64_t* tokens = bound.step.token_ids();
  tokens[0] = sequence.token_ids.back();
  bound.drafter.fill(tokens, sequence.drafts, picked.guess);
  const auto ran = Clock::now();
  bound.step.run(text);
  const auto returned = Clock::now();
  std::vector<int64_t> path = {0}, emitted;
  while (true) {  // follow the children that hold each node's chosen token
    const int64_t node = path.back();
    emitted.push_back(choose(sequence, bound.step, node));
    if (sequence.chooser.has_ended()) break;
    const auto& children = bound.children[static_cast<size_t>(node)];
    const auto child = std::find_if(children.begin(), children.end(),
                                    [&](int64_t each) { return tokens[each] == emitted.back(); });
    if (child == children.end()) break;
    path.push_back(*child);
  }
  text.commit(path);
  const int64_t last = path.back(), first_mask = bound.tree.first_mask_row(last);
  const int64_t num_masks = bound.tree.num_masks()[static_cast<size_t>(last)];
  if (num_masks) {
    sequence.drafts.read(bound.step.top_ids(first_mask), bound.step.top_logits(first_mask),
                         num_masks);
  }
  sequence.drafts.num_masks = num_masks;
  if (sequence.guard) {
    const bool is_right = !picked.guess.empty() && picked.guess[0][0] == emitted[0];
    const auto count = static_cast<int64_t>(emitted.size());
    stats.num_guarded_steps += sequence.guard->count(count, is_right);
  }
  sequence.extend(emitted);
  const auto num_guesses = picked.from_masks ? 0 : static_cast<int64_t>(picked.guess.size());
  stats.count_step(bound.tree.path(last), num_guesses);
  stats.step_ms += milliseconds(began, Clock::now());
  stats.backend_ms += milliseconds(ran, returned);
}

int64_t TreeDecoder::choose(TokenSequence& sequence, BoundStep& step, int64_t row) const {
  if (!sequence.chooser.needs_logits()) return step.top_ids(row)[0];
  return sequence.chooser.choose(step.logits(row), host_.manifest().vocab_size);
}

// Pick the tree of a sequence's next round: that of its state, a smaller one if the guard says so,
// or the root if the cache has no room for the state's. The guess has one token more than a smaller
// tree's spine if the guard judges the guess that the spine would have held.
TreeDecoder::PickedTree TreeDecoder::pick_tree(TokenSequence& sequence, const CachedText& text) {
  const bool with_logits = sequence.chooser.needs_logits();
  PickedTree picked;
  picked.bound = &narrow_tree(with_logits);
  if (sequence.is_plain) return picked;
  const Known known = look(sequence);
  const size_t number = table_.number(sequence.drafts.num_masks, known.level);
  BoundTree& bound = bound_tree(number, with_logits);
  if (text.length() > bound.step.max_length()) return picked;
  picked.bound = &bound;
  if (sequence.guard) {
    const size_t smaller = sequence.guard->pick(number, known.level, known.from_masks);
    picked.bound = &bound_tree(smaller, with_logits);
    const int64_t judged = sequence.guard->judged_level();
    if (judged && sequence.guesses) {
      picked.guess = candidates(sequence, 1, judged);
      return picked;
    }
  }
  const Tree& tree = picked.bound->tree;
  if (!sequence.guesses || !tree.min_level()) return picked;
  picked.guess = candidates(sequence, tree.max_depth(), tree.min_level());
  picked.from_masks = known.from_masks;
  return picked;
}

TreeDecoder::Known TreeDecoder::look(const TokenSequence& sequence) const {
  if (!sequence.guesses) return {};
  GuessesFound found{};
  found.width = std::max<int64_t>(sequence.drafts.num_ranks, 2);
  if (sequence.guesses->look(sequence.drafts.num_masks, 0, found) != 0) return {};
  return {found.level, found.from_masks != 0};
}

Guess TreeDecoder::candidates(const TokenSequence& sequence, int64_t count,
                              int64_t min_level) const {
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  GuessesFound found{};
  found.max_places = count;
  found.width = std::max<int64_t>(sequence.drafts.num_ranks, 2);
  std::vector<int64_t> tokens(static_cast<size_t>(count * found.width));
  found.lengths = lengths.data();
  found.tokens = tokens.data();
  Guess guess;
  if (sequence.guesses->look(sequence.drafts.num_masks, count, found) != 0) return guess;
  if (found.level < std::max<int64_t>(min_level, 1)) return guess;
  for (int64_t place = 0; place < found.num_places; ++place) {
    const int64_t* first = tokens.data() + place * found.width;
    guess.emplace_back(first, first + lengths[static_cast<size_t>(place)]);
  }
  return guess;
}

TreeDecoder::BoundTree& TreeDecoder::bound_tree(size_t number, bool with_logits) {
  const Tree& tree = (guarded_ ? guarded_->trees() : table_.trees)[number];
  if (tree == Tree::root_only()) return narrow_tree(with_logits);
  std::unique_ptr<BoundTree>& bound = bound_[{number, with_logits}];
  if (!bound) {
    bound = std::make_unique<BoundTree>(host_, tree, *adapter_, with_logits, pairs_, rules_);
  }
  return *bound;
}

TreeDecoder::BoundTree& TreeDecoder::narrow_tree(bool with_logits) {
  std::unique_ptr<BoundTree>& bound = narrow_[with_logits];
  if (!bound) {
    bound = std::make_unique<BoundTree>(host_, Tree::root_only(), *adapter_, with_logits, pairs_,
                                        rules_);
  }
  return *bound;
}

}  // namespace bita
