// The one pybind11 module, diffmd_fast._C: pointers, sizes and flags in; nothing is owned or kept.
// Python (diffmd_fast/ops) has checked shapes, dtypes and devices before it calls; addresses come as integers
// (tensor.data_ptr()), 0 for "not asked for". The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "em_step.hpp"
#include "integrators.hpp"
#include "neighbor_list.hpp"
#include "probe.hpp"
#include "resident_blocks.hpp"
#include "resident_sampler.hpp"
#include "schnet.hpp"
#include "spline_conv.hpp"
#include "torsions.hpp"
#include "verlet_list.hpp"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

enum class Level { baseline, avx2, avx512 };

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

Level current = best_level();

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

// diffmd::<level in use>::CALL, with the GIL released.
#ifdef DIFFMD_HAS_avx512
#define DIFFMD_CALL_AVX512(...) diffmd::avx512::__VA_ARGS__
#else
#define DIFFMD_CALL_AVX512(...) diffmd::baseline::__VA_ARGS__
#endif
#ifdef DIFFMD_HAS_avx2
#define DIFFMD_CALL_AVX2(...) diffmd::avx2::__VA_ARGS__
#else
#define DIFFMD_CALL_AVX2(...) diffmd::baseline::__VA_ARGS__
#endif
#define DIFFMD_CALL(...)                                                  \
  do {                                                                    \
    const Level level = current; /* read under the GIL, as it is set */   \
    py::gil_scoped_release released;                                      \
    switch (level) {                                                      \
      case Level::avx512: DIFFMD_CALL_AVX512(__VA_ARGS__); break;         \
      case Level::avx2: DIFFMD_CALL_AVX2(__VA_ARGS__); break;             \
      default: diffmd::baseline::__VA_ARGS__;                             \
    }                                                                     \
  } while (false)

template <typename T> T* at(Address address) { return reinterpret_cast<T*>(address); }

void check_atoms(const char* name, const std::int64_t* atoms, std::int64_t n, std::int64_t n_atoms) {
  if (n < 0 || !std::all_of(atoms, atoms + n, [&](std::int64_t atom) { return atom >= 0 && atom < n_atoms; }))
    throw py::value_error(std::string(name) + ": expected atoms in 0.." + std::to_string(n_atoms - 1));
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

// ---- schnet ---------------------------------------------------------------------------------------------
// `model` is FoldedSchNet.description: the sizes of csrc/schnet.hpp and the addresses of its weights, by name. `place`
// has the addresses where the code runs, of copies where that is not the host, on which the model's own are checked.
template <typename T>
diffmd::SchNet<T> schnet_call(const py::dict& model, const py::dict& place, std::int64_t n_replicas, Address positions,
                              Address energy, Address score, int n_threads) {
  const auto size = [&](const char* name) { return model[name].cast<std::int64_t>(); };
  const auto of = [&](const char* name) { return at<T>(place[name].cast<Address>()); };
  const auto atoms = [&](const char* name) { return at<std::int64_t>(place[name].cast<Address>()); };
  const auto check = [&](const char* name, std::int64_t n) {
    check_atoms(name, at<std::int64_t>(model[name].cast<Address>()), n, size("n_atoms"));
  };
  const diffmd::SchNet<T> call{
      n_replicas, size("n_atoms"), size("n_features"), size("n_blocks"), size("n_coefficients"), size("n_torsions"),
      size("n_springs"), model["cutoff"].cast<double>(), model["centre_stiffness"].cast<double>(),
      atoms("quadruples"), atoms("spring_pairs"), of("embedding"), of("torsion_weights"), of("project"),
      of("project_transposed"), of("coefficients"), of("first"), of("first_transposed"), of("first_bias"),
      of("second"), of("second_transposed"), of("second_bias"), of("readout"), of("readout_transposed"),
      of("readout_bias"), of("readout_out"), of("spring_stiffness"), of("spring_mean"), at<T>(positions),
      at<T>(energy), at<T>(score), n_threads < 1 ? 1 : n_threads};
  const bool whole = call.n_features >= 0 && call.n_features % diffmd::kFeatureMultiple == 0;
  if (call.n_atoms < 1 || !whole || call.n_blocks < 0 || call.n_coefficients < 4 || call.n_torsions < 0 ||
      call.n_springs < 0)
    throw py::value_error("sizes: expected at least 1 atom and 4 coefficients, and features padded to a multiple of " +
                          std::to_string(diffmd::kFeatureMultiple));
  check("quadruples", 4 * call.n_torsions);
  check("spring_pairs", 2 * call.n_springs);
  return call;
}

template <typename T>
void schnet(const py::dict& model, std::int64_t n_replicas, Address positions, Address energy, Address score,
            int n_threads) {
  const diffmd::SchNet<T> call = schnet_call<T>(model, model, n_replicas, positions, energy, score, n_threads);
  bool enough_memory = true;
  DIFFMD_CALL(schnet<T>(call, &enough_memory));
  if (!enough_memory) throw std::bad_alloc();
}

// ---- integrators ----------------------------------------------------------------------------------------
// Arguments are the fields of csrc/integrators.hpp in their order.
template <typename T>
void metropolis(std::int64_t n_replicas, std::int64_t n_atoms, Address before, Address score_before,
                Address energy_before, Address positions, Address score, Address energy, Address diffusion_time,
                bool diffusion_per_atom, double variance, std::uint64_t seed, std::uint32_t first_replica,
                std::uint64_t step, Address accepted) {
  const diffmd::Metropolis<T> call{n_replicas, n_atoms, at<T>(before), at<T>(score_before), at<T>(energy_before),
                                   at<T>(positions), at<T>(score), at<T>(energy), at<double>(diffusion_time),
                                   diffusion_per_atom, variance, seed, first_replica, step,
                                   at<std::int64_t>(accepted)};
  DIFFMD_CALL(metropolis<T>(call));
}

template <typename T, bool moves>
void langevin(std::int64_t n_replicas, std::int64_t n_atoms, Address positions, Address velocities, Address score,
              Address noise, double half_step, Address kick, Address decay, Address amplitude, double variance) {
  const diffmd::LangevinHalves<T> call{n_replicas, n_atoms, at<T>(positions), at<T>(velocities), at<T>(score),
                                       at<T>(noise), half_step, at<double>(kick), at<double>(decay),
                                       at<double>(amplitude), variance};
  if constexpr (moves) DIFFMD_CALL(langevin_move<T>(call));
  else DIFFMD_CALL(langevin_kick<T>(call));
}

// ---- resident_sampler -----------------------------------------------------------------------------------
// `run` has the fields of csrc/resident_sampler.hpp, `model` and `place` are as schnet_call takes them. The pairs are
// left to be checked.
template <typename T>
diffmd::ResidentSampler<T> resident_call(const py::dict& model, const py::dict& place, const py::dict& run) {
  const auto integer = [&](const char* name) { return run[name].cast<std::int64_t>(); };
  const auto address = [&](const char* name) { return run[name].cast<Address>(); };
  const auto number = [&](const char* name) { return run[name].cast<double>(); };
  const std::int64_t first_step = integer("first_step"), end_step = integer("end_step");
  const std::int64_t last_step = integer("last_step");
  const std::int64_t check_every = integer("check_every"), save_every = integer("save_every"), rule = integer("rule");
  if (first_step < 0 || end_step < first_step || last_step < end_step || check_every < 1 || save_every < 1)
    throw py::value_error("first_step: expected 0 <= first_step <= end_step <= last_step, and check_every and "
                          "save_every of at least 1");
  if (rule < 0 || rule > std::int64_t(diffmd::Rule::baoab)) throw py::value_error("rule: expected 0 to 4");
  if (diffmd::Rule(rule) == diffmd::Rule::baoab && (!address("velocities") || !address("kick") || !address("decay") ||
                                                    !address("amplitude")))
    throw py::value_error("rule: expected velocities, kick, decay and amplitude with 4");
  if (diffmd::Rule(rule) == diffmd::Rule::metropolis && !address("accepted"))
    throw py::value_error("rule: expected accepted with 3");
  return {
      schnet_call<T>(model, place, integer("n_replicas"), address("positions"), address("energy"), address("score"),
                     int(integer("n_threads"))),
      at<double>(address("diffusion_time")), run["diffusion_per_atom"].cast<bool>(), at<double>(address("variance")),
      diffmd::Rule(rule), at<T>(address("other_positions")), at<T>(address("other_score")),
      at<T>(address("other_energy")), at<T>(address("zeros")), at<T>(address("velocities")), number("half_step"),
      at<double>(address("kick")), at<double>(address("decay")), at<double>(address("amplitude")),
      at<std::int64_t>(address("accepted")), run["seed"].cast<std::uint64_t>(),
      run["first_replica"].cast<std::uint32_t>(), first_step, end_step, last_step, check_every, save_every,
      integer("n_pairs"), at<std::int64_t>(address("pairs")), at<double>(address("lowest")),
      at<double>(address("highest")), number("energy_limit"), at<T>(address("good")), at<std::uint8_t>(address("loss")),
      at<std::int64_t>(address("lost_step")), at<T>(address("lost_positions")), at<T>(address("frames")),
      at<T>(address("frame_energies")), at<T>(address("frame_velocities"))};
}

template <typename T> void resident_sampler(const py::dict& model, const py::dict& run) {
  const diffmd::ResidentSampler<T> call = resident_call<T>(model, model, run);
  check_atoms("pairs", call.pairs, 2 * call.n_pairs, call.model.n_atoms);
  bool enough_memory = true;
  DIFFMD_CALL(resident_sampler<T>(call, &enough_memory));
  if (!enough_memory) throw std::bad_alloc();
}

// ---- resident_blocks ------------------------------------------------------------------------------------
constexpr bool has_cuda = sizeof(DIFFMD_CUDA_COMPILER) > 1;

void require_cuda() {
  if (!has_cuda) throw py::value_error("compiled without CUDA: " DIFFMD_CUDA_MISSING " when this package was built");
}

// The places of every atom in a list: as many as the list has, each below that.
void check_places(const py::dict& model, const char* starts_name, const char* places_name, std::int64_t n_places) {
  const auto *starts = at<std::int32_t>(model[starts_name].cast<Address>()),
             *places = at<std::int32_t>(model[places_name].cast<Address>());
  const std::int64_t n_atoms = model["n_atoms"].cast<std::int64_t>();
  if (starts[0] != 0 || starts[n_atoms] != n_places || !std::is_sorted(starts, starts + n_atoms + 1))
    throw py::value_error(std::string(starts_name) + ": expected to ascend from 0 to " + std::to_string(n_places));
  if (!std::all_of(places, places + n_places, [&](std::int32_t place) { return place >= 0 && place < n_places; }))
    throw py::value_error(std::string(places_name) + ": expected places below " + std::to_string(n_places));
}

// `checked_pairs`: the run's pairs on the host.
diffmd::ResidentBlocks blocks_call(const py::dict& model, const py::dict& place, const py::dict& run,
                                   Address checked_pairs, bool evaluates, int molecules, int n_lanes, int precision) {
  const auto places = [&](const char* name) { return at<std::int32_t>(place[name].cast<Address>()); };
  const diffmd::ResidentBlocks call{resident_call<float>(model, place, run), places("role_starts"), places("roles"),
                                    places("spring_starts"), places("spring_ends"), evaluates, molecules,
                                    diffmd::Precision(precision)};
  const diffmd::SchNet<float>& schnet = call.run.model;
  if (schnet.n_atoms > diffmd::kBlockAtoms)
    throw py::value_error("n_atoms: expected at most " + std::to_string(diffmd::kBlockAtoms));
  if (molecules < 1 || molecules * schnet.n_atoms > 16 * diffmd::kBlockAtoms)
    throw py::value_error("molecules: expected 1 to " + std::to_string(16 * diffmd::kBlockAtoms / schnet.n_atoms));
  if (precision < 0 || precision > int(diffmd::Precision::fp32)) throw py::value_error("precision: expected 0 to 2");
  if (n_lanes < 1 || n_lanes > diffmd::kBlockLanes)
    throw py::value_error("n_lanes: expected 1 to " + std::to_string(diffmd::kBlockLanes));
  check_places(model, "role_starts", "roles", 4 * schnet.n_torsions);
  check_places(model, "spring_starts", "spring_ends", 2 * schnet.n_springs);
  check_atoms("pairs", at<std::int64_t>(checked_pairs), 2 * call.run.n_pairs, schnet.n_atoms);
  return call;
}

void resident_emulated(const py::dict& model, const py::dict& run, bool evaluates, int molecules, int n_lanes,
                       int precision, bool backward) {
  const diffmd::ResidentBlocks call =
      blocks_call(model, model, run, run["pairs"].cast<Address>(), evaluates, molecules, n_lanes, precision);
  py::gil_scoped_release released;
  diffmd::resident_emulated(call, n_lanes, backward);
}

void resident_cuda(const py::dict& model, const py::dict& place, const py::dict& run, Address checked_pairs,
                   bool evaluates, int molecules, int n_lanes, int precision, int device, Address stream) {
  require_cuda();
  const diffmd::ResidentBlocks call =
      blocks_call(model, place, run, checked_pairs, evaluates, molecules, n_lanes, precision);
  if (n_lanes % 32 != 0) throw py::value_error("n_lanes: expected a multiple of 32");
  if constexpr (has_cuda) {
    const std::string failure = diffmd::resident_cuda(call, n_lanes, device, stream);
    if (!failure.empty()) throw std::runtime_error("resident sampler: " + failure);
  }
}

std::size_t resident_block_bytes(std::int64_t n_atoms, std::int64_t n_features, std::int64_t n_blocks,
                                 std::int64_t n_torsions, std::int64_t n_springs, int molecules) {
  diffmd::SchNet<float> sizes{};
  sizes.n_atoms = n_atoms;
  sizes.n_features = n_features;
  sizes.n_blocks = n_blocks;
  sizes.n_torsions = n_torsions;
  sizes.n_springs = n_springs;
  return diffmd::resident_block_bytes(sizes, molecules);
}

// (bytes of shared memory that a block can have, multiprocessors)
std::pair<std::int64_t, std::int64_t> cuda_block_limits(int device) {
  require_cuda();
  std::pair<std::int64_t, std::int64_t> limits;
  if constexpr (has_cuda) {
    const std::string failure = diffmd::cuda_block_limits(device, &limits.first, &limits.second);
    if (!failure.empty()) throw std::runtime_error(failure);
  }
  return limits;
}

// ---- CUDA -----------------------------------------------------------------------------------------------

std::string cuda_probe() {
  if constexpr (has_cuda) return diffmd::cuda_probe();
  return "compiled without CUDA: " DIFFMD_CUDA_MISSING " when this package was built";
}

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
  m.def("cuda_probe", &cuda_probe, "\"\" when a compiled kernel runs right on the CUDA device, else why not.");
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

  // schnet: sizes and addresses of the weights by name; resident_sampler: then the fields of csrc/resident_sampler.hpp
  m.def("schnet_float32", &schnet<float>);
  m.def("schnet_float64", &schnet<double>);
  m.def("metropolis_float32", &metropolis<float>);
  m.def("metropolis_float64", &metropolis<double>);
  m.def("langevin_move_float32", &langevin<float, true>);
  m.def("langevin_move_float64", &langevin<double, true>);
  m.def("langevin_kick_float32", &langevin<float, false>);
  m.def("langevin_kick_float64", &langevin<double, false>);
  m.def("resident_sampler_float32", &resident_sampler<float>);
  m.def("resident_sampler_float64", &resident_sampler<double>);

  // the same for thread blocks, float32 (kernels/cuda/resident_blocks.hpp); emulated: the device's code on the host
  m.def("resident_cuda", &resident_cuda);
  m.def("resident_emulated", &resident_emulated);
  m.def("resident_block_bytes", &resident_block_bytes, "Bytes of shared memory of a block, from the model's sizes.");
  m.def("cuda_block_limits", &cuda_block_limits, "(bytes of shared memory a block can have, multiprocessors)");
}
