#pragma once

#include <functional>
#include <vector>

#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// Work that is done over and over. The first time it is launched piece by piece, which also brings its kernels onto
/// the device (that cannot be done while a graph is recorded); the second time it is recorded, and from then on
/// replayed as one launch. Steps that the host does beside it come behind the launch; the work waits for them by flags.
class Recorded {
 public:
  /// The next run is nothing but replaying.
  [[nodiscard]] bool is_recorded() const { return is_recorded_; }

 private:
  friend class Recorder;
  Graph graph_;
  std::vector<std::function<void()>> steps_;  // the host's
  bool ran_once_ = false;
  bool is_recorded_ = false;
};

/// Where launches block, a recording that waits for a step of the host would wait for ever: nothing is recorded then.
class Recorder {
 public:
  explicit Recorder(const Stream& stream) : stream_(stream), launches_block_(launches_block()) {}

  /// Does `work`, which puts launches into the stream. Everything that it reads on the host has to be the same in every
  /// run of `recorded`.
  void run(Recorded& recorded, const std::function<void()>& work);

  /// Within work: what the host has to do beside it, when everything has been launched that comes before. What comes
  /// behind in the stream waits for the step by a flag (ReceiveRowsDesc): work that is launched piece by piece is
  /// launched that far and waits for the step first, a recording is launched as a whole. REQUIRES: what `step` refers to
  /// lives as long as the recording.
  void host_step(std::function<void()> step);

 private:
  [[nodiscard]] Graph record(const std::function<void()>& work, std::vector<std::function<void()>>& steps);

  const Stream& stream_;
  const bool launches_block_;
  std::vector<std::function<void()>>* steps_ = nullptr;  // of what is being recorded
};

}  // namespace foretoken::cuda
