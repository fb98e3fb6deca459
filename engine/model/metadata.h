#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

class GgufFile;
struct ModelConfig;

/// Reads the metadata of one architecture ("ARCHITECTURE." + key) and remembers what was read, so that at the end every
/// key that nobody has read can be judged.
class Metadata {
 public:
  Metadata(const GgufFile& file, const std::string& architecture) : file_(file), prefix_(architecture + ".") {}

  // Typed access as in GgufFile: InputError for a missing value without a fallback, another kind, another range.
  [[nodiscard]] int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  [[nodiscard]] int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  [[nodiscard]] double number(std::string_view key) const;
  [[nodiscard]] double number(std::string_view key, double fallback) const;
  [[nodiscard]] std::string text(std::string_view key, std::string_view fallback) const;
  [[nodiscard]] std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  [[nodiscard]] bool has(std::string_view key) const;
  /// A count that some converters write once for each layer: all entries must be equal, or 0.
  [[nodiscard]] int64_t uniform(std::string_view key, int64_t min, int64_t max) const;

  [[nodiscard]] const GgufFile& file() const { return file_; }
  [[nodiscard]] std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  [[noreturn]] void fail(std::string_view key, std::string_view what) const;

  /// Throws InputError for a key of the architecture that has not been read and would change what is computed:
  /// rotations that are scaled, logits that are capped, experts that are chosen in another way, and every key that this
  /// program does not know. A value that asks for what is done anyway (a scale of 1, a cap of 0) is accepted.
  void check_unread(const ModelConfig& config) const;

 private:
  void check_rotations(const ModelConfig& config) const;
  void check_attention(const ModelConfig& config) const;
  void check_experts(const ModelConfig& config) const;
  /// The key, if it is there and has not been read, must hold one of `accepted`; the message says what it would do
  /// otherwise.
  void accept(std::string_view key, const std::vector<double>& accepted, std::string_view effect) const;

  const GgufFile& file_;
  const std::string prefix_;
  mutable std::set<std::string, std::less<>> seen_;
};

/// What a file says to whoever runs it and this program leaves to the user, a line each: recommended sampling, an end
/// token behind every prompt, vocabulary keys that are not known.
[[nodiscard]] std::vector<std::string> metadata_notes(const GgufFile& file);

}  // namespace foretoken
