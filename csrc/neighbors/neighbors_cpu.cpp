#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "common/idle_memory.h"
#include "common/parallel.h"
#include "neighbors/grid.h"
#include "neighbors/neighbors.h"
#include "neighbors/scan.h"
#include "neighbors/sort.h"

namespace molkern {
namespace MOLKERN_ISA {

constexpr int64_t atoms_per_thread = 512;              // fewer are not worth waking a thread
constexpr int64_t groups_at_once = 8;                  // that a thread takes from the common pool
constexpr int64_t rows_at_once = 512;                  // written before the next ones are
constexpr size_t most_memory_kept = size_t{32} << 20;  // of all searches, between them
constexpr int64_t bytes_at_first = int64_t{1} << 26;   // of pairs kept before it is asked how many

struct Memory {
  Grid grid;
  GridMemory grid_memory;
  std::vector<ScanMemory> scans;
  Buffer places, before, cursors, sorted;

  size_t bytes() const {
    size_t sum = grid_memory.bytes() + places.bytes() + before.bytes() + cursors.bytes();
    for (const ScanMemory& scan : scans) sum += scan.bytes();
    return sum + sorted.bytes();
  }
};

// Memory of searches that are over. Locks are tried only, as in the block pool.
class KeptMemory {
 public:
  static KeptMemory& instance() {
    static KeptMemory* const kept = [] {
      auto* made = new KeptMemory;
      on_drop([] { instance().drop(); });
      return made;
    }();
    return *kept;
  }

  std::unique_ptr<Memory> take() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || idle_.empty()) return std::make_unique<Memory>();
    std::unique_ptr<Memory> found = std::move(idle_.back());
    idle_.pop_back();
    bytes_ -= found->bytes();
    return found;
  }

  void give_back(std::unique_ptr<Memory> memory) {
    const size_t bytes = memory->bytes();
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || idle_.size() == idle_.capacity() || bytes_ + bytes > most_memory_kept) return;
    idle_.push_back(std::move(memory));
    bytes_ += bytes;
  }

 private:
  KeptMemory() { idle_.reserve(64); }

  void drop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.clear();
    bytes_ = 0;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Memory>> idle_;  // never grows: what gives back must not throw
  size_t bytes_ = 0;
};

// Memory for one search, taken from one before where possible.
class BorrowedMemory {
 public:
  BorrowedMemory() : memory_(KeptMemory::instance().take()) {
    memory_->grid.error = SearchError::none;
  }
  BorrowedMemory(BorrowedMemory&&) = default;
  ~BorrowedMemory() {
    if (memory_) KeptMemory::instance().give_back(std::move(memory_));
  }
  Memory* operator->() const { return memory_.get(); }

 private:
  std::unique_ptr<Memory> memory_;
};

template <typename T, typename Word>
class Found final : public FoundNeighbors {
 public:
  Found(const NeighborQuery<T>& query, BorrowedMemory memory, int32_t* row_ptr, int threads)
      : query_(query), memory_(std::move(memory)), row_ptr_(row_ptr), threads_(threads) {}

  // Fills row_ptr; returns the number of edges, which may be more than row_ptr can count.
  int64_t search() {
    places_ = memory_->places.get<Place>(query_.atoms);
    before_ = memory_->before.get<int32_t>((threads_ - 1) * query_.atoms);
    std::vector<ScanMemory>& scans = memory_->scans;
    if (static_cast<int>(scans.size()) < threads_) scans.resize(threads_);
    const double expected = expected_edges();
    const double reserved = expected > most_edges ? 0.0 : std::min(expected, 1e9 / sizeof(Word));
    for (int worker = 0; worker < threads_; ++worker) {
      scans[worker].found.get<Word>(static_cast<int64_t>(reserved) / threads_);
      scans[worker].count = 0;
    }
    Progress progress;
    progress.most =
        expected > most_edges ? -1 : bytes_at_first / static_cast<int64_t>(sizeof(Word));
    scan_all(progress);
    const int64_t groups = static_cast<int64_t>(memory_->grid.groups.size());
    int64_t next = 0, edges = 0;
    while (progress.next < groups) {
      // Few, if the others have as many as the last ones had. Else, or if that is not known, they
      // are counted first and none is kept.
      const double each =
          static_cast<double>(progress.edges - edges) / static_cast<double>(progress.next - next);
      next = progress.next;
      edges = progress.edges;
      const bool few = static_cast<double>(edges) + each * static_cast<double>(groups - next) <
                       0.5 * static_cast<double>(most_edges);
      progress.most = few ? 2 * edges : most_edges;
      if (!few && !can_be_counted(progress)) return most_edges + 1;
      scan_all(progress);
    }
    return count_edges();
  }

  void write(const NeighborOutput& output) override {
    const int64_t atoms = query_.atoms, edges = row_ptr_[atoms];
    pad(output, edges);
    // One set of cursors per chunk and one for the second walk of the first chunk; the other
    // chunks' second walks begin where the chunk before them ended its first.
    int32_t* cursors = memory_->cursors.get<int32_t>((threads_ + 1) * atoms);
    Word* sorted = nullptr;
    if constexpr (sizeof(Word) == sizeof(int32_t))
      sorted = reinterpret_cast<Word*>(output.reverse);
    else
      sorted = memory_->sorted.get<Word>(edges);
    std::vector<const Word*> found;
    for (ScanMemory& scan : memory_->scans) found.push_back(scan.found.get<Word>(0));
    parallel_for(threads_, threads_, [&](int64_t chunk) {
      int32_t* cursor = cursors + chunk * atoms;
      start_cursors(chunk, cursor);
      each_system(chunk, [&](const RowRange<Word>& rows) {
        transpose_rows(rows, places_, found.data(), cursor, sorted);
      });
    });
    parallel_for(threads_, threads_, [&](int64_t chunk) {
      int32_t* cursor = cursors + (chunk ? chunk - 1 : threads_) * atoms;
      if (!chunk) start_cursors(0, cursor);
      each_system(chunk, [&](const RowRange<Word>& rows) {
        // A few rows at a time: their sorted words stay in cache from one pass to the next.
        RowRange<Word> part = rows;
        for (; part.from < rows.to; part.from = part.to) {
          part.to = std::min(part.from + rows_at_once, rows.to);
          if (output.shifts) write_shifts(part, sorted, memory_->grid.wraps, output.shifts);
          write_pairs(part, sorted, cursor, output);
        }
      });
    });
  }

 private:
  // Groups are scanned in order until more than `most` edges are found.
  struct Progress {
    std::atomic<int64_t> next{0}, edges{0};
    int64_t most = 0;
    bool keeps = true;  // the pairs, besides counting them
  };

  void scan_all(Progress& progress) {
    parallel_for(threads_, threads_,
                 [&](int64_t worker) { scan_groups(static_cast<int>(worker), progress); });
  }

  // Whether int32 can count the edges, those of all groups that were not scanned yet included.
  bool can_be_counted(const Progress& progress) {
    Progress count;
    count.next = progress.next.load();
    count.edges = progress.edges.load();
    count.most = most_edges;
    count.keeps = false;
    scan_all(count);
    return count.edges <= most_edges;
  }

  int64_t first_row(int64_t chunk) const { return query_.atoms * chunk / threads_; }

  // About as many as there will be, from the mean density.
  double expected_edges() const {
    const double radius = query_.cutoff;
    double edges = 0.0;
    for (const System& system : memory_->grid.systems) {
      double volume = 1.0;
      for (double extent : system.extent) volume *= std::max(extent, radius);
      const double atoms = static_cast<double>(system.count);
      edges += atoms * atoms * std::min(4.19 * radius * radius * radius / volume, 1.0);
    }
    return edges;
  }

  void scan_groups(int worker, Progress& progress) {
    const std::vector<Group>& groups = memory_->grid.groups;
    const int64_t count = static_cast<int64_t>(groups.size());
    Scanner<T, Word> scanner(query_, memory_->grid, memory_->scans[worker]);
    while (progress.edges.load(std::memory_order_relaxed) <= progress.most) {
      int64_t g = progress.next.fetch_add(groups_at_once, std::memory_order_relaxed);
      const int64_t end = std::min(g + groups_at_once, count);
      if (g >= end) return;
      int64_t edges = 0;
      for (; g < end; ++g) {
        scanner.gather(groups[g]);
        for (int32_t member = 0; member < groups[g].count; ++member) {
          if (progress.keeps)
            edges += scan_row(scanner, worker, groups[g], member);
          else
            edges += scanner.count(member);
        }
      }
      progress.edges.fetch_add(edges, std::memory_order_relaxed);
    }
  }

  int64_t row(const Group& group, int32_t member) const {
    const Grid& grid = memory_->grid;
    const int64_t first = grid.systems[group.system].first;
    return first + grid.order[first + group.first + member];
  }

  int64_t scan_row(Scanner<T, Word>& scanner, int worker, const Group& group, int32_t member) {
    const System& system = memory_->grid.systems[group.system];
    const int64_t begin = scanner.found(), i = row(group, member);
    const int64_t count = scanner.scan(member) - begin;
    row_ptr_[i + 1] = static_cast<int32_t>(count);
    places_[i] = {worker, begin};
    const Word* words = memory_->scans[worker].found.template get<Word>(0) + begin;
    for (int chunk = 1; chunk < threads_; ++chunk) {
      const int64_t senders = first_row(chunk) - system.first;
      int32_t before = senders > 0 ? static_cast<int32_t>(count) : 0;
      if (senders > 0 && senders < system.count) {
        before = 0;
        const Word limit = static_cast<Word>(senders) << system.code.bits;
        for (int64_t k = 0; k < count; ++k) before += words[k] < limit;
      }
      before_[(chunk - 1) * query_.atoms + i] = before;
    }
    return count;
  }

  int64_t count_edges() {
    row_ptr_[0] = 0;
    int64_t edges = 0;
    for (int64_t i = 0; i < query_.atoms; ++i) {
      edges += row_ptr_[i + 1];
      if (edges > most_edges) return edges;
      row_ptr_[i + 1] = static_cast<int32_t>(edges);
    }
    return edges;
  }

  void start_cursors(int64_t chunk, int32_t* cursor) const {
    std::copy_n(row_ptr_, query_.atoms, cursor);
    if (!chunk) return;
    const int32_t* before = before_ + (chunk - 1) * query_.atoms;
    for (int64_t j = 0; j < query_.atoms; ++j) cursor[j] += before[j];
  }

  // Calls function(rows) for the rows that the chunk has of each system.
  template <typename Function>
  void each_system(int64_t chunk, Function&& function) const {
    const std::vector<System>& systems = memory_->grid.systems;
    const int64_t from = first_row(chunk), to = first_row(chunk + 1);
    const auto later = [](int64_t row, const System& system) { return row < system.first; };
    auto system = std::upper_bound(systems.begin(), systems.end(), from, later);
    if (system != systems.begin()) --system;
    for (; system != systems.end() && system->first < to; ++system) {
      const int64_t end = std::min(to, system->first + system->count);
      function(RowRange<Word>{*system, std::max(from, system->first), end, row_ptr_});
    }
  }

  static void pad(const NeighborOutput& output, int64_t edges) {
    std::fill(output.senders + edges, output.senders + output.capacity, -1);
    std::fill(output.receivers + edges, output.receivers + output.capacity, -1);
    std::fill(output.reverse + edges, output.reverse + output.capacity, -1);
    if (output.shifts) std::fill(output.shifts + 3 * edges, output.shifts + 3 * output.capacity, 0);
  }

  const NeighborQuery<T> query_;
  const BorrowedMemory memory_;
  int32_t* const row_ptr_;
  const int threads_;
  Place* places_ = nullptr;  // [atoms]
  int32_t* before_ =
      nullptr;  // [threads - 1, atoms] entries of a row from rows before chunk 1, 2, ..
};

template <typename Word, typename T>
std::unique_ptr<FoundNeighbors> search_with(const NeighborQuery<T>& query, BorrowedMemory memory,
                                            int32_t* row_ptr, SearchStatus* status, int threads) {
  auto found = std::make_unique<Found<T, Word>>(query, std::move(memory), row_ptr, threads);
  status->edges = found->search();
  if (status->edges > most_edges) status->error = SearchError::too_many_edges;
  return found;
}

}  // namespace MOLKERN_ISA

template <Isa isa, typename T>
std::unique_ptr<FoundNeighbors> search_neighbors_cpu(const NeighborQuery<T>& query,
                                                     int32_t* row_ptr, SearchStatus* status,
                                                     int threads) {
  using namespace MOLKERN_ISA;
  const int64_t useful = std::max<int64_t>(query.atoms / atoms_per_thread, 1);
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  *status = {0, SearchError::none, 0};
  BorrowedMemory memory;
  Grid& grid = memory->grid;
  if (!GridBuilder<T>(query, memory->grid_memory, grid, threads).build()) {
    status->error = grid.error;
    status->index = static_cast<int32_t>(grid.error_index);
    return nullptr;
  }
  if (grid.word_bits <= 32)
    return search_with<uint32_t>(query, std::move(memory), row_ptr, status, threads);
  return search_with<uint64_t>(query, std::move(memory), row_ptr, status, threads);
}

#define MOLKERN_INSTANTIATE(T)                                                        \
  template std::unique_ptr<FoundNeighbors> search_neighbors_cpu<Isa::MOLKERN_ISA, T>( \
      const NeighborQuery<T>&, int32_t*, SearchStatus*, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
