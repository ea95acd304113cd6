// The one pybind11 module, diffmd_fast._C: pointers, sizes and flags in; nothing is owned or kept. What runs a SchNet
// and a sampler's steps is in bindings_sampler.cpp.
// Python (diffmd_fast/ops) has checked shapes, dtypes and devices before it calls; addresses come as integers
// (tensor.data_ptr()), 0 for "not asked for". The GIL is released while a kernel runs.
#include "bindings.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <array>
#include <memory>
#include <new>
#include <utility>

#include "em_step.hpp"
#include "neighbor_list.hpp"
#include "spline_conv.hpp"
#include "torsions.hpp"
#include "verlet_list.hpp"

namespace {

bool available(Level level) {
  switch (level) {
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef DIFFMD_HAS_avx512
    case Level::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("fma");
#endif
#ifdef DIFFMD_HAS_avx2
    case Level::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#endif
    case Level::baseline: return true;
    default: return false;
  }
}

Level best_level() {
  for (Level level : {Level::avx512, Level::avx2})
    if (available(level)) return level;
  return Level::baseline;
}

}  // namespace

Level current = best_level();

namespace {

const char* name_of(Level level) {
  return level == Level::avx512 ? "avx512" : level == Level::avx2 ? "avx2" : "baseline";
}

std::string set_simd_level(const std::string& name) {
  for (Level level : {Level::baseline, Level::avx2, Level::avx512}) {
    if (name != name_of(level)) continue;
    if (!available(level)) throw py::value_error("level: " + name + " was not compiled or this processor lacks it");
    const std::string before = name_of(current);
    current = level;
    return before;
  }
  throw py::value_error("level: expected baseline, avx2 or avx512, got " + name);
}

// ---- em_step --------------------------------------------------------------------------------------------
template <typename T>
void em_step(std::int64_t n_replicas, std::int64_t n_atoms, Address positions, Address score,
             Address diffusion_time, bool diffusion_per_atom, Address variance, bool variance_per_replica,
             std::uint64_t seed, std::uint32_t first_replica, std::uint64_t step, std::uint32_t domain,
             Address new_positions, Address noise, Address log_density, int n_threads) {
  const diffmd::EmStep<T> call{n_replicas, n_atoms, at<T>(positions), at<T>(score), at<double>(diffusion_time),
                               at<double>(variance), diffusion_per_atom, variance_per_replica, seed,
                               first_replica, step, domain, at<T>(new_positions), at<T>(noise),
                               at<T>(log_density), n_threads};
  DIFFMD_CALL(em_step<T>(call));
}

// ---- torsions -------------------------------------------------------------------------------------------
enum class Order { value, first, second };  // torsions, torsions_backward, torsions_double_backward

// Returns the row of the first bad quadruple, having written nothing, or -1 when it is done.
template <typename T, Order order>
std::int64_t torsions(std::int64_t n_replicas, std::int64_t n_atoms, std::int64_t n_torsions, Address positions,
                      Address quadruples, Address grad_output, Address cotangent, Address output,
                      Address grad_positions, int n_threads) {
  const std::int64_t bad = diffmd::first_bad_quadruple(at<std::int64_t>(quadruples), n_torsions, n_atoms);
  if (bad >= 0) return bad;
  const diffmd::Torsions<T> call{n_replicas, n_atoms, n_torsions, at<T>(positions), at<std::int64_t>(quadruples),
                                 at<T>(grad_output), at<T>(cotangent), at<T>(output), at<T>(grad_positions),
                                 n_threads};
  if constexpr (order == Order::value) DIFFMD_CALL(torsions<T>(call));
  else if constexpr (order == Order::first) DIFFMD_CALL(torsions_backward<T>(call));
  else DIFFMD_CALL(torsions_double_backward<T>(call));
  return -1;
}

// ---- spline_conv ----------------------------------------------------------------------------------------
// Each returns a diffmd::SplineStatus; ops/spline_conv.py turns it into a message.
template <typename T>
diffmd::SplineGraph<T> spline_graph(std::int64_t n_nodes, std::int64_t n_edges, std::int64_t n_features,
                                    std::int64_t n_knots, double cutoff, Address features, Address positions,
                                    Address coefficients, Address row_ptr, Address col, Address offsets,
                                    int n_threads) {
  return {n_nodes, n_edges, n_features, n_knots, cutoff, at<T>(features), at<T>(positions), at<T>(coefficients),
          at<std::int64_t>(row_ptr), at<std::int32_t>(col), at<T>(offsets), n_threads};
}

#define DIFFMD_SPLINE_GRAPH                                                                                      \
  std::int64_t n_nodes, std::int64_t n_edges, std::int64_t n_features, std::int64_t n_knots, double cutoff,      \
      Address features, Address positions, Address coefficients, Address row_ptr, Address col, Address offsets,  \
      int n_threads
#define DIFFMD_SPLINE_GRAPH_VALUES                                                                               \
  spline_graph<T>(n_nodes, n_edges, n_features, n_knots, cutoff, features, positions, coefficients, row_ptr, col, \
                  offsets, n_threads)

template <typename T> int spline_conv(DIFFMD_SPLINE_GRAPH, Address out) {
  const diffmd::SplineConv<T> call{DIFFMD_SPLINE_GRAPH_VALUES, at<T>(out)};
  int status = 0;
  DIFFMD_CALL(spline_conv<T>(call, &status));
  return status;
}

template <typename T>
int spline_conv_backward(DIFFMD_SPLINE_GRAPH, Address grad, Address grad_features, Address grad_positions,
                         Address grad_coefficients) {
  const diffmd::SplineConvBackward<T> call{DIFFMD_SPLINE_GRAPH_VALUES, at<T>(grad), at<T>(grad_features),
                                           at<T>(grad_positions), at<T>(grad_coefficients)};
  int status = 0;
  DIFFMD_CALL(spline_conv_backward<T>(call, &status));
  return status;
}

template <typename T>
int spline_conv_double_backward(DIFFMD_SPLINE_GRAPH, Address grad, Address along_features, Address along_positions,
                                Address along_coefficients, Address grad_grad, Address grad_features,
                                Address grad_positions, Address grad_coefficients) {
  const diffmd::SplineConvDoubleBackward<T> call{
      DIFFMD_SPLINE_GRAPH_VALUES, at<T>(grad), at<T>(along_features), at<T>(along_positions), at<T>(along_coefficients),
      at<T>(grad_grad), at<T>(grad_features), at<T>(grad_positions), at<T>(grad_coefficients)};
  int status = 0;
  DIFFMD_CALL(spline_conv_double_backward<T>(call, &status));
  return status;
}

template <typename T>
void edge_offsets(std::int64_t n_edges, Address shift, Address box, Address offsets, int n_threads) {
  const diffmd::EdgeOffsets<T> call{n_edges, at<std::int32_t>(shift), at<double>(box), at<T>(offsets), n_threads};
  DIFFMD_CALL(edge_offsets<T>(call));
}

// ---- neighbor_list --------------------------------------------------------------------------------------
// A NeighborSearch in the order of csrc/neighbor_list.hpp; Python keeps it, and what it points to, between count and
// fill. Scratch belongs to the object.
template <typename T> struct Search {
  diffmd::NeighborSearch<T> call;
  std::unique_ptr<char[]> scratch;
};

// (first bad box or -1, smallest perpendicular width); see csrc/neighbor_list.hpp.
std::pair<std::int64_t, double> inverse_boxes(std::int64_t n, Address box, Address inverse) {
  diffmd::Boxes call{n, at<double>(box), at<double>(inverse), -1, 0};
  DIFFMD_CALL(inverse_boxes(call));
  return {call.first_bad, call.width};
}

// Asks for large pages under a large array about to be written for the first time: taking 4 KiB at a time from the
// kernel can take longer than the search. A hint; the whole large pages inside the array only.
void prefer_large_pages(Address start, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr Address page = Address(2) << 20;
  const Address first = (start + page - 1) / page * page, last = (start + bytes) / page * page;
  if (start && first + 2 * page <= last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Returns the search for neighbor_list_fill, and the number of edges or -1 - node for the first node whose position
// cannot be used.
template <typename T>
std::pair<std::unique_ptr<Search<T>>, std::int64_t> neighbor_list_count(
    std::int64_t n_replicas, std::int64_t n_atoms, Address positions, Address box, Address inverse,
    bool box_per_replica, double reach, bool cells, Address row_ptr, int n_threads) {
  auto search = std::make_unique<Search<T>>();
  diffmd::NeighborSearch<T>& call = search->call;
  call = {n_replicas, n_atoms, at<T>(positions), at<double>(box), at<double>(inverse), box_per_replica, reach, cells,
          nullptr, at<std::int64_t>(row_ptr), nullptr, nullptr, nullptr, nullptr, nullptr, n_threads};
  std::size_t bytes = 0;
  DIFFMD_CALL(neighbor_scratch_bytes<T>(call, &bytes));
  constexpr std::size_t line = 64;  // each part of the scratch starts on a cache line
  search->scratch.reset(new char[bytes + line]);
  call.scratch = search->scratch.get() + (line - reinterpret_cast<Address>(search->scratch.get()) % line);
  std::int64_t bad = -1;
  DIFFMD_CALL(neighbor_list_count<T>(call, &bad));
  const std::int64_t n_edges = bad >= 0 ? -1 - bad : call.row_ptr[call.n_nodes()];
  return {std::move(search), n_edges};
}

template <typename T>
void neighbor_list_fill(Search<T>& search, Address col, Address shift, Address reverse, Address vectors,
                        Address distances) {
  search.call.col = at<std::int32_t>(col);
  search.call.shift = at<std::int32_t>(shift);
  search.call.reverse = at<std::int64_t>(reverse);
  search.call.vectors = at<T>(vectors);
  search.call.distances = at<T>(distances);
  const std::size_t n_edges = std::size_t(search.call.row_ptr[search.call.n_nodes()]);
  if (n_edges && !reverse && !search.call.in_cells())
    throw py::value_error("reverse: expected memory, which only cells do without");
  prefer_large_pages(col, n_edges * sizeof(std::int32_t));
  prefer_large_pages(shift, n_edges * 3 * sizeof(std::int32_t));
  prefer_large_pages(reverse, n_edges * sizeof(std::int64_t));
  prefer_large_pages(vectors, n_edges * 3 * sizeof(T));
  prefer_large_pages(distances, n_edges * sizeof(T));
  bool enough_memory = true;
  DIFFMD_CALL(neighbor_list_fill<T>(search.call, &enough_memory));
  if (!enough_memory) throw std::bad_alloc();
}

void neighbor_list_all_pairs(std::int64_t n_replicas, std::int64_t n_atoms, Address row_ptr, Address col,
                             Address reverse, int n_threads) {
  DIFFMD_CALL(neighbor_list_all_pairs(n_replicas, n_atoms, at<std::int64_t>(row_ptr), at<std::int32_t>(col),
                                      at<std::int64_t>(reverse), n_threads));
}

// Returns false when the rows do not cover the edges or an edge points outside of the positions.
template <typename T>
bool neighbor_vectors(std::int64_t n_replicas, std::int64_t n_atoms, std::int64_t n_edges, Address positions,
                      Address box, bool box_per_replica, Address row_ptr, Address col, Address shift,
                      Address vectors, Address distances, int n_threads) {
  bool consistent = false;
  const diffmd::NeighborVectors<T> call{n_replicas, n_atoms, n_edges, at<T>(positions), at<double>(box),
                                        box_per_replica, at<std::int64_t>(row_ptr), at<std::int32_t>(col),
                                        at<std::int32_t>(shift), at<T>(vectors), at<T>(distances), &consistent,
                                        n_threads};
  DIFFMD_CALL(neighbor_vectors<T>(call));
  return consistent;
}

// ---- verlet_list ----------------------------------------------------------------------------------------
template <typename T>
void largest_moves(std::int64_t n_replicas, std::int64_t n_atoms, Address positions, Address anchors,
                   Address transform, Address furthest, int n_threads) {
  const std::int64_t n_pieces = (n_atoms + diffmd::Moves<T>::kPiece - 1) / diffmd::Moves<T>::kPiece;
  const std::unique_ptr<double[]> pieces(new double[std::size_t(2 * n_replicas * n_pieces)]);
  const diffmd::Moves<T> call{n_replicas, n_atoms, at<T>(positions), at<T>(anchors), at<double>(transform),
                              pieces.get(), at<double>(furthest), n_threads};
  DIFFMD_CALL(largest_moves<T>(call));
}

// Lists come as the addresses of row_ptr, col, shift, reverse.
using ListAddresses = std::array<Address, 4>;
diffmd::Rows rows_at(const ListAddresses& list) {
  return {at<std::int64_t>(list[0]), at<std::int32_t>(list[1]), at<std::int32_t>(list[2]), at<std::int64_t>(list[3])};
}

// Returns the number of edges.
std::int64_t splice_count(std::int64_t n_replicas, std::int64_t n_atoms, Address source, const ListAddresses& kept,
                          const ListAddresses& fresh, Address row_ptr) {
  const diffmd::Splice call{n_replicas, n_atoms, at<std::int64_t>(source), rows_at(kept), rows_at(fresh),
                            rows_at({row_ptr, 0, 0, 0}), 1};
  DIFFMD_CALL(splice_count(call));
  return call.out.row_ptr[n_replicas * n_atoms];
}

void splice_fill(std::int64_t n_replicas, std::int64_t n_atoms, Address source, const ListAddresses& kept,
                 const ListAddresses& fresh, const ListAddresses& out, int n_threads) {
  const diffmd::Splice call{n_replicas, n_atoms, at<std::int64_t>(source), rows_at(kept), rows_at(fresh),
                            rows_at(out), n_threads};
  DIFFMD_CALL(splice_fill(call));
}

// ---- the module -----------------------------------------------------------------------------------------

py::dict build_info() {
  py::dict info;
  info["version"] = DIFFMD_VERSION;
  info["compiler"] = DIFFMD_COMPILER;
  info["cuda_compiler"] = has_cuda ? DIFFMD_CUDA_COMPILER : DIFFMD_CUDA_MISSING " when this was built";
#ifdef _OPENMP
  info["openmp"] = true;
  info["openmp_threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["openmp_threads"] = 1;
#endif
#ifdef DIFFMD_SANITIZED
  info["sanitized"] = true;
#else
  info["sanitized"] = false;
#endif
  py::list compiled, usable;
  compiled.append("baseline");
#ifdef DIFFMD_HAS_avx2
  compiled.append("avx2");
#endif
#ifdef DIFFMD_HAS_avx512
  compiled.append("avx512");
#endif
  for (Level level : {Level::baseline, Level::avx2, Level::avx512})
    if (available(level)) usable.append(name_of(level));
  info["simd_compiled"] = compiled;
  info["simd_usable"] = usable;
  info["simd"] = name_of(current);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of diffmd_fast. Call them through diffmd_fast.ops, which checks its arguments.";
  m.def("build_info", &build_info);
  m.def("set_simd_level", &set_simd_level, "Use another SIMD level; returns the one used before.");

  // em_step: arguments in the order of csrc/em_step.hpp
  m.def("em_step_float32", &em_step<float>);
  m.def("em_step_float64", &em_step<double>);

  // neighbor_list: count begins a search and writes its row_ptr, fill the rest
  m.def("inverse_boxes", &inverse_boxes);
  py::class_<Search<float>>(m, "NeighborSearchFloat32");
  py::class_<Search<double>>(m, "NeighborSearchFloat64");
  m.def("neighbor_list_count_float32", &neighbor_list_count<float>);
  m.def("neighbor_list_count_float64", &neighbor_list_count<double>);
  m.def("neighbor_list_fill_float32", &neighbor_list_fill<float>);
  m.def("neighbor_list_fill_float64", &neighbor_list_fill<double>);
  m.def("neighbor_list_all_pairs", &neighbor_list_all_pairs);
  m.def("neighbor_vectors_float32", &neighbor_vectors<float>);
  m.def("neighbor_vectors_float64", &neighbor_vectors<double>);

  // verlet_list
  m.def("largest_moves_float32", &largest_moves<float>);
  m.def("largest_moves_float64", &largest_moves<double>);
  m.def("splice_count", &splice_count);
  m.def("splice_fill", &splice_fill);

  // spline_conv: the graph in the order of csrc/spline_conv.hpp, then what each call adds to it
  m.def("spline_conv_float32", &spline_conv<float>);
  m.def("spline_conv_float64", &spline_conv<double>);
  m.def("spline_conv_backward_float32", &spline_conv_backward<float>);
  m.def("spline_conv_backward_float64", &spline_conv_backward<double>);
  m.def("spline_conv_double_backward_float32", &spline_conv_double_backward<float>);
  m.def("spline_conv_double_backward_float64", &spline_conv_double_backward<double>);

  m.def("edge_offsets_float32", &edge_offsets<float>);
  m.def("edge_offsets_float64", &edge_offsets<double>);

  // torsions: arguments in the order of csrc/torsions.hpp
  m.def("torsions_float32", &torsions<float, Order::value>);
  m.def("torsions_float64", &torsions<double, Order::value>);
  m.def("torsions_backward_float32", &torsions<float, Order::first>);
  m.def("torsions_backward_float64", &torsions<double, Order::first>);
  m.def("torsions_double_backward_float32", &torsions<float, Order::second>);
  m.def("torsions_double_backward_float64", &torsions<double, Order::second>);

  define_sampler(m);
}
