#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// Work that is done over and over. The first time it is launched piece by piece, which also brings its kernels onto
/// the device (that cannot be done while a graph is recorded); the second time it is recorded, and from then on
/// replayed: as one launch, or as several with the host's steps between them.
class Recorded {
 public:
  /// The next run is nothing but replaying.
  [[nodiscard]] bool is_recorded() const { return is_recorded_; }

 private:
  friend class Recorder;
  std::vector<Graph> graphs_;
  std::vector<std::function<void()>> steps_;  // the host's, steps_[i] after the launch of graphs_[i]
  bool ran_once_ = false;
  bool is_recorded_ = false;
};

class Recorder {
 public:
  explicit Recorder(const Stream& stream) : stream_(stream) {}

  /// Does `work`, which puts launches into the stream. Everything that it reads on the host has to be the same in every
  /// run of `recorded`.
  void run(Recorded& recorded, const std::function<void()>& work);

  /// Within work, recorded or not: what it has put into the stream so far is launched, then the host does `step`; in
  /// every replay too. REQUIRES: what `step` refers to lives as long as the recording.
  void cut(std::function<void()> step);

 private:
  void end_piece();
  // Lists the work of a recording again; the host's steps are left out.
  void compare(Recorded& recorded, const std::function<void()>& work);
  void compare_piece();

  const Stream& stream_;
  Recorded* recorded_ = nullptr;   // that is being recorded
  Recorded* comparing_ = nullptr;  // that is being compared with what its work is now
  size_t num_compared_ = 0;
  std::optional<GraphRecording> piece_;  // of it, the one that is open
};

}  // namespace foretoken::cuda
