// Rows of the cell list. The candidates of a cell, its 27 cells around, are copied side by side once for all atoms of
// the cell, moved to where the cell sees them; float32 distances then settle all pairs but the few at the cutoff.
#include <stdlib.h>

#include "compress.hpp"
#include "neighbor_cells.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr int kBlock = 1024;  // candidates side by side
constexpr int kLanes = Simd<float>::lanes;
constexpr int kAround = 27;
constexpr std::int32_t kSameImage = 13;  // images are numbered 9 (x + 1) + 3 (y + 1) + z + 1 for x, y, z in -1..1

typedef Pack<float> Floats;

// One cell around another: its places, the image it is seen in, and where that is.
struct Around {
  std::int32_t begin, end, image;
  float offset[3];
};

// With few cells along an axis the same one may be around twice, in two images.
int find_around(const Grid& grid, const std::int32_t* first, const int* c, bool periodic, Around* out) {
  int n = 0;
  for (int at = 0; at < kAround; ++at) {
    const int step[3] = {at / 9 - 1, at / 3 % 3 - 1, at % 3 - 1};
    std::int64_t index = 0;
    std::int32_t image = 0;
    bool inside = true;
    double offset[3] = {0, 0, 0};
    for (int k = 0; k < 3; ++k) {
      int there = c[k] + step[k], wrap = 0;
      if (there < 0) there += grid.n[k], wrap = -1;
      else if (there >= grid.n[k]) there -= grid.n[k], wrap = 1;
      inside = inside && (periodic || wrap == 0);
      index = index * grid.n[k] + there;
      image = 3 * image + wrap + 1;
      for (int j = 0; j < 3; ++j) offset[j] += step[k] * grid.side[3 * k + j];
    }
    if (!inside) continue;
    const std::int32_t begin = first[grid.first_cell + index], end = first[grid.first_cell + index + 1];
    if (begin == end) continue;
    out[n++] = {begin, end, image, {float(offset[0]), float(offset[1]), float(offset[2])}};
  }
  return n;
}

// Candidates side by side. A register behind the last one holds atoms infinitely far away, at place -1.
struct Block {
  float x[3][kBlock + kLanes];
  std::int32_t place[kBlock + kLanes], image[kBlock + kLanes];
  int size;

  // Goes on from place `next` of around[cell]; what a copy stores too much is overwritten by the next one.
  void load_next(const Around* around, int n_around, const float* local, std::int64_t stride, int& cell,
                 std::int32_t& next) {
    size = 0;
    while (cell < n_around && size < kBlock) {
      const Around& from = around[cell];
      const int left = from.end - next, n = left < kBlock - size ? left : kBlock - size;
      for (int i = 0; i < n; i += kLanes) {
        for (int k = 0; k < 3; ++k)
          store<float>(x[k] + size + i, load(local + k * stride + next + i) + from.offset[k]);
        for (int lane = 0; lane < kLanes; ++lane) place[size + i + lane] = next + i + lane;
        for (int lane = 0; lane < kLanes; ++lane) image[size + i + lane] = from.image;
      }
      size += n;
      next += n;
      if (next == from.end && ++cell < n_around) next = around[cell].begin;
    }
    for (int lane = 0; lane < kLanes; ++lane) x[0][size + lane] = HUGE_VALF, place[size + lane] = -1;
  }
};

// All candidates of a cell. Mostly they fit in one block, which then serves all atoms of the cell.
struct Candidates {
  Around around[kAround];
  int n_around;
  bool whole;
  const float* local;
  std::int64_t stride;
  Block block;

  void enter(const Grid& grid, const std::int32_t* first, const int* c, bool periodic) {
    n_around = find_around(grid, first, c, periodic, around);
    std::int64_t total = 0;
    for (int i = 0; i < n_around; ++i) total += around[i].end - around[i].begin;
    whole = total <= kBlock;
    int cell = 0;
    std::int32_t next = around[0].begin;  // the cell itself is always there
    if (whole) block.load_next(around, n_around, local, stride, cell, next);
  }

  template <typename F> DIFFMD_INLINE void each_block(F f) {
    if (whole) return f(block);
    int cell = 0;
    std::int32_t next = around[0].begin;
    while (cell < n_around) {
      block.load_next(around, n_around, local, stride, cell, next);
      f(block);
    }
  }
};

// One atom looking for its neighbors in a block.
template <typename T> struct Search {
  const CellParts<T>& parts;
  const Grid& grid;
  std::int32_t place;
  Floats mine[3];

  Search(const CellParts<T>& parts, const Grid& grid, std::int64_t place)
      : parts(parts), grid(grid), place(std::int32_t(place)) {
    const std::int64_t stride = parts.n_nodes + CellParts<T>::kPad;
    for (int k = 0; k < 3; ++k) mine[k] = fill<float>(parts.local[k * stride + place]);
  }

  // Bit i: candidate first + i is listed, or is the atom itself.
  DIFFMD_INLINE unsigned examine(const Block& block, int first) const {
    const Floats x = load(block.x[0] + first) - mine[0], y = load(block.x[1] + first) - mine[1],
                 z = load(block.x[2] + first) - mine[2];
    const Floats squared = (x * x + y * y) + z * z;
    const unsigned sure = less(squared, fill<float>(grid.sure));
    const unsigned maybe = less(squared, fill<float>(grid.maybe)) | (grid.all & (~0u >> (32 - kLanes)));
    return maybe == sure ? sure : decide(block, first, sure, maybe);
  }

  __attribute__((noinline)) unsigned decide(const Block& block, int first, unsigned sure, unsigned maybe) const {
    for (unsigned open = maybe & ~sure; open; open &= open - 1) {
      const int i = first + lowest_bit(open);
      const std::int32_t other = block.place[i], image = block.image[i];
      if (other < 0) continue;
      const bool itself = other == place && image == kSameImage;
      const double *a = parts.exact + 3 * std::int64_t(place), *b = parts.exact + 3 * std::int64_t(other);
      // Listed in the nearest image only: with a cutoff of half the box, two are at the cutoff.
      const bool nearest_image = grid.metric.space == Space::open || image == nearest_image_of(a, b);
      if (itself || (nearest_image && grid.metric.lists(a, b))) sure |= 1u << (i - first);
    }
    return sure;
  }

  static std::int32_t nearest_image_of(const double* a, const double* b) {
    std::int32_t image = 0;
    for (int k = 0; k < 3; ++k) image = 3 * image + 1 - std::int32_t(nearest(b[k] - a[k]));
    return image;
  }
};

// Worker(call, parts) for every thread, and worker.visit(grid, candidates, cell) for every cell that has atoms.
template <typename Worker, typename T> bool each_cell(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n_cells = parts.n_cells(call);
  bool good = true;
#pragma omp parallel reduction(&& : good) num_threads(call.n_threads) \
    if (call.n_threads > 1 && parts.n_nodes > kWorthThreads)
  {
    Worker worker(call, parts);
    Candidates candidates;
    candidates.local = parts.local;
    candidates.stride = parts.n_nodes + CellParts<T>::kPad;
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t cell = 0; cell < n_cells; ++cell) {
      if (!worker.good || parts.first[cell] == parts.first[cell + 1]) continue;
      const Grid& grid = parts.grids[parts.replica_of(call.n_replicas, cell)];
      int c[3];
      parts.coordinates_of(grid, cell, c);
      candidates.enter(grid, parts.first, c, call.box != nullptr);
      worker.visit(grid, candidates, cell);
    }
    good = good && worker.good;
  }
  return good;
}

template <typename T> struct Counter {
  const NeighborSearch<T>& call;
  const CellParts<T>& parts;
  bool good = true;

  Counter(const NeighborSearch<T>& call, const CellParts<T>& parts) : call(call), parts(parts) {}

  void visit(const Grid& grid, Candidates& candidates, std::int64_t cell) {
    for (std::int64_t place = parts.first[cell]; place < parts.first[cell + 1]; ++place) {
      const Search<T> search(parts, grid, place);
      std::int64_t count = -1;  // itself
      candidates.each_block([&](const Block& block) {
        int hits = 0;
        for (int first = 0; first < block.size; first += kLanes) hits += count_bits(search.examine(block, first));
        count += hits;
      });
      call.row_ptr[parts.node[place] + 1] = count;
    }
  }
};

typedef std::int32_t Numbers __attribute__((vector_size(kRegisterBytes)));

// sorted[k] = which of n distinct numbers is the k-th smallest. Up to kRanked numbers by counting the smaller ones,
// which vectorizes; `number` is read and written up to four registers behind the last.
constexpr int kRanked = 128, kGroup = 4;
void sort_by_rank(std::int32_t* number, int n, std::int32_t* sorted) {
  for (int i = n; i < n + kGroup * kLanes; ++i) number[i] = 0;
  for (int i = 0; i < n; i += kGroup * kLanes) {
    Numbers mine[kGroup], rank[kGroup] = {};
    memcpy(mine, number + i, sizeof mine);
    for (int j = 0; j < n; ++j)
      for (int g = 0; g < kGroup; ++g) rank[g] -= number[j] < mine[g];
    std::int32_t ranks[kGroup * kLanes];
    memcpy(ranks, rank, sizeof ranks);
    for (int lane = 0; lane < kGroup * kLanes && i + lane < n; ++lane) sorted[ranks[lane]] = i + lane;
  }
}

// The same for long rows: pieces by rank, merged pairwise as number << 32 | index.
void sort_by_merging(std::int32_t* number, int n, std::int32_t* sorted, std::uint64_t* from, std::uint64_t* to) {
  for (int piece = 0; piece < n; piece += kRanked) {
    const int size = n - piece < kRanked ? n - piece : kRanked;
    std::int32_t copy[kRanked + kGroup * kLanes], order[kRanked];
    for (int i = 0; i < size; ++i) copy[i] = number[piece + i];
    sort_by_rank(copy, size, order);
    for (int i = 0; i < size; ++i)
      from[piece + i] = std::uint64_t(number[piece + order[i]]) << 32 | std::uint64_t(piece + order[i]);
  }
  for (std::int64_t width = kRanked; width < n; width *= 2) {
    for (std::int64_t low = 0; low < n; low += 2 * width) {
      const std::int64_t middle = low + width < n ? low + width : n, high = middle + width < n ? middle + width : n;
      for (std::int64_t i = low, a = low, b = middle; i < high; ++i)
        to[i] = b == high || (a < middle && from[a] < from[b]) ? from[a++] : from[b++];
    }
    std::uint64_t* swap = from;
    from = to, to = swap;
  }
  for (int i = 0; i < n; ++i) sorted[i] = std::int32_t(from[i] & 0xffffffffu);
}

template <typename T> struct Filler {
  const NeighborSearch<T>& call;
  const CellParts<T>& parts;
  bool good;
  char* memory;
  // the row at work: as found, then in its order
  std::int32_t *number, *place, *image, *sorted, *shift[3];
  T* x[3];
  std::uint64_t* keys[2];

  Filler(const NeighborSearch<T>& call, const CellParts<T>& parts) : call(call), parts(parts), memory(nullptr) {
    std::int64_t longest = 0;
    for (std::int64_t node = 0; node < parts.n_nodes; ++node) {
      const std::int64_t n = call.row_ptr[node + 1] - call.row_ptr[node];
      longest = n > longest ? n : longest;
    }
    const std::size_t bytes = partition(longest, nullptr);
    memory = static_cast<char*>(malloc(bytes));
    good = memory != nullptr;
    if (good) partition(longest, memory);
  }
  ~Filler() { free(memory); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

  std::size_t partition(std::int64_t longest, char* base) {
    Scratch scratch{base};
    const std::int64_t room = longest + kGroup * kLanes + 1;  // itself is found, too
    number = scratch.take<std::int32_t>(room);
    place = scratch.take<std::int32_t>(room);
    image = scratch.take<std::int32_t>(room);
    sorted = scratch.take<std::int32_t>(room);
    for (int k = 0; k < 3; ++k) shift[k] = scratch.take<std::int32_t>(room), x[k] = scratch.take<T>(room);
    for (int k = 0; k < 2; ++k) keys[k] = scratch.take<std::uint64_t>(longest > kRanked ? room : 0);
    return scratch.used;
  }

  // Writes what is found to number, place, image.
  int find(const Grid& grid, Candidates& candidates, std::int64_t mine) {
    const Search<T> search(parts, grid, mine);
    int n = 0;
    candidates.each_block([&](const Block& block) {
      std::int32_t found[kBlock + kLanes];
      int hits = 0;
      for (int first = 0; first < block.size; first += kLanes) {
        const unsigned mask = search.examine(block, first);
        append_lanes(found + hits, first, mask);
        hits += count_bits(mask);
      }
      for (int i = 0; i < hits; ++i) {
        place[n] = block.place[found[i]];
        image[n] = block.image[found[i]];
        number[n] = parts.node[place[n]];
        n += place[n] != mine || image[n] != kSameImage;
      }
    });
    return n;
  }

  void visit(const Grid& grid, Candidates& candidates, std::int64_t cell) {
    for (std::int64_t mine = parts.first[cell]; mine < parts.first[cell + 1]; ++mine) {
      const int n = find(grid, candidates, mine);
      if (n <= kRanked) sort_by_rank(number, n, sorted);
      else sort_by_merging(number, n, sorted, keys[0], keys[1]);
      write(n, mine);
    }
  }

  void write(int n, std::int64_t mine) {
    const std::int64_t node = parts.node[mine], begin = call.row_ptr[node];
    const Atom<T>& self = parts.atoms[mine];
    const double* box = call.box_of(node / call.n_atoms);
    for (int e = 0; e < n; ++e) {
      const std::int32_t i = sorted[e];
      const Atom<T>& other = parts.atoms[place[i]];
      call.col[begin + e] = number[i];
      for (int k = 0; k < 3; ++k) x[k][e] = other.x[k];
      const std::int32_t images[3] = {image[i] / 9 - 1, image[i] / 3 % 3 - 1, image[i] % 3 - 1};
      for (int k = 0; box && k < 3; ++k) {
        shift[k][e] = self.wraps[k] - other.wraps[k] + images[k];
        call.shift[3 * (begin + e) + k] = shift[k][e];
      }
    }
    if (call.vectors || call.distances)
      measure_edges<T>(n, x, shift, self.x, box, call.vectors ? call.vectors + 3 * begin : nullptr,
                       call.distances ? call.distances + begin : nullptr);
  }
};

}  // namespace

template <typename T> void count_rows(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  each_cell<Counter<T>>(call, parts);
}

template <typename T> bool fill_rows(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  return each_cell<Filler<T>>(call, parts);
}

template void count_rows<float>(const NeighborSearch<float>&, const CellParts<float>&);
template void count_rows<double>(const NeighborSearch<double>&, const CellParts<double>&);
template bool fill_rows<float>(const NeighborSearch<float>&, const CellParts<float>&);
template bool fill_rows<double>(const NeighborSearch<double>&, const CellParts<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
