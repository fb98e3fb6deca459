#include "engine/cuda/cuda_recorder.h"

#include <utility>

#include "kernels/base/error.h"

namespace foretoken::cuda {

void Recorder::run(Recorded& recorded, const std::function<void()>& work) {
  FT_CHECK(recorded_ == nullptr);
  if (recorded.is_recorded_) {
    for (size_t i = 0; i < recorded.graphs_.size(); ++i) {
      recorded.graphs_[i].launch(stream_);
      if (i < recorded.steps_.size()) recorded.steps_[i]();
    }
    return;
  }
  if (!recorded.ran_once_) {
    recorded.ran_once_ = true;
    return work();
  }
  recorded_ = &recorded;
  try {
    piece_.emplace(stream_);
    work();
    end_piece();
  } catch (...) {
    piece_.reset();
    recorded_ = nullptr;
    recorded.graphs_.clear();
    recorded.steps_.clear();
    throw;
  }
  recorded_ = nullptr;
  recorded.is_recorded_ = true;
}

void Recorder::end_piece() {
  recorded_->graphs_.push_back(piece_->end());
  piece_.reset();
  recorded_->graphs_.back().launch(stream_);
}

void Recorder::cut(std::function<void()> step) {
  if (recorded_ == nullptr) return step();
  end_piece();
  step();
  recorded_->steps_.push_back(std::move(step));
  piece_.emplace(stream_);
}

}  // namespace foretoken::cuda
