// From the scan's unsorted rows to the sorted list.
//
// The list is symmetric, so sorting it is transposing it: walking the rows in order and appending
// (row, -shift) to each sender's row leaves every row sorted; images of one pair are found in
// descending order, so they arrive in ascending order. `reverse` takes a second such walk, over the
// sorted rows: the entries of row j meet their partners in ascending order of the partners' rows,
// so the next one is always at row j's cursor; images of one pair meet in mirrored order.
//
// Work is divided into chunks of rows; each begins to append, and to meet, behind the entries that
// rows of earlier chunks sent to a row. Cursors are [atoms] of a chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/memory.h"
#include "neighbors/grid.h"
#include "neighbors/neighbors.h"

namespace molkern::MOLKERN_ISA {

typedef int32_t Shift __attribute__((vector_size(16)));  // the fourth is zero

// The shifts that a system's image codes stand for, from a table where there are few.
class Shifts {
 public:
  explicit Shifts(const ImageCode& code) : code_(code) {
    if (code.bits > table_bits) return;
    for (uint32_t k = 0; k < 1u << code.bits; ++k) table_[k] = unpack(k);
  }
  Shift operator[](uint32_t code) const {
    return code_.bits > table_bits ? unpack(code) : table_[code];
  }

 private:
  static constexpr int table_bits = 8;
  Shift unpack(uint32_t code) const {
    int32_t m[3];
    code_.unpack(code, m);
    return Shift{m[0], m[1], m[2], 0};
  }
  const ImageCode& code_;
  Shift table_[1 << table_bits];
};

// Rows [from, to) of one system.
template <typename Word>
struct RowRange {
  const System& system;
  int64_t from, to;
  const int32_t* row_ptr;  // of all atoms

  Word code_mask() const { return (Word{1} << system.code.bits) - 1; }
};

// Where the scan put a row's words: in which worker's memory, from which word on.
struct Place {
  int64_t worker, begin;
};

template <typename Word>
void transpose_rows(const RowRange<Word>& rows, const Place* places, const Word* const* found,
                    int32_t* cursor, Word* sorted) {
  const int bits = rows.system.code.bits;
  const Word mask = rows.code_mask(), symmetric = rows.system.code.symmetric;
  cursor += rows.system.first;
  for (int64_t i = rows.from; i < rows.to; ++i) {
    const Word own = static_cast<Word>(i - rows.system.first) << bits;
    const Word* words = found[places[i].worker] + places[i].begin;
    const int64_t count = rows.row_ptr[i + 1] - rows.row_ptr[i];
    for (int64_t k = 0; k < count; ++k)
      sorted[cursor[words[k] >> bits]++] = own | (symmetric - (words[k] & mask));
  }
}

// Writes the reverse of a row's edges where a pair may have several images.
template <typename Word>
void meet_images(const Word* sorted, int64_t begin, int64_t end, int bits, int32_t* cursor,
                 int32_t* reverse) {
  while (begin < end) {
    const Word sender = sorted[begin] >> bits;
    int64_t images_end = begin + 1;
    while (images_end < end && sorted[images_end] >> bits == sender) ++images_end;
    int32_t partner = cursor[sender] += static_cast<int32_t>(images_end - begin);
    while (begin < images_end) reverse[begin++] = --partner;
  }
}

// Writes senders, receivers and reverse. `sorted` may be the memory of `reverse`.
template <typename Word>
void write_pairs(const RowRange<Word>& rows, const Word* sorted, int32_t* cursor,
                 const NeighborOutput& output) {
  const int bits = rows.system.code.bits;
  const int32_t first = static_cast<int32_t>(rows.system.first);
  cursor += first;
  for (int64_t i = rows.from; i < rows.to; ++i) {
    const int64_t begin = rows.row_ptr[i], end = rows.row_ptr[i + 1];
    for (int64_t e = begin; e < end; ++e)
      output.senders[e] = first + static_cast<int32_t>(sorted[e] >> bits);
    std::fill(output.receivers + begin, output.receivers + end, static_cast<int32_t>(i));
    if (rows.system.several_images)
      meet_images(sorted, begin, end, bits, cursor, output.reverse);
    else
      for (int64_t e = begin; e < end; ++e) {
        prefetch_to_write(output.senders + e, 1024);
        prefetch_to_write(output.receivers + e, 1024);
        output.reverse[e] = cursor[sorted[e] >> bits]++;
      }
  }
}

// Writes shifts; before write_pairs, which may overwrite `sorted`. Four numbers are stored at a
// time, the fourth to be overwritten by the next edge, but for the last edge.
template <typename Word>
void write_shifts(const RowRange<Word>& rows, const Word* sorted, const int32_t (*wraps)[4],
                  int32_t* shifts) {
  const int64_t begin = rows.row_ptr[rows.from], end = rows.row_ptr[rows.to];
  if (begin == end) return;
  const Shifts table(rows.system.code);
  const Word mask = rows.code_mask();
  const int bits = rows.system.code.bits;
  wraps += rows.system.first;
  const auto shift_of = [&](int64_t e, Shift own) {
    const Shift shift = table[static_cast<uint32_t>(sorted[e] & mask)];
    if (!rows.system.wrapped) return shift;
    Shift theirs;
    std::memcpy(&theirs, wraps[sorted[e] >> bits], sizeof theirs);
    return shift + own - theirs;
  };
  for (int64_t i = rows.from; i < rows.to; ++i) {
    Shift own{};
    if (rows.system.wrapped) std::memcpy(&own, wraps[i - rows.system.first], sizeof own);
    const int64_t last = std::min<int64_t>(rows.row_ptr[i + 1], end - 1);
    for (int64_t e = rows.row_ptr[i]; e < last; ++e) {
      const Shift shift = shift_of(e, own);
      prefetch_to_write(shifts + 3 * e, 3072);
      std::memcpy(shifts + 3 * e, &shift, 16);
    }
    if (rows.row_ptr[i] <= last && last < rows.row_ptr[i + 1]) {
      const Shift shift = shift_of(last, own);
      std::memcpy(shifts + 3 * last, &shift, 12);
    }
  }
}

}  // namespace molkern::MOLKERN_ISA
