"""Three-component vectors as tuples of blocks: what the geometry kernels share."""

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it in every module with kernels)


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
