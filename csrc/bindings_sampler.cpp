// The part of diffmd_fast._C that runs a SchNet and a sampler's steps: on the CPU, and in the blocks of a GPU.
#include "bindings.hpp"

#include <new>
#include <utility>

#include "integrators.hpp"
#include "probe.hpp"
#include "resident_blocks.hpp"
#include "resident_sampler.hpp"
#include "schnet.hpp"

namespace {

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
      size("n_springs"), size("n_bends"), size("n_harmonics"), model["cutoff"].cast<double>(),
      model["centre_stiffness"].cast<double>(), atoms("quadruples"), atoms("spring_pairs"), atoms("bend_triples"),
      of("embedding"), of("torsion_weights"), of("torsion_series"),
      of("project"), of("project_transposed"), of("coefficients"), of("first"), of("first_transposed"),
      of("first_bias"), of("second"), of("second_transposed"), of("second_bias"), of("readout"),
      of("readout_transposed"), of("readout_bias"), of("readout_out"), of("spring_stiffness"), of("spring_mean"),
      of("bend_stiffness"), of("bend_mean"),
      at<T>(positions), at<T>(energy), at<T>(score), n_threads < 1 ? 1 : n_threads};
  const bool whole = call.n_features >= 0 && call.n_features % diffmd::kFeatureMultiple == 0;
  if (call.n_atoms < 1 || !whole || call.n_blocks < 0 || call.n_coefficients < 4 || call.n_torsions < 0 ||
      call.n_springs < 0 || call.n_bends < 0 || call.n_harmonics < 0)
    throw py::value_error("sizes: expected at least 1 atom and 4 coefficients, and features padded to a multiple of " +
                          std::to_string(diffmd::kFeatureMultiple));
  check("quadruples", 4 * call.n_torsions);
  check("spring_pairs", 2 * call.n_springs);
  check("bend_triples", 3 * call.n_bends);
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
                                    places("spring_starts"), places("spring_ends"), places("bend_starts"),
                                    places("bend_atoms"), evaluates, molecules,
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
  check_places(model, "bend_starts", "bend_atoms", 3 * schnet.n_bends);
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
                                 std::int64_t n_torsions, std::int64_t n_springs, std::int64_t n_bends,
                                 int molecules) {
  diffmd::SchNet<float> sizes{};
  sizes.n_atoms = n_atoms;
  sizes.n_features = n_features;
  sizes.n_blocks = n_blocks;
  sizes.n_torsions = n_torsions;
  sizes.n_springs = n_springs;
  sizes.n_bends = n_bends;
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

std::string cuda_probe() {
  if constexpr (has_cuda) return diffmd::cuda_probe();
  return "compiled without CUDA: " DIFFMD_CUDA_MISSING " when this package was built";
}

}  // namespace

void define_sampler(py::module_& m) {
  m.def("cuda_probe", &cuda_probe, "\"\" when a compiled kernel runs right on the CUDA device, else why not.");

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
