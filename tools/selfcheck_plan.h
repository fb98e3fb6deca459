#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/options.h"
#include "kernels/isa.h"
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

/// One setting under which the same prompt is decoded. Everything but `sampled` must leave every bit as it is.
struct CheckCase {
  int mtp = 0;
  bool controller = false;  // false: always `mtp` drafts
  MoeVerify moe_verify = MoeVerify::kGrouped;
  int threads = 1;
  Isa isa = Isa::kScalar;
  int prompt_chunk = 0;  // 0: the whole prompt in one pass
  bool repack = true;
  CheckPlace place;
  bool sampled = false;  // a seeded sample; false: greedy. Two texts, each with its own reference

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
};

/// The axes of this machine: k from 0 to max_mtp, both expert cores, 1, 2, 3 and `threads` threads, the instruction
/// sets it has, prompt chunks 1, 7, 64 and whole, the CPU and the other places.
[[nodiscard]] CheckAxes check_axes(int max_mtp, int threads, const std::vector<Isa>& isas,
                                   const std::vector<CheckPlace>& other_places = {});

/// Places with a GPU for a model with so many routed experts a layer: all on the GPU, split with none, some (with slots
/// for hot experts) and all experts there. `some` 0: half of them.
[[nodiscard]] std::vector<CheckPlace> gpu_places(int num_experts, int some = 0);

/// Cases in the order in which they run: all that use repacked weights first, so that a model is loaded at most twice.
/// The first greedy and the first sampled case are the references. covering: every value of every axis alone against
/// the reference, then mixed cases that change all axes at once, together holding every value of every axis again,
/// greedy and sampled by turns.
[[nodiscard]] std::vector<CheckCase> covering_plan(const CheckAxes& axes);
/// The whole product.
[[nodiscard]] std::vector<CheckCase> full_plan(const CheckAxes& axes);

/// "k=3 grouped 2 threads avx2 chunk 7 greedy".
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
