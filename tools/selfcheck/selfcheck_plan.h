#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/options.h"
#include "kernels/base/isa.h"
#include "moe/moe_verify.h"

namespace foretoken {

/// Where a case runs.
struct CheckPlace {
  Device device = Device::kCpu;
  int gpu_experts = 0;  // split: routed experts of each layer on the GPU
  int gpu_cache = 0;    // split: slots for hot experts beside them

  [[nodiscard]] bool operator==(const CheckPlace&) const = default;
};

/// "cpu", "cuda", "split 128+2": 128 experts of each layer on the GPU and slots for two more.
[[nodiscard]] std::string describe(const CheckPlace& place);

/// How much text a case decodes: the first prompt_tokens of the prompt, then new_tokens of its own.
struct CheckSize {
  int prompt_tokens = 0;
  int new_tokens = 0;

  [[nodiscard]] bool operator==(const CheckSize&) const = default;
};

/// One setting under which the same prompt is decoded. Everything but `sampled` and `size` must leave every bit as it
/// is.
struct CheckCase {
  int mtp = 0;
  bool controller = false;  // false: always `mtp` drafts
  MoeVerify moe_verify = MoeVerify::kGrouped;
  int threads = 1;
  Isa isa = Isa::kScalar;
  int prompt_chunk = 0;  // 0: the whole prompt in one pass
  bool repack = true;
  CheckPlace place;
  int neighbours = 0;    // other texts in the passes: at most so many at a time
  bool sampled = false;  // a seeded sample; false: greedy. Two texts, each with its own reference
  CheckSize size;

  [[nodiscard]] bool operator==(const CheckCase&) const = default;
};

/// The values of each axis; the first of each is the reference's.
struct CheckAxes {
  std::vector<int> mtp;
  std::vector<MoeVerify> moe_verify;
  std::vector<int> threads;
  std::vector<Isa> isas;
  std::vector<int> prompt_chunks;
  std::vector<bool> repack;
  std::vector<CheckPlace> places;
  std::vector<int> neighbours;
};

/// The axes of this machine: k from 0 to max_mtp, both expert cores, 1, 2, 3 and `threads` threads, the instruction
/// sets it has, prompt chunks 1, 7, 64 and whole, the CPU and the other places, alone, beside 2 and beside 7 others.
[[nodiscard]] CheckAxes check_axes(int max_mtp, int threads, const std::vector<Isa>& isas,
                                   const std::vector<CheckPlace>& other_places = {});

/// Places with a GPU for a model with so many routed experts a layer: all on the GPU, split with none, some (with slots
/// for hot experts) and all experts there. `some` 0: half of them.
[[nodiscard]] std::vector<CheckPlace> gpu_places(int num_experts, int some = 0);

/// Cases in the order in which they run: all that use repacked weights first, so that a model is loaded at most twice.
/// The first greedy and the first sampled case of a size are the references. covering: every value of every axis alone
/// against the reference, then mixed cases that change all axes at once, together holding every value of every axis
/// again, greedy and sampled by turns.
[[nodiscard]] std::vector<CheckCase> covering_plan(const CheckAxes& axes);
/// The whole product.
[[nodiscard]] std::vector<CheckCase> full_plan(const CheckAxes& axes);

/// Sizes to choose from, the largest first, each at most `whole`. A number that the user gave stays as it is.
[[nodiscard]] std::vector<CheckSize> check_sizes(CheckSize whole, bool prompt_given, bool new_tokens_given);

/// Seconds that the cases of `isa` take at most if all have this size: row_seconds for every row of every pass with one
/// thread, all drafts wrong, the file's own layout at twice the time. `cores` limits what threads gain.
[[nodiscard]] double estimate_seconds(const std::vector<CheckCase>& plan, Isa isa, CheckSize size, double row_seconds,
                                      int cores);

/// The largest of `sizes` with which the cases of `isa` take at most `seconds`; the smallest if none does.
[[nodiscard]] CheckSize choose_size(const std::vector<CheckCase>& plan, Isa isa, const std::vector<CheckSize>& sizes,
                                    double row_seconds, int cores, double seconds);

/// Gives the cases of `isa` this size. A size without cases of the reference's own instruction set gets two, greedy and
/// sampled, behind the first case, so that `isa` is never compared with itself alone.
/// REQUIRES: plan[0].isa comes first.
void set_size(std::vector<CheckCase>& plan, Isa isa, CheckSize size);

/// Another text, beside the one that is checked.
struct CheckNeighbour {
  int first_token = 0, prompt_tokens = 0;  // of the prompt: tokens [first_token, first_token + prompt_tokens)
  int new_tokens = 0;
  int max_drafts = 0;
  bool is_first = false;  // it is there when the checked text comes; else it joins later
};

/// The others of a case: check.neighbours who are there first and some who join as those leave, so that prompts are
/// read beside windows. Lengths and drafts differ.
[[nodiscard]] std::vector<CheckNeighbour> check_neighbours(const CheckCase& check);

/// "k=3 grouped 2 threads avx2 chunk 7 interleaved alone greedy".
[[nodiscard]] std::string describe(const CheckCase& check);

/// What one case gave.
struct CheckResult {
  CheckCase check;
  std::string logits_sha256;  // of the logits at all positions
  std::string ids_sha256;
  double seconds = 0;
  bool equal = false;  // to the reference of its text
};

/// Sets `equal`; true if all are.
[[nodiscard]] bool compare_with_references(std::vector<CheckResult>& results);

}  // namespace foretoken
