#include "engine/text/grammar/matcher.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr int32_t kNotYet = -2;
// Masks that are kept; of 248,320 tokens each has 31 KB.
constexpr size_t kMostMasks = 512;
constexpr size_t kMostLocalMasks = 512;
// A subtree of fewer nodes is walked: to look a state's run up takes longer.
constexpr int32_t kFewestNodes = 4;
// A run is looked at so far ahead; the few tokens that are longer are walked.
constexpr int kFarthest = 48;
// Within a text most letters lead to one state.
constexpr char kLikelyCharacters[] = {'e', '0', ' ', 'E', '_'};
// Of one place; a place with more is walked with what is around it.
constexpr size_t kMostExits = 16384;

[[noreturn]] void too_large(const char* what) {
  throw InputError(std::string("grammar: it has too many ") + what +
                   " on this text; make it less ambiguous or less nested");
}

}  // namespace

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> tokens)
    : grammar_(std::move(grammar)), tokens_(std::move(tokens)) {
  const std::vector<Grammar::Node>& nodes = grammar_->nodes();
  // A call whose return leads nowhere but to the rule's end leaves nothing on the stack, or lists would grow it.
  tail_.assign(nodes.size(), 0);
  for (size_t i = 0; i < nodes.size(); ++i) {
    size_t at = i;
    for (size_t n = 0; n < nodes.size() && !tail_[i]; ++n) {
      const Grammar::Node& x = nodes[at];
      if (!x.edges.empty() || !x.calls.empty() || n > 64) break;
      if (x.is_end && x.silent.empty()) tail_[i] = 1;
      if (x.is_end || x.silent.size() != 1) break;
      at = static_cast<size_t>(x.silent[0]);
    }
  }
  path_.resize(static_cast<size_t>(tokens_->most_depth()) + 1);
  start_ = close(Place{grammar_->root(), kBottom});
}

int32_t GrammarMatcher::push(int32_t back, int32_t below) {
  if (tail_[back] != 0) return below;
  const uint64_t key = (static_cast<uint64_t>(static_cast<uint32_t>(back)) << 32) | static_cast<uint32_t>(below);
  const auto [found, is_new] = by_stack_.try_emplace(key, static_cast<int32_t>(stacks_.size()));
  if (is_new) {
    if (stacks_.size() >= kMostStacks) too_large("nested rules");
    stacks_.push_back({back, below});
  }
  return found->second;
}

// True if it was not in the list.
bool GrammarMatcher::PlaceList::add(Place place) {
  if (places.size() < kFewPlaces) {
    if (std::find(places.begin(), places.end(), place) != places.end()) return false;
  } else {
    if (places.size() == kFewPlaces) known.insert(places.begin(), places.end());
    if (!known.insert(place).second) return false;
  }
  places.push_back(place);
  return true;
}

// The state of all places that are reached from these without a byte.
GrammarMatcher::State GrammarMatcher::close(std::span<const Place> from) {
  StateData data;
  reached_.clear();
  for (const Place& place : from) (void)reached_.add(place);
  const auto reach = [&](Place place) {
    if (reached_.add(place) && reached_.places.size() > 16 * kMostPlaces) too_large("ways to go on");
  };
  // The list grows while it is gone through.
  for (size_t i = 0; i < reached_.places.size(); ++i) {
    const Place place = reached_.places[i];
    const Grammar::Node& node = grammar_->nodes()[place.node];
    if (!node.edges.empty()) data.places.push_back(place);
    for (const int32_t to : node.silent) reach({to, place.stack});
    for (const Grammar::Call& call : node.calls) reach({call.start, push(call.back, place.stack)});
    if (!node.is_end) continue;
    if (place.stack == kBottom) {
      data.is_complete = true;
    } else if (place.stack == kUnknown) {
      data.is_left = true;
    } else {
      const StackNode top = stacks_[place.stack];
      reach({top.back, top.below});
    }
  }
  if (data.places.empty() && !data.is_complete && !data.is_left) return kDead;
  if (data.places.size() > kMostPlaces) too_large("ways to go on");
  std::sort(data.places.begin(), data.places.end());
  uint64_t hash = data.is_complete ? 1 : data.is_left ? 2 : 0;
  for (const Place& place : data.places) {
    hash = (hash ^ static_cast<uint32_t>(place.node)) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ (hash >> 29) ^ static_cast<uint32_t>(place.stack)) * 0xbf58476d1ce4e5b9u;
  }
  const auto [begin, end] = by_places_.equal_range(hash);
  for (auto known = begin; known != end; ++known) {
    const StateData& other = states_[known->second];
    if (other.is_complete == data.is_complete && other.is_left == data.is_left && other.places == data.places)
      return known->second;
  }
  const auto classes = static_cast<size_t>(grammar_->num_byte_classes());
  if (states_.size() >= kMostStates || (states_.size() + 1) * classes * sizeof(int32_t) > kMostStepBytes)
    too_large("states");
  const auto state = static_cast<State>(states_.size());
  states_.push_back(std::move(data));
  steps_.resize(states_.size() * classes, kNotYet);
  by_places_.emplace(hash, state);
  return state;
}

GrammarMatcher::State GrammarMatcher::step(State state, uint8_t byte) {
  const size_t slot =
      static_cast<size_t>(state) * static_cast<size_t>(grammar_->num_byte_classes()) + grammar_->byte_classes()[byte];
  if (steps_[slot] != kNotYet) return steps_[slot];
  stepped_.clear();
  for (const Place& place : states_[state].places) {
    for (const Grammar::Edge& edge : grammar_->nodes()[place.node].edges) {
      if (edge.first <= byte && byte <= edge.last) stepped_.push_back({edge.to, place.stack});
    }
  }
  const State to = stepped_.empty() ? kDead : close(stepped_);
  steps_[slot] = to;
  return to;
}

GrammarMatcher::State GrammarMatcher::accept_bytes(State state, std::string_view bytes) {
  for (size_t i = 0; i < bytes.size() && state != kDead; ++i) state = step(state, static_cast<uint8_t>(bytes[i]));
  return state;
}

GrammarMatcher::State GrammarMatcher::accept(State state, TokenId id) {
  const std::string_view bytes = tokens_->bytes(id);
  if (!bytes.empty()) return accept_bytes(state, bytes);
  const bool ends = std::find(tokens_->end_ids().begin(), tokens_->end_ids().end(), id) != tokens_->end_ids().end();
  return ends && is_complete(state) ? state : kDead;
}

void GrammarMatcher::allow_tokens(int32_t begin, int32_t end, std::vector<uint64_t>& allowed) const {
  const int32_t last = tokens_->nodes()[end].tokens_begin;
  for (int32_t t = tokens_->nodes()[begin].tokens_begin; t < last; ++t) {
    const auto id = static_cast<size_t>(tokens_->tokens()[t]);
    allowed[id / 64] |= uint64_t{1} << (id % 64);
  }
}

void GrammarMatcher::allow_short_tokens(int32_t node, int length, std::vector<uint64_t>& allowed) const {
  const TokenTrie::Node& top = tokens_->nodes()[node];
  const int32_t last = tokens_->nodes()[top.end].tokens_begin;
  const int before = count_characters(tokens_->bytes(tokens_->tokens()[top.tokens_begin]).substr(0, top.depth));
  for (int32_t t = top.tokens_begin; t < last; ++t) {
    if (tokens_->num_chars(t) > before + length) continue;
    const auto id = static_cast<size_t>(tokens_->tokens()[t]);
    allowed[id / 64] |= uint64_t{1} << (id % 64);
  }
}

// Whether every way on with a character of several bytes, of which `left` bytes are missing, ends in `to`.
bool GrammarMatcher::leads_to(State to, State from, Utf8Range range, int left) {
  State known = kDead;
  for (int byte = range.first; byte <= range.last; ++byte) {
    const State next = step(from, static_cast<uint8_t>(byte));
    if (next == kDead) return false;
    if (next == known) continue;
    known = next;
    if (left == 1 ? next != to : !leads_to(to, next, {0x80, 0xbf}, left - 1)) return false;
  }
  return true;
}

// The same within the network: there is one way on for every such byte, and nothing else.
bool GrammarMatcher::node_leads_to(int32_t to, int32_t from, Utf8Range range, int left) const {
  const Grammar::Node& node = grammar_->nodes()[from];
  if (!node.silent.empty() || !node.calls.empty() || node.is_end) return false;
  int next_byte = range.first;
  // Edges of a class of characters rise, so one walk finds gaps and overlaps; in another order they count as a gap.
  for (const Grammar::Edge& edge : node.edges) {
    if (edge.first > next_byte || edge.last < next_byte) return false;
    if (left == 1 ? edge.to != to : !node_leads_to(to, edge.to, {0x80, 0xbf}, left - 1)) return false;
    next_byte = edge.last + 1;
  }
  return next_byte > range.last;
}

const GrammarMatcher::NodeStep& GrammarMatcher::node_step(int32_t node) {
  const auto [known, is_new] = node_step_indices_.try_emplace(node, static_cast<int32_t>(node_steps_.size()));
  if (!is_new) return node_steps_[known->second];
  NodeStep& found = node_steps_.emplace_back();
  const std::vector<Grammar::Edge>& edges = grammar_->nodes()[node].edges;
  std::array<int32_t, 256> to{};
  constexpr int32_t kNowhere = -1, kSeveral = -2;
  to.fill(kNowhere);
  for (const Grammar::Edge& edge : edges) {
    for (size_t byte = edge.first; byte <= edge.last; ++byte)
      to[byte] = to[byte] == kNowhere || to[byte] == edge.to ? edge.to : kSeveral;
  }
  for (const char c : kLikelyCharacters) {
    if (found.to < 0) found.to = to[c];
  }
  const auto bit = [](size_t c) { return uint64_t{1} << (c % 64); };
  for (size_t c = 0; c < 128; ++c) {
    if (to[c] != kNowhere) found.any_ascii[c / 64] |= bit(c);
    if (found.to >= 0 && to[c] == found.to) found.ascii[c / 64] |= bit(c);
  }
  found.any_multibyte = std::any_of(to.begin() + 128, to.end(), [](int32_t next) { return next != kNowhere; });
  found.has_multibyte = found.to >= 0;
  int32_t leads_there = kNowhere;
  for (int lead = 0xc2; lead <= 0xf4 && found.has_multibyte; ++lead) {
    int left = 0;
    const Utf8Range range = utf8_after(static_cast<uint8_t>(lead), left);
    const int32_t next = to[lead];
    const bool is_plain = range.first == 0x80 && range.last == 0xbf;
    if (next >= 0 && next == leads_there && is_plain) continue;
    leads_there = is_plain ? next : kNowhere;
    found.has_multibyte = next >= 0 && node_leads_to(found.to, next, range, left);
  }
  return found;
}

bool GrammarMatcher::step_of_one_place(State state, Step& found) {
  const std::vector<Place>& places = states_[state].places;
  constexpr size_t kFewPlaces = 8;
  if (places.size() > kFewPlaces) return false;
  const Place* main = nullptr;
  size_t num_characters = 0;
  for (const Place& place : places) {
    const NodeStep& step = node_step(place.node);
    const auto count = static_cast<size_t>(std::popcount(step.ascii[0]) + std::popcount(step.ascii[1]));
    if (count <= num_characters) continue;
    num_characters = count;
    main = &place;
  }
  if (main == nullptr) return false;
  found.ascii = node_step(main->node).ascii;
  found.has_multibyte = node_step(main->node).has_multibyte;
  for (const Place& place : places) {
    if (&place == main) continue;
    const NodeStep& other = node_step(place.node);
    const bool same_ascii = (found.ascii[0] & other.any_ascii[0]) != 0 || (found.ascii[1] & other.any_ascii[1]) != 0;
    if (same_ascii || (found.has_multibyte && other.any_multibyte)) return false;
  }
  found.to = close(Place{node_step(main->node).to, main->stack});
  if (found.to == kDead) return false;
  const size_t row = static_cast<size_t>(state) * static_cast<size_t>(grammar_->num_byte_classes());
  for (size_t c = 0; c < 128; ++c) {
    if ((found.ascii[c / 64] >> (c % 64) & 1) != 0) steps_[row + grammar_->byte_classes()[c]] = found.to;
  }
  return true;
}

GrammarMatcher::Step GrammarMatcher::try_every_character(State state) {
  Step found;
  for (const char c : kLikelyCharacters) {
    found.to = step(state, static_cast<uint8_t>(c));
    if (found.to != kDead) break;
  }
  if (found.to == kDead) return found;
  for (int c = 0; c < 128; ++c) {
    if (step(state, static_cast<uint8_t>(c)) == found.to)
      found.ascii[static_cast<size_t>(c) / 64] |= uint64_t{1} << (c % 64);
  }
  found.has_multibyte = true;
  State known = kDead;
  for (int lead = 0xc2; lead <= 0xf4 && found.has_multibyte; ++lead) {
    int left = 0;
    const Utf8Range range = utf8_after(static_cast<uint8_t>(lead), left);
    const State next = step(state, static_cast<uint8_t>(lead));
    // Neighbours that the grammar does not tell apart, and that are followed by the same bytes, are one case.
    const bool is_plain = range.first == 0x80 && range.last == 0xbf;
    if (next != kDead && next == known && is_plain) continue;
    known = is_plain ? next : kDead;
    found.has_multibyte = next != kDead && leads_to(found.to, next, range, left);
  }
  return found;
}

GrammarMatcher::Step GrammarMatcher::find_step(State state) {
  const auto index = static_cast<size_t>(state);
  if (index < next_indices_.size() && next_indices_[index] >= 0) return next_[next_indices_[index]];
  Step found;
  if (!step_of_one_place(state, found)) found = try_every_character(state);
  if (index >= next_indices_.size()) next_indices_.resize(states_.size(), -1);
  next_indices_[index] = static_cast<int32_t>(next_.size());
  next_.push_back(found);
  return found;
}

// No character of the run's set follows this state.
bool GrammarMatcher::ends_strictly(State state, const Run& run) {
  for (size_t c = 0; c < 128; ++c) {
    if ((run.ascii[c / 64] >> (c % 64) & 1) != 0 && step(state, static_cast<uint8_t>(c)) != kDead) return false;
  }
  for (int lead = 0xc2; lead <= 0xf4 && run.has_multibyte; ++lead) {
    if (step(state, static_cast<uint8_t>(lead)) != kDead) return false;
  }
  return true;
}

const GrammarMatcher::Run& GrammarMatcher::run_of(State state) {
  const auto index = static_cast<size_t>(state);
  if (index >= run_indices_.size()) run_indices_.resize(states_.size(), -1);
  if (run_indices_[index] >= 0) return runs_[run_indices_[index]];
  const Step first = find_step(state);
  Run run;
  run.ascii = first.ascii;
  run.has_multibyte = first.has_multibyte;
  const auto goes_on = [&](const Step& next) {
    return next.to != kDead && (run.ascii[0] & ~next.ascii[0]) == 0 && (run.ascii[1] & ~next.ascii[1]) == 0 &&
           (next.has_multibyte || !run.has_multibyte);
  };
  State at = state;
  bool is_over = first.to == kDead;
  for (Step next = first; run.length < kFarthest; next = find_step(at)) {
    is_over = !goes_on(next);
    if (is_over) break;
    const StateData& data = states_[next.to];
    // Behind this character nothing but the rule's end: whether the text goes on is not known here.
    if (data.places.empty() && !data.is_complete) break;
    run.may_leave = run.may_leave || data.is_left;
    ++run.length;
    if (next.to == at) run.length = kLongestRun;
    if (next.to == at) break;
    at = next.to;
  }
  run.is_strict = is_over && ends_strictly(at, run);
  run_indices_[index] = static_cast<int32_t>(runs_.size());
  return runs_.emplace_back(run);
}

bool GrammarMatcher::has_characters_of(const Run& run, const TokenTrie::Texts& texts) {
  return (texts.ascii[0] & ~run.ascii[0]) == 0 && (texts.ascii[1] & ~run.ascii[1]) == 0 &&
         (run.has_multibyte || !texts.has_multibyte);
}

bool GrammarMatcher::walk(State state, int32_t begin, int32_t end, int depth, std::vector<uint64_t>& allowed,
                          std::vector<int32_t>* exits) {
  path_[0] = {state, nullptr};
  const std::vector<TokenTrie::Node>& nodes = tokens_->nodes();
  for (int32_t i = begin; i < end;) {
    const TokenTrie::Node& node = nodes[i];
    const auto level = static_cast<size_t>(node.depth - depth);
    PathNode& before = path_[level];
    if (node.texts >= 0 && node.end - i >= kFewestNodes) {
      if (before.run == nullptr) before.run = &run_of(before.state);
      const Run& run = *before.run;
      const TokenTrie::Texts& texts = tokens_->texts(node.texts);
      const bool is_covered = texts.most_chars <= run.length;
      if ((is_covered || run.is_strict) && has_characters_of(run, texts)) {
        if (exits != nullptr && run.may_leave) return false;
        if (is_covered) {
          allow_tokens(i, node.end, allowed);
        } else {
          allow_short_tokens(i, run.length, allowed);
        }
        i = node.end;
        continue;
      }
    }
    const State next = step(before.state, node.byte);
    if (next == kDead) {
      i = node.end;
      continue;
    }
    path_[level + 1] = {next, nullptr};
    const StateData& data = states_[next];
    if (exits != nullptr && data.is_left) {
      if (exits->size() >= kMostExits) return false;
      exits->push_back(i);
    }
    if (!data.places.empty() || data.is_complete) allow_tokens(i, i + 1, allowed);
    ++i;
  }
  return true;
}

const GrammarMatcher::LocalMask& GrammarMatcher::local_mask(int32_t node) {
  const auto found = local_masks_.find(node);
  if (found != local_masks_.end()) return found->second;
  if (local_masks_.size() >= kMostLocalMasks) local_masks_.clear();
  LocalMask local;
  local.allowed.assign((tokens_->vocab_size() + 63) / 64, 0);
  const State state = close(Place{node, kUnknown});
  if (state != kDead) local.is_open = !walk(state, 0, tokens_->num_nodes(), 0, local.allowed, &local.exits);
  if (local.is_open) {
    local.allowed = {};
    local.exits = {};
  }
  return local_masks_.emplace(node, std::move(local)).first->second;
}

// Of few places each one's own mask, joined; false where one of them has none.
bool GrammarMatcher::join_local_masks(const std::vector<Place>& places, std::vector<uint64_t>& allowed) {
  constexpr size_t kFewPlaces = 16;
  if (places.size() > kFewPlaces) return false;
  for (const Place& place : places) {
    if (local_mask(place.node).is_open) return false;
  }
  for (const Place& place : places) {
    const LocalMask& local = local_mask(place.node);
    for (size_t i = 0; i < allowed.size(); ++i) allowed[i] |= local.allowed[i];
    if (place.stack == kBottom) {
      for (const int32_t exit : local.exits) allow_tokens(exit, exit + 1, allowed);
      continue;
    }
    const StackNode top = stacks_[place.stack];
    const State around = close(Place{top.back, top.below});
    for (const int32_t exit : local.exits) {
      if (around == kDead) break;
      allow_tokens(exit, exit + 1, allowed);
      const TokenTrie::Node& node = tokens_->nodes()[exit];
      if (exit + 1 < node.end) (void)walk(around, exit + 1, node.end, node.depth + 1, allowed, nullptr);
    }
  }
  return true;
}

std::span<const uint64_t> GrammarMatcher::mask(State state) {
  const auto found = masks_.find(state);
  if (found != masks_.end()) return found->second;
  if (masks_.size() >= kMostMasks) masks_.clear();
  std::vector<uint64_t> allowed(static_cast<size_t>((tokens_->vocab_size() + 63) / 64), 0);
  // By value: what is found on the way may move the states.
  const std::vector<Place> places = states_[state].places;
  if (!join_local_masks(places, allowed)) {
    std::fill(allowed.begin(), allowed.end(), 0);
    (void)walk(state, 0, tokens_->num_nodes(), 0, allowed, nullptr);
  }
  if (is_complete(state)) {
    for (const TokenId id : tokens_->end_ids()) allowed[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
  }
  return masks_.emplace(state, std::move(allowed)).first->second;
}

}  // namespace foretoken
