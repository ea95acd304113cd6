// Can this machine run what nvcc compiled here?
#pragma once
#include <string>

namespace diffmd {

// "" when the Philox words of a few thousand sites come out of the current CUDA device exactly as they do on
// the host, else one line saying why not. Needs neither a GPU nor a driver to be called.
std::string cuda_probe();

}  // namespace diffmd
