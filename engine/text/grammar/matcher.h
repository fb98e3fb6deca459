#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/grammar/grammar.h"
#include "engine/text/grammar/token_trie.h"
#include "engine/text/utf8.h"

namespace foretoken {

/// What of a vocabulary a grammar allows behind what has been read. A state is a number: it is copied and gone back to by
/// keeping it, which is what drafts need. Equal sets of stacks are the same state, and steps and masks once found are kept:
/// a deterministic automaton that is made as texts need it.
///
///   state   set of (node, stack): a place within a rule, and the places where the rules around it go on
///   step    (state, byte) -> state
///   mask    a walk over the tokens' tree. What a place allows whatever is around its rule is found once for all stacks;
///           only tokens that go beyond the rule's end are looked at again. Where a state goes on with any text of some
///           characters (within a string), a subtree of such texts is allowed as a whole: see Run.
///
/// Memory is bounded: caches are emptied when they are full, and a text that needs more states or stacks than the limits
/// is an InputError. One thread at a time may call it; several texts over one grammar may share it.
class GrammarMatcher {
 public:
  using State = int32_t;
  static constexpr State kDead = -1;  // nothing that the grammar allows begins so

  GrammarMatcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> tokens);

  [[nodiscard]] State start() const { return start_; }
  /// The state behind a token. An end token keeps a complete state as it is. REQUIRES: state is not kDead.
  [[nodiscard]] State accept(State state, TokenId id);
  [[nodiscard]] State accept_bytes(State state, std::string_view bytes);
  /// The text may end here.
  [[nodiscard]] bool is_complete(State state) const { return states_[state].is_complete; }

  /// Bit id % 64 of word id / 64: the token is allowed. Tokens that end a text are where is_complete(). Valid until the
  /// next call of mask(). REQUIRES: state is not kDead.
  [[nodiscard]] std::span<const uint64_t> mask(State state);

  // Of one text; what hostile grammars run into.
  static constexpr size_t kMostStates = 200'000;
  static constexpr size_t kMostStacks = 400'000;
  static constexpr size_t kMostPlaces = 4096;  // of one state: how ambiguous a text may be
  static constexpr size_t kMostStepBytes = size_t{128} << 20;

 private:
  // A place within a rule and the stack of what follows it.
  struct Place {
    int32_t node;
    int32_t stack;
    friend auto operator<=>(const Place&, const Place&) = default;
  };
  // Places in the order in which they were added, each once.
  struct PlaceList {
    static constexpr size_t kFewPlaces = 32;  // are looked through; more have an index
    std::vector<Place> places;
    std::set<Place> known;
    [[nodiscard]] bool add(Place place);
    void clear() {
      places.clear();
      known.clear();
    }
  };
  struct StackNode {
    int32_t back;   // where the rule around goes on
    int32_t below;  // stack under it
  };
  static constexpr int32_t kBottom = -1;   // the root rule's end is the text's
  static constexpr int32_t kUnknown = -2;  // a rule's end whose surroundings are left open
  struct StateData {
    std::vector<Place> places;  // rising; those that a byte can follow
    bool is_complete = false;
    bool is_left = false;  // with kUnknown: the rule may be over here
  };
  // What a place allows of itself.
  struct LocalMask {
    std::vector<uint64_t> allowed;
    std::vector<int32_t> exits;  // nodes of the tree behind which the rule may be over
    bool is_open = false;        // the rule may be over nearly everywhere: the rest is not filled in
  };
  // The next character of a state, for all characters of a set.
  struct Step {
    std::array<uint64_t, 2> ascii{};  // the set
    bool has_multibyte = false;       // all characters of several bytes are in it
    State to = kDead;                 // behind each of them
  };
  // The same of one node of the grammar's network, whatever is around its rule.
  struct NodeStep {
    std::array<uint64_t, 2> ascii{};      // characters that lead to `to` and nowhere else
    std::array<uint64_t, 2> any_ascii{};  // characters that lead anywhere
    bool has_multibyte = false;           // all characters of several bytes lead to `to`
    bool any_multibyte = false;           // one of them leads anywhere
    int32_t to = -1;                      // a node
  };
  // Texts of at most `length` characters of the set lead to states where a text may go on.
  struct Run {
    std::array<uint64_t, 2> ascii{};
    bool has_multibyte = false;
    bool may_leave = false;  // the rule may be over on the way
    bool is_strict = false;  // no longer text of such characters is allowed
    int length = 0;
  };
  static constexpr int kLongestRun = 1024;

  [[nodiscard]] State step(State state, uint8_t byte);
  [[nodiscard]] State close(std::span<const Place> from);
  [[nodiscard]] State close(Place from) { return close(std::span(&from, 1)); }
  [[nodiscard]] int32_t push(int32_t back, int32_t below);
  [[nodiscard]] const LocalMask& local_mask(int32_t node);
  [[nodiscard]] bool join_local_masks(const std::vector<Place>& places, std::vector<uint64_t>& allowed);
  [[nodiscard]] Step find_step(State state);
  [[nodiscard]] Step try_every_character(State state);
  // The step where one place alone knows the characters; what it is otherwise has to be tried.
  [[nodiscard]] bool step_of_one_place(State state, Step& found);
  [[nodiscard]] const NodeStep& node_step(int32_t node);
  [[nodiscard]] bool node_leads_to(int32_t to, int32_t from, Utf8Range range, int left) const;
  [[nodiscard]] bool ends_strictly(State state, const Run& run);
  [[nodiscard]] bool leads_to(State to, State from, Utf8Range range, int left);
  [[nodiscard]] const Run& run_of(State state);
  // The run's characters are all that these texts have.
  [[nodiscard]] static bool has_characters_of(const Run& run, const TokenTrie::Texts& texts);
  // Marks the tokens in nodes [begin, end) of the tree that `state` allows, whose depth is counted from `depth`. False:
  // there are more exits than are worth a list.
  [[nodiscard]] bool walk(State state, int32_t begin, int32_t end, int depth, std::vector<uint64_t>& allowed,
                          std::vector<int32_t>* exits);
  // The tokens of nodes [begin, end).
  void allow_tokens(int32_t begin, int32_t end, std::vector<uint64_t>& allowed) const;
  // Those of the subtree at `node` that have at most `length` characters from its byte on.
  void allow_short_tokens(int32_t node, int length, std::vector<uint64_t>& allowed) const;

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> tokens_;
  std::vector<StateData> states_;
  std::vector<int32_t> steps_;  // [states, byte classes]; kNotYet: not looked at
  std::unordered_multimap<uint64_t, State> by_places_;
  std::vector<StackNode> stacks_;
  std::unordered_map<uint64_t, int32_t> by_stack_;
  std::vector<char> tail_;  // nodes from which nothing but the rule's end follows
  std::unordered_map<int32_t, LocalMask> local_masks_;
  std::unordered_map<State, std::vector<uint64_t>> masks_;
  std::vector<Step> next_;             // of states that were asked for
  std::vector<int32_t> next_indices_;  // [states or fewer] -1: not found yet
  std::vector<NodeStep> node_steps_;
  std::unordered_map<int32_t, int32_t> node_step_indices_;
  std::deque<Run> runs_;              // of states that were asked for
  std::vector<int32_t> run_indices_;  // [states or fewer] -1: not found yet
  struct PathNode {
    State state = kDead;
    const Run* run = nullptr;  // nullptr: not looked up yet
  };
  PlaceList reached_;           // of close()
  std::vector<Place> stepped_;  // of step()
  std::vector<PathNode> path_;  // of walk(): the state in front of each depth
  State start_ = kDead;
};

}  // namespace foretoken
