// The search proper. For each group of receivers, all atoms and images near the group's bounding
// box are gathered; every receiver then tries these candidates, several at once, in float32. Only
// those within the error bound of the cutoff are decided by pair_in_range.
//
// A found pair is one word: (index of the sender within its system, code of its image) so that
// words sort like (sender, shift). Images are tried in descending order, so that an atom's images
// are found in descending order too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "neighbors/buffer.h"
#include "neighbors/grid.h"
#include "neighbors/lanes.h"
#include "neighbors/neighbors.h"

namespace molkern::MOLKERN_ISA {

struct ScanMemory {
  Buffer x[3], words, found;
  int64_t count = 0;  // of the words found

  size_t bytes() const { return 3 * x[0].bytes() + words.bytes() + found.bytes(); }
};

template <typename T, typename Word>
class Scanner {
 public:
  Scanner(const NeighborQuery<T>& query, const Grid& grid, ScanMemory& memory)
      : query_(query), grid_(grid), memory_(memory), found_(memory.count) {}
  ~Scanner() { memory_.count = found_; }
  Scanner(const Scanner&) = delete;

  int64_t found() const { return found_; }

  void gather(const Group& group) {
    system_ = &grid_.systems[group.system];
    group_ = &group;
    candidates_ = 0;
    set_bounds();
    bound_box();
    gather_layers();
    reserve_candidates(padding);
    for (int k = 0; k < 3; ++k)  // NaN: never in range
      std::fill_n(x_[k] + candidates_, padding, std::numeric_limits<float>::quiet_NaN());
  }

  // The number of senders of the group's receiver `member`, which are not kept.
  int64_t count(int member) {
    const int64_t before = found_;
    const int64_t count = scan(member) - before;
    found_ = before;
    return count;
  }

  // Appends the senders of the group's receiver `member` to the words found; returns how many all
  // are.
  int64_t scan(int member) {
    Word* const all = memory_.found.grow<Word>(found_ + candidates_ + padding);
    Word* out = all + found_;
    const int64_t self = self_ + member;
    float here[3];
    for (int k = 0; k < 3; ++k) here[k] = x_[k][self];
    x_[0][self] = std::numeric_limits<float>::quiet_NaN();
    const Floats x = broadcast(here[0]), y = broadcast(here[1]), z = broadcast(here[2]);
    const Floats inside = broadcast(inside_), outside = broadcast(outside_);
    for (int64_t k = 0; k < candidates_; k += lanes) {
      const Floats dx = load(x_[0] + k) - x, dy = load(x_[1] + k) - y, dz = load(x_[2] + k) - z;
      const Floats squared = dx * dx + dy * dy + dz * dz;
      const Ints in = squared <= outside;
      uint32_t mask = bits(in);
      if (const uint32_t unsure = mask & ~bits(squared < inside)) [[unlikely]]
        mask &= ~unsure | decide(member, words_ + k, unsure);
      pack_words(out, words_ + k, mask);
      out += std::popcount(mask);
    }
    x_[0][self] = here[0];
    return found_ = out - all;
  }

 private:
  void set_bounds() {
    constexpr double rounding = 1e-6;  // of the arithmetic after the differences are taken
    const double near = (query_.cutoff - 2.0 * system_->slack) * (1.0 - rounding);
    const double far = (query_.cutoff + 2.0 * system_->slack) * (1.0 + rounding);
    inside_ = near > 0.0 ? static_cast<float>(near * near) : -1.0f;
    outside_ = static_cast<float>(far * far);
    reach_ = query_.cutoff + 4.0 * system_->slack;
    reach_squared_ = static_cast<float>(reach_ * reach_ * (1.0 + 1e-5));
  }

  void bound_box() {
    for (int k = 0; k < 3; ++k) {
      const float* x = grid_.x[k] + system_->first + group_->first;
      low_[k] = high_[k] = x[0];
      for (int32_t member = 1; member < group_->count; ++member) {
        low_[k] = x[member] < low_[k] ? x[member] : low_[k];
        high_[k] = x[member] > high_[k] ? x[member] : high_[k];
      }
    }
  }

  struct Range {
    int32_t first, last;
  };

  // Images m with  window_low <= coordinate + offset + m * length <= window_high  for some
  // coordinate in [0, extent].
  Range images(int axis, double window_low, double window_high, double offset) const {
    if (!system_->frame.periodic[axis]) return {0, 0};
    const double inverse = system_->frame.inverse[axis];
    const double bound = system_->code.bound[axis];
    const double first = std::ceil((window_low - offset - system_->extent[axis]) * inverse);
    const double last = std::floor((window_high - offset) * inverse);
    return {static_cast<int32_t>(std::clamp(first, -bound, bound + 1.0)),
            static_cast<int32_t>(std::clamp(last, -bound - 1.0, bound))};
  }

  Range bins(int axis, double window_low, double window_high) const {
    return {system_->bin(axis, static_cast<float>(window_low)),
            system_->bin(axis, static_cast<float>(window_high))};
  }

  // Distance of a bin, moved by `offset`, from the bounding box along an axis.
  double gap(int axis, int32_t bin, double offset) const {
    const double from = bin * system_->bin_size[axis] + offset;
    const double to = from + system_->bin_size[axis];
    return std::max({from - high_[axis], low_[axis] - to, system_->slack}) - system_->slack;
  }

  void gather_layers() {
    const auto& lattice = system_->frame.lattice;
    const double low0 = low_[0] - reach_, high0 = high_[0] + reach_;
    const double low1 = low_[1] - reach_, high1 = high_[1] + reach_;
    const Range m0 = images(0, low0, high0, 0.0);
    for (m_[0] = m0.last; m_[0] >= m0.first; --m_[0]) {
      offset_[0] = m_[0] * lattice[0][0];
      const Range layer = bins(0, low0 - offset_[0], high0 - offset_[0]);
      const double offset1 = m_[0] * lattice[0][1];
      const Range m1 = images(1, low1, high1, offset1);
      for (m_[1] = m1.last; m_[1] >= m1.first; --m_[1]) {
        offset_[1] = offset1 + m_[1] * lattice[1][1];
        const Range row = bins(1, low1 - offset_[1], high1 - offset_[1]);
        for (int32_t b0 = layer.first; b0 <= layer.last; ++b0) {
          const double gap0 = gap(0, b0, offset_[0]);
          for (int32_t b1 = row.first; b1 <= row.last; ++b1) {
            const double gap1 = gap(1, b1, offset_[1]);
            const double height_squared = reach_ * reach_ - gap0 * gap0 - gap1 * gap1;
            if (height_squared >= 0.0)
              gather_column(b0 * system_->bins[1] + b1, std::sqrt(height_squared));
          }
        }
      }
    }
  }

  void gather_column(int32_t column, double height) {
    const auto& lattice = system_->frame.lattice;
    const int32_t* start =
        grid_.bin_start + system_->first_bin + int64_t{column} * system_->bins[2];
    const double low = low_[2] - height, high = high_[2] + height;
    const double offset2 = m_[0] * lattice[0][2] + m_[1] * lattice[1][2];
    const Range m2 = images(2, low, high, offset2);
    for (m_[2] = m2.last; m_[2] >= m2.first; --m_[2]) {
      offset_[2] = offset2 + m_[2] * lattice[2][2];
      const Range run = bins(2, low - offset_[2], high - offset_[2]);
      const int32_t first = start[run.first], last = start[run.last + 1];
      if (column == group_->column && !m_[0] && !m_[1] && !m_[2]) {
        gather_run(first, group_->first);
        self_ = candidates_;  // the group's own atoms follow, none is left out
        gather_run(group_->first, last);
      } else {
        gather_run(first, last);
      }
    }
  }

  // Takes those of a run of sorted atoms that lie near enough to the bounding box.
  void gather_run(int32_t first, int32_t last) {
    if (first >= last) return;
    reserve_candidates(last - first + padding);
    const uint32_t code = system_->code.pack(m_[0], m_[1], m_[2]);
    const int code_bits = system_->code.bits;
    const float offset[3] = {static_cast<float>(offset_[0]), static_cast<float>(offset_[1]),
                             static_cast<float>(offset_[2])};
    const int32_t* order = grid_.order + system_->first;
    for (int32_t k = first; k < last; k += lanes) {
      Floats x[3], squared = {};
      for (int d = 0; d < 3; ++d) {
        x[d] = load(grid_.x[d] + system_->first + k) + offset[d];
        const Floats below = low_[d] - x[d], above = x[d] - high_[d];
        Floats outside = below > above ? below : above;
        outside = outside > 0.0f ? outside : Floats{};
        squared += outside * outside;
      }
      uint32_t mask = bits(squared <= reach_squared_);
      if (last - k < lanes) mask &= (1u << (last - k)) - 1;
      for (int d = 0; d < 3; ++d) pack(x_[d] + candidates_, x[d], mask);
      Word words[lanes];
      for (int l = 0; l < lanes; ++l)
        words[l] = static_cast<Word>(order[k + l]) << code_bits | code;
      pack_words(words_ + candidates_, words, mask);
      candidates_ += std::popcount(mask);
    }
  }

  void reserve_candidates(int64_t more) {
    for (int k = 0; k < 3; ++k) x_[k] = memory_.x[k].grow<float>(candidates_ + more);
    words_ = memory_.words.grow<Word>(candidates_ + more);
  }

  // Of the candidates in `unsure`, those that are in range.
  uint32_t decide(int member, const Word* words, uint32_t unsure) const {
    const int64_t first = system_->first;
    const int32_t receiver = grid_.order[first + group_->first + member];
    const T* const xi = query_.positions + 3 * (first + receiver);
    const T* const cell = query_.cell ? query_.cell + 9 * group_->system : nullptr;
    const int32_t* const wi = grid_.wraps[first + receiver];
    uint32_t decided = 0;
    for (; unsure; unsure &= unsure - 1) {
      const int lane = std::countr_zero(unsure);
      const Word sender = words[lane] >> system_->code.bits;
      const uint32_t code_mask = (1u << system_->code.bits) - 1;
      const int32_t* const wj = grid_.wraps[first + static_cast<int64_t>(sender)];
      int32_t shift[3];
      system_->code.unpack(static_cast<uint32_t>(words[lane]) & code_mask, shift);
      for (int k = 0; k < 3; ++k) shift[k] += wi[k] - wj[k];
      const T* const xj = query_.positions + 3 * (first + static_cast<int64_t>(sender));
      if (pair_in_range(xi, xj, shift, cell, query_.cutoff * query_.cutoff)) decided |= 1u << lane;
    }
    return decided;
  }

  const NeighborQuery<T>& query_;
  const Grid& grid_;
  ScanMemory& memory_;
  const System* system_ = nullptr;
  const Group* group_ = nullptr;
  float inside_, outside_;  // squared: nearer is in range, farther is not
  double reach_;            // what candidates must be within, of the bounding box
  float reach_squared_;
  float low_[3], high_[3];  // the group's bounding box
  int32_t m_[3];            // the image being gathered
  double offset_[3];        // and where it lies
  float* x_[3];             // [candidates + padding]
  Word* words_;             // [candidates + padding]
  int64_t candidates_ = 0;
  int64_t self_ = 0;  // candidate that is the group's first atom
  int64_t found_;     // words
};

}  // namespace molkern::MOLKERN_ISA
