#include "tools/selfcheck/selfcheck_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <climits>

#include "kernels/base/error.h"
#include "tools/cli/model_flags.h"

namespace foretoken {

namespace {

CheckCase reference_case(const CheckAxes& axes) {
  CheckCase check;
  check.mtp = axes.mtp[0];
  check.moe_verify = axes.moe_verify[0];
  check.threads = axes.threads[0];
  check.isa = axes.isas[0];
  check.prompt_chunk = axes.prompt_chunks[0];
  check.repack = axes.repack[0];
  check.place = axes.places[0];
  check.neighbours = axes.neighbours[0];
  return check;
}

void add_new(std::vector<CheckCase>& plan, const CheckCase& check) {
  if (std::find(plan.begin(), plan.end(), check) == plan.end()) plan.push_back(check);
}

/// For every value of an axis: the reference with that value.
template <class T>
void vary(std::vector<CheckCase>& plan, const CheckCase& reference, const std::vector<T>& values, T CheckCase::*field) {
  for (const T value : values) {
    CheckCase check = reference;
    check.*field = value;
    add_new(plan, check);
  }
}

// What a device has room for is planned for one text.
bool takes_neighbours(const CheckCase& check) {
  return check.place.device == Device::kCpu;
}

void repacked_first(std::vector<CheckCase>& plan) {
  std::stable_partition(plan.begin(), plan.end(), [](const CheckCase& check) { return check.repack; });
}

}  // namespace

std::string describe(const CheckPlace& place) {
  if (place.device == Device::kCpu) return "cpu";
  if (place.device == Device::kCuda) return "cuda";
  return fmt::format("split {}{}", place.gpu_experts, place.gpu_cache > 0 ? fmt::format("+{}", place.gpu_cache) : "");
}

std::vector<CheckPlace> gpu_places(int num_experts, int some) {
  std::vector<CheckPlace> places = {{Device::kCuda}, {Device::kSplit}};
  if (num_experts == 0) return places;  // a dense model's split is the whole of it
  if (some == 0) some = num_experts / 2;
  const int cache = std::min(2, num_experts - some);
  if (some > 0) places.push_back({Device::kSplit, some, cache});
  places.push_back({Device::kSplit, num_experts});
  return places;
}

CheckAxes check_axes(int max_mtp, int threads, const std::vector<Isa>& isas,
                     const std::vector<CheckPlace>& other_places) {
  CheckAxes axes;
  for (int k = 0; k <= max_mtp; ++k) axes.mtp.push_back(k);
  axes.moe_verify = {MoeVerify::kGrouped, MoeVerify::kPerToken};
  axes.threads = {1, 2, 3};
  if (threads > 3) axes.threads.push_back(threads);
  // The fastest first: it is the reference, and the one that most cases run.
  axes.isas.assign(isas.rbegin(), isas.rend());
  axes.prompt_chunks = {0, 64, 7, 1};
  axes.repack = {true, false};
  axes.places = {{}};
  axes.places.insert(axes.places.end(), other_places.begin(), other_places.end());
  axes.neighbours = {0, 2, 7};
  return axes;
}

std::vector<CheckCase> covering_plan(const CheckAxes& axes) {
  const CheckCase reference = reference_case(axes);
  std::vector<CheckCase> plan = {reference};
  CheckCase sampled = reference;
  sampled.sampled = true;
  add_new(plan, sampled);
  vary(plan, reference, axes.mtp, &CheckCase::mtp);
  vary(plan, reference, axes.moe_verify, &CheckCase::moe_verify);
  vary(plan, reference, axes.threads, &CheckCase::threads);
  vary(plan, reference, axes.isas, &CheckCase::isa);
  vary(plan, reference, axes.prompt_chunks, &CheckCase::prompt_chunk);
  vary(plan, reference, axes.places, &CheckCase::place);
  vary(plan, reference, axes.neighbours, &CheckCase::neighbours);
  for (const bool repack : axes.repack) {
    CheckCase check = reference;
    check.repack = repack;
    add_new(plan, check);
  }
  if (axes.mtp.back() > 0) {
    CheckCase check = reference;
    check.mtp = axes.mtp.back();
    check.controller = true;
    add_new(plan, check);
  }
  // Mixed: axis values turn at different speeds, so that neighbours in the list share little. Each value of each axis
  // comes up, because there are at least as many cases as the longest axis has values.
  const size_t num_mixed = std::max({axes.mtp.size(), axes.threads.size(), axes.isas.size(), axes.prompt_chunks.size(),
                                     2 * axes.places.size(), size_t{8}});
  for (size_t i = 0; i < num_mixed; ++i) {
    CheckCase check;
    check.mtp = axes.mtp[(axes.mtp.size() - 1 - i % axes.mtp.size())];
    check.controller = check.mtp > 0 && i % 4 == 3;
    check.moe_verify = axes.moe_verify[(i + i / 2) % axes.moe_verify.size()];
    check.threads = axes.threads[(i + 1) % axes.threads.size()];
    check.isa = axes.isas[(i / 2 + 1) % axes.isas.size()];
    check.prompt_chunk = axes.prompt_chunks[(3 * i + 1 + i / 4) % axes.prompt_chunks.size()];
    check.repack = axes.repack[(i / 3) % axes.repack.size()];
    check.place = axes.places[(i + 1 + i / axes.places.size()) % axes.places.size()];
    check.neighbours = takes_neighbours(check) ? axes.neighbours[(i + i / 3) % axes.neighbours.size()] : 0;
    check.sampled = i % 2 == 0;
    add_new(plan, check);
  }
  repacked_first(plan);
  return plan;
}

namespace {

/// This case with every prompt chunk, instruction set, number of threads, expert core and draft length.
void add_product(std::vector<CheckCase>& plan, CheckCase check, const CheckAxes& axes) {
  for (const int chunk : axes.prompt_chunks) {
    check.prompt_chunk = chunk;
    for (const Isa isa : axes.isas) {
      check.isa = isa;
      for (const int threads : axes.threads) {
        check.threads = threads;
        for (const MoeVerify moe_verify : axes.moe_verify) {
          check.moe_verify = moe_verify;
          for (const int mtp : axes.mtp) {
            check.mtp = mtp;
            if (!(check == plan[0])) plan.push_back(check);
          }
        }
      }
    }
  }
}

}  // namespace

std::vector<CheckCase> full_plan(const CheckAxes& axes) {
  std::vector<CheckCase> plan = {reference_case(axes)};
  CheckCase check;
  for (const bool repack : axes.repack) {
    check.repack = repack;
    for (const CheckPlace& place : axes.places) {
      check.place = place;
      for (const int neighbours : axes.neighbours) {
        check.neighbours = neighbours;
        if (neighbours > 0 && !takes_neighbours(check)) continue;
        for (const bool sampled : {false, true}) {
          check.sampled = sampled;
          add_product(plan, check, axes);
        }
      }
    }
  }
  return plan;
}

std::vector<CheckSize> check_sizes(CheckSize whole, bool prompt_given, bool new_tokens_given) {
  // 130 and 72 leave a remainder behind chunks of 64 and of 7, 24 and 9 behind chunks of 7.
  constexpr std::array<CheckSize, 6> kSizes = {{{INT_MAX, INT_MAX}, {130, 24}, {72, 16}, {24, 8}, {9, 4}, {9, 2}}};
  std::vector<CheckSize> sizes;
  for (CheckSize size : kSizes) {
    size.prompt_tokens = prompt_given ? whole.prompt_tokens : std::min(size.prompt_tokens, whole.prompt_tokens);
    size.new_tokens = new_tokens_given ? whole.new_tokens : std::min(size.new_tokens, whole.new_tokens);
    if (sizes.empty() || !(size == sizes.back())) sizes.push_back(size);
  }
  return sizes;
}

double estimate_seconds(const std::vector<CheckCase>& plan, Isa isa, CheckSize size, double row_seconds, int cores) {
  double seconds = 0;
  for (const CheckCase& check : plan) {
    if (check.isa != isa) continue;
    double rows = size.prompt_tokens + static_cast<double>(size.new_tokens) * (check.mtp + 1);
    CheckCase sized = check;
    sized.size = size;
    for (const CheckNeighbour& other : check_neighbours(sized))
      rows += other.prompt_tokens + static_cast<double>(other.new_tokens) * (other.max_drafts + 1);
    seconds += rows * row_seconds * (check.repack ? 1 : 2) / std::min(check.threads, cores);
  }
  return seconds;
}

CheckSize choose_size(const std::vector<CheckCase>& plan, Isa isa, const std::vector<CheckSize>& sizes,
                      double row_seconds, int cores, double seconds) {
  const auto fits = [&](CheckSize size) { return estimate_seconds(plan, isa, size, row_seconds, cores) <= seconds; };
  const auto found = std::find_if(sizes.begin(), sizes.end(), fits);
  return found == sizes.end() ? sizes.back() : *found;
}

void set_size(std::vector<CheckCase>& plan, Isa isa, CheckSize size) {
  const CheckCase reference = plan[0];
  for (CheckCase& check : plan) {
    if (check.isa == isa) check.size = size;
  }
  const auto has_size = [&](const CheckCase& check) { return check.isa == reference.isa && check.size == size; };
  if (std::any_of(plan.begin(), plan.end(), has_size)) return;
  // Behind the plan's first case, which stays the whole plan's reference.
  CheckCase check = reference;
  check.size = size;
  for (const bool sampled : {true, false}) {
    check.sampled = sampled;
    plan.insert(plan.begin() + 1, check);
  }
}

std::vector<CheckNeighbour> check_neighbours(const CheckCase& check) {
  std::vector<CheckNeighbour> others;
  if (check.neighbours == 0) return others;
  const int later = 1;
  for (int i = 0; i < check.neighbours + later; ++i) {
    CheckNeighbour other;
    other.prompt_tokens = std::min(1 + (13 * i + 5) % 24, 1 + check.size.prompt_tokens / (4 + i % 3));
    other.first_token = 7 * i % (check.size.prompt_tokens - other.prompt_tokens + 1);
    other.new_tokens = std::min(1 + (5 * i + 2) % 8, (check.size.new_tokens + 2) / 3 + i % 2);
    other.max_drafts = std::min(i % 2, check.mtp);
    other.is_first = i < check.neighbours;
    others.push_back(other);
  }
  return others;
}

std::string describe(const CheckCase& check) {
  return fmt::format("k={}{:<5} {:<9} {} {:<7} {:<11} {:<11} {:<11} {:<11} {:<8} {:<7} {:>7}", check.mtp,
                     check.controller ? " auto" : "", moe_verify_name(check.moe_verify), check.threads,
                     check.threads == 1 ? "thread" : "threads", isa_name(check.isa),
                     check.prompt_chunk == 0 ? "chunk whole" : fmt::format("chunk {}", check.prompt_chunk),
                     check.repack ? "interleaved" : "file layout", describe(check.place),
                     check.neighbours == 0 ? "alone" : fmt::format("beside {}", check.neighbours),
                     check.sampled ? "sampled" : "greedy",
                     fmt::format("{}+{}", check.size.prompt_tokens, check.size.new_tokens));
}

bool compare_with_references(std::vector<CheckResult>& results) {
  bool all_equal = true;
  for (CheckResult& result : results) {
    const auto reference = std::find_if(results.begin(), results.end(), [&](const CheckResult& other) {
      return other.check.sampled == result.check.sampled && other.check.size == result.check.size;
    });
    result.equal = result.logits_sha256 == reference->logits_sha256 && result.ids_sha256 == reference->ids_sha256;
    all_equal = all_equal && result.equal;
  }
  return all_equal;
}

}  // namespace foretoken
