"""Counter-based normals in Triton: twin of csrc/philox.hpp, operation for operation.

The words are bit-identical everywhere.  The normals are made of IEEE additions, multiplications, divisions and square
roots only, in the order of the C++, which is compiled without fused multiply-adds; so under ``enable_fp_fusion=False``
(see ``LAUNCH`` in em_step.py) they equal those of the CPU bit for bit, in the interpreter and on a GPU alike.
"""

import triton
import triton.language as tl


@triton.jit
def philox_words(atom, replica, seed_low, seed_high, step_low, step_high_and_domain):
    """Four blocks of uint32 from blocks ``atom`` and ``replica`` and scalars, all uint32; Philox4x32-10."""
    zero = tl.zeros_like(atom)
    return tl.philox_impl(atom, replica, zero + step_low, zero + step_high_and_domain, seed_low, seed_high)


@triton.jit
def exact_sqrt(x):
    """The IEEE square root; ``tl.sqrt`` of float32 is an approximation."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def exact_ratio(x, y):
    """The IEEE quotient; ``/`` of float32 is an approximation."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def log_uniform(n, DTYPE: tl.constexpr):
    """log(n * 2^-24) for int32 n in 1 .. 2^24: log m = 2 artanh((m-1)/(m+1)), mantissa m in [1/sqrt 2, sqrt 2)."""
    TERMS: tl.constexpr = 6 if DTYPE.primitive_bitwidth == 32 else 12
    bits = n.to(tl.float32).to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    high = mantissa > 1.41421356
    exponent = (bits >> 23) - 127 + (high.to(tl.int32) - 24)
    m = tl.where(high, 0.5 * mantissa, mantissa).to(DTYPE)
    s = exact_ratio(m - 1.0, m + 1.0)
    s2 = s * s
    total = 1.0 / (2 * TERMS - 1)
    for k in tl.static_range(TERMS - 2, -1, -1):
        total = total * s2 + 1.0 / (2 * k + 1)
    return exponent.to(DTYPE) * 0.693147180559945309417232 + 2.0 * s * total


@triton.jit
def box_muller(radius_word, angle_word, DTYPE: tl.constexpr):
    """(cosine part, sine part) from two words: u = ((w >> 8) + 1) / 2^24 is the radius, w >> 8 the angle in turns."""
    SINE_TERMS: tl.constexpr = 5 if DTYPE.primitive_bitwidth == 32 else 9
    COSINE_TERMS: tl.constexpr = 6 if DTYPE.primitive_bitwidth == 32 else 10
    radius = exact_sqrt(-2.0 * log_uniform((radius_word >> 8).to(tl.int32) + 1, DTYPE))
    n = (angle_word >> 8).to(tl.int32)
    quarter = (n + (1 << 21)) >> 22  # the nearest quarter turn is taken off in integers, exactly
    x = (n - (quarter << 22)).to(DTYPE) * (6.283185307179586476925287 / 16777216.0)
    x2 = x * x
    sine = 1.0
    for k in tl.static_range(SINE_TERMS, 0, -1):
        sine = 1.0 - sine * x2 * (1.0 / (2 * k * (2 * k + 1)))
    cosine = 1.0
    for k in tl.static_range(COSINE_TERMS, 0, -1):
        cosine = 1.0 - cosine * x2 * (1.0 / ((2 * k - 1) * 2 * k))
    sine *= x
    swap = (quarter & 1) != 0
    c = tl.where(swap, sine, cosine)
    s = tl.where(swap, cosine, sine)
    return (radius * tl.where(((quarter + 1) & 2) != 0, -c, c), radius * tl.where((quarter & 2) != 0, -s, s))


@triton.jit
def philox_normals(atom, replica, seed_low, seed_high, step_low, step_high_and_domain, DTYPE: tl.constexpr):
    """The three components of each site's noise, from the four words of one Philox call (one normal is not used)."""
    w0, w1, w2, w3 = philox_words(atom, replica, seed_low, seed_high, step_low, step_high_and_domain)
    x, y = box_muller(w0, w1, DTYPE)
    z, _ = box_muller(w2, w3, DTYPE)
    return x, y, z


def counter_arguments(seed: int, step: int, domain: int = 0) -> tuple[int, int, int, int]:
    """(seed low, seed high, step low, step high | domain << 24) as kernel arguments.

    Each is the signed integer of the same 32 bits: Triton picks an argument's type by its value, and one type for
    all values means one compiled kernel.
    """
    return (signed32(seed), signed32(seed >> 32), signed32(step), signed32((step >> 32 & 0xFFFFFF) | domain << 24))


def signed32(word: int) -> int:
    """The signed integer of the lowest 32 bits of ``word``."""
    word &= 0xFFFFFFFF
    return word - 2**32 if word >= 2**31 else word
