"""The arithmetic that neighbor lists rest on, each expression once, as in csrc/neighbor_metric.hpp.

Kernels that use it are launched without fused multiply-adds: a pair and its mirror, and every machine, decide alike.
"""

import triton
import triton.language as tl

from .arithmetic import load_vector, subtract

FARTHEST = 2.0**29  # box vectors; as kFarthest of csrc/neighbor_metric.hpp
NEAREST_MAGIC = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: adding and taking it off rounds to the nearest integer


@triton.jit
def load_box(box, replica, inside):
    """The three vectors of each lane's box."""
    return (load_vector(box, 3 * replica, inside), load_vector(box, 3 * replica + 1, inside),
            load_vector(box, 3 * replica + 2, inside))


@triton.jit
def upright(v):
    """A vector of each row, to meet one of each column."""
    return v[0][:, None], v[1][:, None], v[2][:, None]


@triton.jit
def widened(v):
    return v[0].to(tl.float64), v[1].to(tl.float64), v[2].to(tl.float64)


@triton.jit
def nearest_image(mine, theirs):
    """(difference, image) of fractions; less the image every component of the difference is within +-1/2."""
    d = subtract(widened(theirs), widened(mine))
    return d, ((d[0] + NEAREST_MAGIC) - NEAREST_MAGIC, (d[1] + NEAREST_MAGIC) - NEAREST_MAGIC,
               (d[2] + NEAREST_MAGIC) - NEAREST_MAGIC)


@triton.jit
def squared_distance(mine, theirs, a, b, c, IN_BOX: tl.constexpr):
    """(squared distance in nm^2, image): of points in nm, or with a box a, b, c of the nearest images of fractions."""
    d, image = nearest_image(mine, theirs)
    if IN_BOX:
        f = subtract(d, image)
        d = ((f[0] * a[0] + f[1] * b[0]) + f[2] * c[0], (f[0] * a[1] + f[1] * b[1]) + f[2] * c[1],
             (f[0] * a[2] + f[1] * b[2]) + f[2] * c[2])
    return (d[0] * d[0] + d[1] * d[1]) + d[2] * d[2], image


@triton.jit
def store_shift(shift, edge, mine, theirs, image, mask):
    """Box vectors to add to the neighbor; ``mine`` and ``theirs`` were taken off the two."""
    for k in tl.static_range(3):
        tl.store(shift + 3 * edge + k, mine[k] - theirs[k] - image[k].to(tl.int32), mask=mask)
