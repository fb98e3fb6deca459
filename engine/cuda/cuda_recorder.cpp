#include "engine/cuda/cuda_recorder.h"

#include <utility>

#include "kernels/base/error.h"

namespace foretoken::cuda {

Graph Recorder::record(const std::function<void()>& work, std::vector<std::function<void()>>& steps) {
  FT_CHECK(steps_ == nullptr);
  steps_ = &steps;
  try {
    Graph graph(stream_, work);
    steps_ = nullptr;
    return graph;
  } catch (...) {
    steps_ = nullptr;
    throw;
  }
}

void Recorder::run(Recorded& recorded, const std::function<void()>& work) {
  if (!recorded.ran_once_ || launches_block_) {
    recorded.ran_once_ = true;
    return work();
  }
  if (!recorded.is_recorded_) {
    std::vector<std::function<void()>> steps;
    recorded.graph_ = record(work, steps);
    recorded.steps_ = std::move(steps);
    recorded.is_recorded_ = true;
  } else if (recordings_are_compared()) {
    std::vector<std::function<void()>> steps;
    recorded.graph_.require_same(record(work, steps));
    FT_CHECK_EQ(steps.size(), recorded.steps_.size());
  }
  recorded.graph_.launch(stream_);
  for (const auto& step : recorded.steps_) step();
}

void Recorder::host_step(std::function<void()> step) {
  if (steps_ == nullptr) return step();
  steps_->push_back(std::move(step));
}

}  // namespace foretoken::cuda
