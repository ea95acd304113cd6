#include "em_step.hpp"

#include "normals.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

// Sites whose words are drawn together before their noise is made: two short loops, of which the processor works on
// several rounds at once, where one long body would leave it waiting at the ends of its chains.
constexpr int kChunk = 8 * kWordLanes;

// Where one register of sites reads and writes.
template <typename T> struct Rows {
  const T *positions, *score;
  T *new_positions, *noise;
};

// Drift and amplitude of kChunk sites, where they differ from site to site.
template <typename T> struct PerSite {
  T drift[kChunk], amplitude[kChunk];
};

template <typename T, bool per_site>
DIFFMD_INLINE void step_register(const Rows<T>& rows, const std::uint32_t (*words)[kChunk], int site, Pack<T> drift,
                                 Pack<T> amplitude, const PerSite<T>* values) {
  Bits<T> of_sites[4];
  for (int k = 0; k < 4; ++k) of_sites[k] = load_words<T>(words[k] + site);
  Pack<T> x, y, z;
  normals_of<T>(of_sites, &x, &y, &z);
  Pack<T> noise[3], drifts[3] = {drift, drift, drift}, amplitudes[3] = {amplitude, amplitude, amplitude};
  in_memory_order<T>(x, y, z, noise);
  if constexpr (per_site) {
    const Pack<T> d = load(values->drift + site), a = load(values->amplitude + site);
    in_memory_order<T>(d, d, d, drifts);
    in_memory_order<T>(a, a, a, amplitudes);
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const int at = i * Simd<T>::lanes;
    const Pack<T> change = drifts[i] * load(rows.score + at) + amplitudes[i] * noise[i];
    store<T>(rows.new_positions + at, load(rows.positions + at) + change);
    if (rows.noise) store<T>(rows.noise + at, noise[i]);
  }
}

// The last sites, fewer than a register, through padded copies and the same instructions.
template <typename T, bool per_site>
[[gnu::noinline]] void step_rest(const Rows<T>& rows, int n, const std::uint32_t (*words)[kChunk], int site,
                                 Pack<T> drift, Pack<T> amplitude, const PerSite<T>* values) {
  constexpr int size = 3 * Simd<T>::lanes;
  T positions[size] = {}, score[size] = {}, noise[size];
  memcpy(positions, rows.positions, 3 * n * sizeof(T));
  memcpy(score, rows.score, 3 * n * sizeof(T));
  step_register<T, per_site>({positions, score, positions, noise}, words, site, drift, amplitude, values);
  memcpy(rows.new_positions, positions, 3 * n * sizeof(T));
  if (rows.noise) memcpy(rows.noise, noise, 3 * n * sizeof(T));
}

template <typename T> T amplitude_of(double diffusion_time, double variance) {
  return T(std::sqrt(2.0 * diffusion_time * variance));
}

template <typename T> void fill_per_site(const EmStep<T>& call, std::int64_t first, int n, PerSite<T>* values) {
  double d[kChunk], v[kChunk];
  std::int64_t r = first / call.n_atoms, a = first % call.n_atoms;
  for (int site = 0; site < n; ++site) {
    d[site] = call.diffusion_time[call.diffusion_per_atom ? a : 0];
    v[site] = call.variance[call.variance_per_replica ? r : 0];
    if (++a == call.n_atoms) {
      a = 0;
      ++r;
    }
  }
  for (int site = n; site < kChunk; ++site) d[site] = v[site] = 0.0;
  for (int site = 0; site < kChunk; ++site) {
    values->drift[site] = T(d[site]);
    values->amplitude[site] = amplitude_of<T>(d[site], v[site]);
  }
}

// The words of the next n sites, and up to 2 * kWordLanes - 1 more.
DIFFMD_INLINE void draw_words(const PhiloxKey& key, int n, Sites* sites, std::uint32_t (*words)[kChunk]) {
  for (int site = 0; site < n; site += 2 * kWordLanes) {
    Sites pair[2] = {*sites, *sites};
    advance(&pair[1]);
    *sites = pair[1];
    advance(sites);
    Words of_sites[2][4];
    philox_words<2>(key, pair, of_sites);
    for (int i = 0; i < 2; ++i)
      for (int k = 0; k < 4; ++k) memcpy(words[k] + site + i * kWordLanes, &of_sites[i][k], sizeof(Words));
  }
}

// The sites first .. last - 1.
template <typename T, bool per_site>
void step_sites(const EmStep<T>& call, const PhiloxKey& key, std::int64_t first, std::int64_t last) {
  const Pack<T> drift = fill<T>(T(call.diffusion_time[0]));
  const Pack<T> amplitude = fill<T>(amplitude_of<T>(call.diffusion_time[0], call.variance[0]));
  Sites sites = sites_from(first, call.n_atoms, call.first_replica);
  alignas(64) std::uint32_t words[4][kChunk];
  PerSite<T> values;
  for (; first < last; first += kChunk) {
    const int n = int(last - first < kChunk ? last - first : kChunk);
    draw_words(key, n, &sites, words);
    if (per_site) fill_per_site(call, first, n, &values);
    const auto rows = [&](int site) -> Rows<T> {
      const std::int64_t at = 3 * (first + site);
      return {call.positions + at, call.score + at, call.new_positions + at, call.noise ? call.noise + at : nullptr};
    };
    int site = 0;
    for (; site + Simd<T>::lanes <= n; site += Simd<T>::lanes)
      step_register<T, per_site>(rows(site), words, site, drift, amplitude, &values);
    if (site < n) step_rest<T, per_site>(rows(site), n - site, words, site, drift, amplitude, &values);
  }
}

// log p(x'|x) = -1/2 sum xi^2 - 3/2 sum_atoms log(2 pi 2 D dt v), from the noise of the step itself.
template <typename T> void log_density_of(const EmStep<T>& call, std::int64_t r) {
  const double v = call.variance[call.variance_per_replica ? r : 0];
  double sum = 0.0;
  for (std::int64_t a = 0; a < call.n_atoms; ++a) {
    const double d = call.diffusion_time[call.diffusion_per_atom ? a : 0];
    sum -= 1.5 * std::log(12.566370614359172954 * d * v);
    const T* xi = call.noise + 3 * (r * call.n_atoms + a);
    for (int c = 0; c < 3; ++c) sum -= 0.5 * double(xi[c]) * double(xi[c]);
  }
  call.log_density[r] = T(sum);
}

}  // namespace

template <typename T> void em_step(const EmStep<T>& call) {
  const std::int64_t n_sites = call.n_replicas * call.n_atoms;
  const PhiloxKey key = philox_key(call.seed, call.step, call.domain);
  const bool per_site = call.diffusion_per_atom || call.variance_per_replica;
  const auto step = per_site ? step_sites<T, true> : step_sites<T, false>;
  if (call.n_threads > 1 && n_sites > 8192) {
    const std::int64_t part = (n_sites / call.n_threads / kChunk + 1) * kChunk;
#pragma omp parallel for schedule(static) num_threads(call.n_threads)
    for (std::int64_t first = 0; first < n_sites; first += part)
      step(call, key, first, n_sites - first < part ? n_sites : first + part);
  } else if (n_sites > 0) {
    step(call, key, 0, n_sites);  // without the cost of asking OpenMP
  }
  // Replicas without atoms have a density, too: that of nothing, 1.
  for (std::int64_t r = 0; call.log_density && r < call.n_replicas; ++r) log_density_of(call, r);
}

template void em_step<float>(const EmStep<float>&);
template void em_step<double>(const EmStep<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
