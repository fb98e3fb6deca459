#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/cluster/cluster.h"
#include "engine/transport.h"
#include "kernels/base/error.h"

// A cluster whose ranks are threads of one process.

namespace foretoken::test {

class ThreadNetwork {
 public:
  explicit ThreadNetwork(int num_ranks, bool shares_memory = false)
      : num_ranks_(num_ranks), shares_memory_(shares_memory) {
    inboxes_.resize(num_ranks * num_ranks);
  }

  class Transport final : public foretoken::Transport {
   public:
    Transport(ThreadNetwork& network, int rank) : network_(network), rank_(rank) {}
    int rank() const override { return rank_; }
    int num_ranks() const override { return network_.num_ranks_; }
    bool shares_memory() const override { return network_.shares_memory_; }
    void broadcast(std::span<std::byte> bytes) override {
      ++totals_.num_messages;
      if (rank_ == 0) {
        for (int to = 1; to < num_ranks(); ++to) put(to, bytes);
      } else {
        take(0, bytes);
      }
    }
    void broadcast_message(std::vector<std::byte>& bytes) override {
      ++totals_.num_messages;
      if (rank_ == 0) {
        for (int to = 1; to < num_ranks(); ++to) put(to, bytes);
      } else {
        bytes = take_whole(0);
        totals_.bytes_received += static_cast<int64_t>(bytes.size());
      }
    }
    void all_gather(std::byte* all, std::span<const int64_t> ends) override {
      ++num_gathers;
      ++totals_.num_messages;
      FT_CHECK_EQ(static_cast<int>(ends.size()), num_ranks());
      for (int to = 0; to < num_ranks(); ++to) {
        if (to != rank_) put(to, part(all, ends, rank_));
      }
      for (int from = 0; from < num_ranks(); ++from) {
        if (from != rank_) take(from, part(all, ends, from));
      }
    }
    void send(int to, std::span<const std::byte> bytes) override {
      ++totals_.num_messages;
      put(to, bytes);
    }
    void receive(int from, std::span<std::byte> bytes) override {
      ++totals_.num_messages;
      take(from, bytes);
    }

    int64_t num_gathers = 0;

   private:
    void put(int to, std::span<const std::byte> bytes) {
      const std::lock_guard lock(network_.mutex_);
      network_.inbox(rank_, to).emplace_back(bytes.begin(), bytes.end());
      network_.arrived_.notify_all();
    }
    void take(int from, std::span<std::byte> bytes) {
      totals_.bytes_received += static_cast<int64_t>(bytes.size());
      const std::vector<std::byte> message = take_whole(from);
      FT_CHECK_EQ(message.size(), bytes.size());
      std::copy(message.begin(), message.end(), bytes.begin());
    }
    std::vector<std::byte> take_whole(int from) {
      std::unique_lock lock(network_.mutex_);
      std::deque<std::vector<std::byte>>& inbox = network_.inbox(from, rank_);
      network_.arrived_.wait(lock, [&] { return !inbox.empty(); });
      std::vector<std::byte> message = std::move(inbox.front());
      inbox.pop_front();
      return message;
    }
    static std::span<std::byte> part(std::byte* all, std::span<const int64_t> ends, int rank) {
      const int64_t begin = rank == 0 ? 0 : ends[static_cast<size_t>(rank) - 1];
      return {all + begin, static_cast<size_t>(ends[rank] - begin)};
    }
    ThreadNetwork& network_;
    const int rank_;
  };

 private:
  [[nodiscard]] std::deque<std::vector<std::byte>>& inbox(int from, int to) { return inboxes_[from * num_ranks_ + to]; }

  const int num_ranks_;
  const bool shares_memory_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::deque<std::vector<std::byte>>> inboxes_;  // [from][to]
};

/// Rank 0 is the thread that makes it; the others follow until it goes.
class ThreadCluster {
 public:
  /// change: what a rank is made to be, if something else than the others. shares_memory: what the transports say.
  explicit ThreadCluster(int num_ranks, ClusterMember member = {"test", best_isa(), 1, {}},
                         const std::function<void(int rank, ClusterMember&)>& change = {}, bool shares_memory = false)
      : network_(num_ranks, shares_memory) {
    for (int rank = 0; rank < num_ranks; ++rank) {
      members_.push_back(member);
      if (change) change(rank, members_.back());
      transports_.push_back(std::make_unique<ThreadNetwork::Transport>(network_, rank));
    }
    for (int rank = 1; rank < num_ranks; ++rank) {
      followers_.emplace_back([this, rank] { follow(*transports_[rank], members_[rank]); });
    }
    cluster_ = std::make_unique<Cluster>(*transports_[0], members_[0]);
  }
  ~ThreadCluster() {
    cluster_.reset();
    for (std::thread& follower : followers_) follower.join();
  }

  [[nodiscard]] Cluster& cluster() { return *cluster_; }
  [[nodiscard]] ThreadNetwork::Transport& transport() { return *transports_[0]; }

 private:
  ThreadNetwork network_;
  std::vector<ClusterMember> members_;
  std::vector<std::unique_ptr<ThreadNetwork::Transport>> transports_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Cluster> cluster_;
};

}  // namespace foretoken::test
