#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// A grammar of texts, compiled to a network over bytes: each rule is a small automaton whose edges are ranges of bytes,
/// and calls of other rules. Characters are UTF-8; a class of characters becomes the byte sequences of its characters.
/// Immutable; any number of threads may use it at once.
class Grammar {
 public:
  /// GBNF as llama.cpp's clients write it: rules `name ::= alternative | alternative`, "strings", [classes] and [^...],
  /// `.`, groups, * + ? {m} {m,} {m,n}, comments behind #, escapes \n \r \t \\ \" \[ \] \xNN \uNNNN \UNNNNNNNN. The text
  /// begins with the rule `root`. Throws InputError with line for a mistake, a rule that is not there, left recursion
  /// (a rule that begins with itself would never read a byte) and a grammar that is too large or matches nothing.
  [[nodiscard]] static Grammar parse(std::string_view gbnf);

  /// The grammar of the JSON texts that a schema allows; see json_schema_to_gbnf().
  [[nodiscard]] static Grammar from_json_schema(const nlohmann::ordered_json& schema);

  struct Edge {
    uint8_t first, last;
    int32_t to;
  };
  struct Call {
    int32_t start;  // node of the rule that is called
    int32_t back;   // where it goes on afterwards
  };
  struct Node {
    std::vector<Edge> edges;
    std::vector<int32_t> silent;  // nodes that are reached without a byte
    std::vector<Call> calls;
    bool is_end = false;  // of its rule
  };

  [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }
  [[nodiscard]] int32_t root() const { return root_; }
  /// Bytes that no edge tells apart are of one class.
  [[nodiscard]] const std::array<uint8_t, 256>& byte_classes() const { return byte_classes_; }
  [[nodiscard]] int num_byte_classes() const { return num_byte_classes_; }

  static constexpr size_t kMostBytes = size_t{1} << 20;
  static constexpr size_t kMostNodes = 400'000;

 private:
  class Parser;
  Grammar() = default;
  void finish();
  std::vector<Node> nodes_;
  int32_t root_ = 0;
  std::array<uint8_t, 256> byte_classes_{};
  int num_byte_classes_ = 1;
};

/// A JSON schema as a grammar, objects with the members in the order of the schema (required ones always, others where
/// the text has them), as other local servers have it. Understood: type (a name or a list), properties, required,
/// additionalProperties, items, prefixItems, minItems, maxItems, enum, const, anyOf, oneOf (as anyOf), allOf of one or of
/// objects, $ref within the document, minLength, maxLength, pattern (anchored, plain regular expressions), format (date,
/// time, date-time, uuid), minimum and maximum of integers, and what only describes (title, description, default,
/// examples, $schema, $id, $comment, deprecated, readOnly, writeOnly). Throws InputError that names any other keyword
/// with its place: what would be passed over would not be kept.
[[nodiscard]] std::string json_schema_to_gbnf(const nlohmann::ordered_json& schema);

}  // namespace foretoken
