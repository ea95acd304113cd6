// Rows of the cell list. The candidates of a cell, its 27 cells around, are copied side by side once for all atoms of
// the cell, moved to where the cell sees them; float32 distances then settle all pairs but the few at the cutoff.
#include <stdlib.h>

#include "compress.hpp"
#include "neighbor_cells.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr int kLanes = Simd<float>::lanes;
constexpr int kAround = 27;
constexpr std::int64_t kMost = 1 << 30;  // candidates of a cell

typedef Pack<float> Floats;
typedef std::int32_t Quad __attribute__((vector_size(16)));

// One cell around another: its places, the image it is seen in, where that is, and which candidates it holds.
struct Around {
  std::int32_t begin, end, image[3];
  float offset[3];
  std::int32_t first;

  bool in_image(std::int32_t x, std::int32_t y, std::int32_t z) const {
    return image[0] == x && image[1] == y && image[2] == z;
  }
};

// With few cells along an axis the same one may be around twice, in two images.
int find_around(const Grid& grid, const std::int32_t* first, const int* c, bool periodic, Around* out) {
  int there[3][3], image[3][3];
  for (int k = 0; k < 3; ++k) {
    for (int step = 0; step < 3; ++step) {
      const int to = c[k] + step - 1;
      image[k][step] = to < 0 ? -1 : to >= grid.n[k] ? 1 : 0;
      there[k][step] = to - image[k][step] * grid.n[k];
    }
  }
  int n = 0;
  for (int at = 0; at < kAround; ++at) {
    const int i = at / 9, j = at / 3 % 3, l = at % 3;
    if (!periodic && (image[0][i] != 0 || image[1][j] != 0 || image[2][l] != 0)) continue;
    const std::int64_t row = std::int64_t(there[0][i]) * grid.n[1] + there[1][j];
    const std::int64_t cell = grid.first_cell + row * grid.n[2] + there[2][l];
    Around& around = out[n];
    around.begin = first[cell];
    around.end = first[cell + 1];
    around.image[0] = image[0][i], around.image[1] = image[1][j], around.image[2] = image[2][l];
    for (int k = 0; k < 3; ++k) around.offset[k] = grid.offset[at][k];
    n += around.begin < around.end;
  }
  return n;
}

// All candidates of a cell, side by side. Behind the last one is a register of atoms infinitely far away.
template <typename T> struct Candidates {
  const CellParts<T>& parts;
  Around around[kAround + 1];
  int n_around = 0;
  std::int32_t size = 0, own = 0;  // own: candidate number of the cell's first atom, unmoved
  std::int64_t room = 0;
  char* memory = nullptr;
  float* x[3];             // [room] nm from the centre of the cell
  std::int32_t* node;      // [room]
  Atom<T>* atoms;          // [room], wraps with their image

  explicit Candidates(const CellParts<T>& parts) : parts(parts) {}
  ~Candidates() { free(memory); }
  Candidates(const Candidates&) = delete;
  Candidates& operator=(const Candidates&) = delete;

  // False when there is no memory for so many.
  bool reserve(std::int64_t n) {
    if (n + kLanes <= room) return true;
    if (n > kMost) return false;
    room = 2 * n + 512;
    free(memory);
    std::size_t bytes = 0;
    memory = nullptr;
    for (int pass = 0; pass < 2; ++pass) {
      Arena scratch{memory};
      for (int k = 0; k < 3; ++k) x[k] = scratch.take<float>(room);
      node = scratch.take<std::int32_t>(room);
      atoms = scratch.take<Atom<T>>(room);
      bytes = scratch.used;
      if (pass == 0 && !(memory = static_cast<char*>(malloc(bytes)))) return room = 0, false;
    }
    return true;
  }

  bool enter(const Grid& grid, std::int64_t cell, bool periodic, bool with_atoms) {
    int c[3];
    parts.coordinates_of(grid, cell, c);
    n_around = find_around(grid, parts.first, c, periodic, around);
    std::int64_t total = 0;
    for (int i = 0; i < n_around; ++i) total += around[i].end - around[i].begin;
    if (!reserve(total)) return false;
    size = 0;
    for (int i = 0; i < n_around; ++i) {
      around[i].first = size;
      if (around[i].begin == parts.first[cell] && around[i].in_image(0, 0, 0)) own = size;
      load_cell(around[i], with_atoms);
      size += around[i].end - around[i].begin;
    }
    for (int lane = 0; lane < kLanes; ++lane) x[0][size + lane] = HUGE_VALF;
    return true;
  }

  // What a copy stores too much is overwritten by the next one.
  DIFFMD_INLINE void load_cell(const Around& from, bool with_atoms) {
    const std::int32_t n = from.end - from.begin;
    for (std::int32_t i = 0; i < n; i += kLanes)
      for (int k = 0; k < 3; ++k)
        store<float>(x[k] + size + i, load(parts.local + k * parts.stride + from.begin + i) + from.offset[k]);
    if (!with_atoms) return;
    for (std::int32_t i = 0; i < n; i += kLanes) {
      Numbers nodes;
      memcpy(&nodes, parts.node + from.begin + i, sizeof nodes);
      memcpy(node + size + i, &nodes, sizeof nodes);
    }
    const Quad image = {from.image[0], from.image[1], from.image[2], 0};
    for (std::int32_t i = 0; i < n; ++i) {
      Atom<T>& atom = atoms[size + i];
      atom = parts.atoms[from.begin + i];
      Quad wraps;
      memcpy(&wraps, atom.wraps, sizeof wraps);
      wraps = image - wraps;
      memcpy(atom.wraps, &wraps, sizeof wraps);
    }
  }

  // The cell that candidate i comes from.
  const Around& home_of(std::int32_t i) const {
    int n = 0;
    while (n + 1 < n_around && around[n + 1].first <= i) ++n;
    return around[n];
  }
};

// One atom looking for its neighbors among the candidates.
template <typename T> struct Search {
  const Candidates<T>& candidates;
  const Grid& grid;
  std::int32_t place, itself;  // itself: its own candidate number
  Floats mine[3];

  Search(const Candidates<T>& candidates, const Grid& grid, std::int32_t place, std::int32_t itself)
      : candidates(candidates), grid(grid), place(place), itself(itself) {
    for (int k = 0; k < 3; ++k) mine[k] = fill<float>(candidates.x[k][itself]);
  }

  // Bit i: candidate first + i is listed, or is the atom itself.
  DIFFMD_INLINE unsigned examine(std::int32_t first) const {
    const Floats x = load(candidates.x[0] + first) - mine[0], y = load(candidates.x[1] + first) - mine[1],
                 z = load(candidates.x[2] + first) - mine[2];
    const Floats squared = (x * x + y * y) + z * z;
    const unsigned sure = less(squared, fill<float>(grid.sure));
    const unsigned maybe = less(squared, fill<float>(grid.maybe)) | (grid.all & (~0u >> (32 - kLanes)));
    return maybe == sure ? sure : decide(first, sure, maybe);
  }

  DIFFMD_NOINLINE unsigned decide(std::int32_t first, unsigned sure, unsigned maybe) const {
    const double* a = candidates.parts.exact + 3 * std::int64_t(place);
    for (unsigned open = maybe & ~sure; open; open &= open - 1) {
      const std::int32_t i = first + lowest_bit(open);
      if (i >= candidates.size) continue;
      const Around& home = candidates.home_of(i);
      const double* b = candidates.parts.exact + 3 * std::int64_t(home.begin + (i - home.first));
      // Listed in the nearest image only: with a cutoff of half the box, two are at the cutoff.
      const bool image = grid.metric.space == Space::open ||
                         home.in_image(-std::int32_t(nearest(b[0] - a[0])), -std::int32_t(nearest(b[1] - a[1])),
                                       -std::int32_t(nearest(b[2] - a[2])));
      if (i == itself || (image && grid.metric.lists(a, b))) sure |= 1u << (i - first);
    }
    return sure;
  }
};

// Worker(call, parts) for every thread, and worker.visit(search) for every atom, cell by cell: neighbors in space share
// the cache, and the candidates.
template <typename Worker, typename T> bool each_atom(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n_cells = parts.n_cells(call);
  bool good = true;
#pragma omp parallel reduction(&& : good) num_threads(call.n_threads) \
    if (call.n_threads > 1 && parts.n_nodes > kWorthThreads)
  {
    Worker worker(call, parts);
    Candidates<T> candidates(parts);
    good = worker.good;
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t cell = 0; cell < n_cells; ++cell) {
      const std::int32_t begin = parts.first[cell], end = parts.first[cell + 1];
      if (!good || begin == end) continue;
      const Grid& grid = parts.grids[parts.replica_of(call.n_replicas, cell)];
      good = candidates.enter(grid, cell, call.box != nullptr, Worker::with_atoms);
      for (std::int32_t place = begin; good && place < end; ++place)
        worker.visit(Search<T>(candidates, grid, place, candidates.own + (place - begin)));
    }
  }
  return good;
}

template <typename T> struct Counter {
  static constexpr bool with_atoms = false, good = true;
  const NeighborSearch<T>& call;
  const CellParts<T>& parts;

  Counter(const NeighborSearch<T>& call, const CellParts<T>& parts) : call(call), parts(parts) {}

  void visit(const Search<T>& search) {
    std::int64_t count = -1;  // itself
    for (std::int32_t first = 0; first < search.candidates.size; first += kLanes)
      count += count_bits(search.examine(first));
    call.row_ptr[parts.node[search.place] + 1] = count;
  }
};

// sorted[k] = which of n distinct numbers below the largest of their type is the k-th smallest. Up to kRanked numbers
// by counting the smaller ones, which vectorizes, the more the shorter they are. `number` is written up to kGroup
// places and `sorted` one place behind the last.
constexpr int kRanked = 128, kGroup = 4 * kLanes;

template <typename Number> void sort_by_rank(Number* number, int n, std::int32_t* sorted) {
  typedef Number Register __attribute__((vector_size(kRegisterBytes)));
  constexpr int n_registers = kGroup * sizeof(Number) / kRegisterBytes;
  constexpr Number largest = sizeof(Number) == 2 ? 0x7fff : 0x7fffffff;
  for (int i = n; i < n + kGroup; ++i) number[i] = largest;  // their rank is n
  for (int i = 0; i < n; i += kGroup) {
    Register mine[n_registers], rank[n_registers] = {};
    memcpy(mine, number + i, sizeof mine);
    for (int j = 0; j < n; ++j)
      for (int g = 0; g < n_registers; ++g) rank[g] = count_less(rank[g], Register{} + number[j], mine[g]);
    Number ranks[kGroup];
    memcpy(ranks, rank, sizeof ranks);
    for (int lane = 0; lane < kGroup && i + lane < n; lane += 4)
      for (int k = 0; k < 4; ++k) sorted[ranks[lane + k]] = i + lane + k;
  }
}

// The same for long rows: pieces by rank, merged pairwise as number << 32 | index.
void sort_by_merging(std::int32_t* number, int n, std::int32_t* sorted, std::uint64_t* from, std::uint64_t* to) {
  for (int piece = 0; piece < n; piece += kRanked) {
    const int size = n - piece < kRanked ? n - piece : kRanked;
    std::int32_t copy[kRanked + kGroup], order[kRanked + 1];
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

#if defined(__GNUC__)
DIFFMD_INLINE void transpose(Quad* q) {
  const Quad low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, left = {0, 1, 4, 5}, right = {2, 3, 6, 7};
  const Quad a = __builtin_shuffle(q[0], q[1], low), b = __builtin_shuffle(q[2], q[3], low);
  const Quad c = __builtin_shuffle(q[0], q[1], high), d = __builtin_shuffle(q[2], q[3], high);
  q[0] = __builtin_shuffle(a, b, left), q[1] = __builtin_shuffle(a, b, right);
  q[2] = __builtin_shuffle(c, d, left), q[3] = __builtin_shuffle(c, d, right);
}
#endif

// Gathers sorted edges: their nodes, shifts and, where distances or vectors are asked for, what these are made from.
template <typename T> struct Edges {
  std::int32_t *node, *shift;  // of the list; shift null without a box
  std::int32_t* s[3];          // the same shifts, one component after the other
  T* x[3];                     // positions

  DIFFMD_INLINE void set(int e, const Atom<T>& atom, const std::int32_t* wraps) const {
    node[e] = atom.node;
    for (int k = 0; k < 3; ++k) x[k][e] = atom.x[k];
    for (int k = 0; shift && k < 3; ++k) shift[3 * e + k] = s[k][e] = atom.wraps[k] + wraps[k];
  }

  // The same for edges e .. e + 3, as registers of four: the scalar stores would take longer than the search.
  DIFFMD_INLINE void set_four(int e, const Atom<T>* const* atoms, const std::int32_t* wraps) const {
#if defined(__GNUC__)
    if constexpr (sizeof(T) == 4) {
      Quad a[4], w[4], own;
      for (int i = 0; i < 4; ++i) memcpy(&a[i], atoms[i]->x, sizeof a[i]);
      transpose(a);
      for (int k = 0; k < 3; ++k) memcpy(x[k] + e, &a[k], sizeof a[k]);
      memcpy(node + e, &a[3], sizeof a[3]);
      if (!shift) return;
      memcpy(&own, wraps, sizeof own);
      for (int i = 0; i < 4; ++i) memcpy(&w[i], atoms[i]->wraps, sizeof w[i]), w[i] += own;
      const Quad first = __builtin_shuffle(w[0], w[1], Quad{0, 1, 2, 4}),
                 second = __builtin_shuffle(w[1], w[2], Quad{1, 2, 4, 5}),
                 third = __builtin_shuffle(w[2], w[3], Quad{2, 4, 5, 6});
      memcpy(shift + 3 * e, &first, sizeof first);
      memcpy(shift + 3 * e + 4, &second, sizeof second);
      memcpy(shift + 3 * e + 8, &third, sizeof third);
      transpose(w);
      for (int k = 0; k < 3; ++k) memcpy(s[k] + e, &w[k], sizeof w[k]);
      return;
    }
#endif
    for (int i = 0; i < 4; ++i) set(e + i, *atoms[i], wraps);
  }
};

template <typename T> struct Filler {
  static constexpr bool with_atoms = true;
  const NeighborSearch<T>& call;
  const CellParts<T>& parts;
  bool good;
  char* memory;
  std::int32_t *found, *number, *sorted;  // candidates in a row, their nodes, and which come first
  std::int16_t* brief;                    // the nodes in 16 bits
  Edges<T> edges;
  std::uint64_t* keys[2];

  Filler(const NeighborSearch<T>& call, const CellParts<T>& parts) : call(call), parts(parts), memory(nullptr) {
    std::int64_t longest = 0;
    for (std::int64_t node = 0; node < parts.n_nodes; ++node) {
      const std::int64_t n = call.row_ptr[node + 1] - call.row_ptr[node];
      longest = n > longest ? n : longest;
    }
    memory = static_cast<char*>(malloc(partition(longest, nullptr)));
    good = memory != nullptr;
    if (good) partition(longest, memory);
  }
  ~Filler() { free(memory); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

  std::size_t partition(std::int64_t longest, char* base) {
    Arena scratch{base};
    const std::int64_t room = longest + kGroup + 1;  // itself is found, too
    found = scratch.take<std::int32_t>(room);
    number = scratch.take<std::int32_t>(room);
    sorted = scratch.take<std::int32_t>(room);
    brief = scratch.take<std::int16_t>(room);
    for (int k = 0; k < 3; ++k) edges.s[k] = scratch.take<std::int32_t>(room), edges.x[k] = scratch.take<T>(room);
    for (int k = 0; k < 2; ++k) keys[k] = scratch.take<std::uint64_t>(longest > kRanked ? room : 0);
    return scratch.used;
  }

  // Rows are written in the order of the cells, which may be any order in memory: the page of the next one is looked up
  // ahead. Its other lines the processor then fetches by itself (measured: fetching them here, too, gains nothing).
  void prepare(std::int64_t place) const {
#if defined(__GNUC__)
    if (place >= parts.n_nodes) return;
    const std::int64_t begin = call.row_ptr[parts.node[place]];
    __builtin_prefetch(call.col + begin, 1);
    if (call.shift) __builtin_prefetch(call.shift + 3 * begin, 1);
    if (call.distances) __builtin_prefetch(call.distances + begin, 1);
    if (call.vectors) __builtin_prefetch(call.vectors + 3 * begin, 1);
#else
    (void)place;
#endif
  }

  void visit(const Search<T>& search) {
    const Candidates<T>& candidates = search.candidates;
    prepare(std::int64_t(search.place) + 1);
    int hits = 0, n = 0;
    for (std::int32_t first = 0; first < candidates.size; first += kLanes) {
      const unsigned mask = search.examine(first);
      append_lanes(found + hits, first, mask);
      hits += count_bits(mask);
    }
    // Nodes of a replica of fewer than 2^16 atoms fit in 16 bits, counted from the middle.
    const std::int32_t base = std::int32_t(parts.atoms[search.place].node / call.n_atoms * call.n_atoms);
    const bool fits = call.n_atoms < 1 << 16;
    for (int i = 0; i < hits; ++i) {
      const std::int32_t candidate = found[i];
      found[n] = candidate;
      number[n] = candidates.node[candidate];
      brief[n] = std::int16_t(fits ? number[n] - base - (1 << 15) : 0);
      n += candidate != search.itself;
    }
    if (n > kRanked) sort_by_merging(number, n, sorted, keys[0], keys[1]);
    else if (fits) sort_by_rank(brief, n, sorted);
    else sort_by_rank(number, n, sorted);
    write(n, search);
  }

  void write(int n, const Search<T>& search) {
    const Atom<T>& self = parts.atoms[search.place];
    const std::int64_t begin = call.row_ptr[self.node];
    edges.node = call.col + begin;
    edges.shift = call.shift ? call.shift + 3 * begin : nullptr;
    const Edges<T> out = edges;
    const Atom<T>* const atoms = search.candidates.atoms;
    int e = 0;
    for (; e + 4 <= n; e += 4) {
      const Atom<T>* four[4];
      for (int i = 0; i < 4; ++i) four[i] = atoms + found[sorted[e + i]];
      out.set_four(e, four, self.wraps);
    }
    for (; e < n; ++e) out.set(e, atoms[found[sorted[e]]], self.wraps);
    if (call.vectors || call.distances)
      measure_edges<T>(n, edges.x, edges.s, self.x, call.box_of(self.node / call.n_atoms),
                       call.vectors ? call.vectors + 3 * begin : nullptr,
                       call.distances ? call.distances + begin : nullptr);
  }
};

}  // namespace

template <typename T> void count_rows(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  each_atom<Counter<T>>(call, parts);
}

template <typename T> bool fill_rows(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  return each_atom<Filler<T>>(call, parts);
}

template void count_rows<float>(const NeighborSearch<float>&, const CellParts<float>&);
template void count_rows<double>(const NeighborSearch<double>&, const CellParts<double>&);
template bool fill_rows<float>(const NeighborSearch<float>&, const CellParts<float>&);
template bool fill_rows<double>(const NeighborSearch<double>&, const CellParts<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
