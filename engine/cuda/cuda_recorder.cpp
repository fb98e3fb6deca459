#include "engine/cuda/cuda_recorder.h"

#include <utility>

#include "kernels/base/error.h"

namespace foretoken::cuda {

void Recorder::run(Recorded& recorded, const std::function<void()>& work) {
  FT_CHECK(recorded_ == nullptr);
  if (recorded.is_recorded_) {
    if (recordings_are_compared()) compare(recorded, work);
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

void Recorder::compare(Recorded& recorded, const std::function<void()>& work) {
  comparing_ = &recorded;
  num_compared_ = 0;
  try {
    piece_.emplace(stream_);
    work();
    compare_piece();
    FT_CHECK_EQ(num_compared_, recorded.graphs_.size());
  } catch (...) {
    piece_.reset();
    comparing_ = nullptr;
    throw;
  }
  comparing_ = nullptr;
}

void Recorder::compare_piece() {
  FT_CHECK(num_compared_ < comparing_->graphs_.size());
  const Graph again = piece_->end();
  piece_.reset();
  comparing_->graphs_[num_compared_++].require_same(again);
}

void Recorder::end_piece() {
  recorded_->graphs_.push_back(piece_->end());
  piece_.reset();
  recorded_->graphs_.back().launch(stream_);
}

void Recorder::cut(std::function<void()> step) {
  if (comparing_ != nullptr) {
    compare_piece();
    piece_.emplace(stream_);
    return;
  }
  if (recorded_ == nullptr) return step();
  end_piece();
  step();
  recorded_->steps_.push_back(std::move(step));
  piece_.emplace(stream_);
}

}  // namespace foretoken::cuda
