"""What the kernels share: IEEE operations, float64 arguments, three-component vectors as tuples of blocks."""

import struct
import sys

import triton
import triton.language as tl


def bits_of(value: float) -> int:
    """A float64 kernel argument, for :func:`float_of`: Triton would pass a Python float in 32 bits.

    Triton takes the type of an integer from its value, so the bits of all numbers have to need 64 of them: those below
    2^-1022 become -0, which compares as 0.
    """
    return struct.unpack("<q", struct.pack("<d", value if abs(value) >= sys.float_info.min else -0.0))[0]


@triton.jit
def float_of(bits, DTYPE: tl.constexpr):
    """The float64 of :func:`bits_of`, rounded to DTYPE."""
    return bits.to(tl.float64, bitcast=True).to(DTYPE)


@triton.jit
def exact_sqrt(x):
    """The IEEE square root; ``tl.sqrt`` of float32 is an approximation."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def divide(a, b):
    """The IEEE quotient; ``/`` of float32 is an approximation."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def load_vector(array, index, mask):
    """Row ``index`` of [n, 3], zeros where masked."""
    at = array + 3 * index
    return (tl.load(at, mask=mask, other=0), tl.load(at + 1, mask=mask, other=0), tl.load(at + 2, mask=mask, other=0))


@triton.jit
def add(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def subtract(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def scale(s, a):
    return s * a[0], s * a[1], s * a[2]


@triton.jit
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
