"""Torsion angles on a GPU; the formula and its floors are those of reference/torsions.py, derivatives included.

Lanes are float64 whatever the tensors are, as in csrc/torsions.cpp: the derivatives cancel near straight angles.
No atomics: an atom's gradient is gathered by the one lane that owns the atom, torsion by torsion in their order, and
each torsion is computed anew for its four atoms; so results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from ...reference.torsions import AREA_FLOOR, LENGTH_FLOOR
from .arithmetic import add, cross, dot, load_vector, scale, subtract
from .tuning import tuned

LENGTH = tl.constexpr(LENGTH_FLOOR)  # kernels see no plain globals
AREA = tl.constexpr(AREA_FLOOR)
# One torsion or one atom a thread (four warps of 32): the float64 numbers of a torsion and its derivatives fill up to
# 124 of the 255 registers that a thread may have, so two a thread would spill.
BLOCK = 128
# No fused multiply-adds: the same operations, so the same bits, in the interpreter and on a GPU.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def load_point(x, q, first_site, inside):
    """The atom that quadruple entry ``q`` names, of the replica whose atoms begin at ``first_site``."""
    v = load_vector(x, first_site + tl.load(q, mask=inside, other=0), inside)
    return v[0].to(tl.float64), v[1].to(tl.float64), v[2].to(tl.float64)


@triton.jit
def load_bonds(x, quadruples, torsion, first_site, inside):
    """Bond vectors a->b, b->c, c->d of each lane's torsion in the replica whose atoms begin at ``first_site``."""
    q = quadruples + 4 * torsion.to(tl.int64)
    a = load_point(x, q, first_site, inside)
    b = load_point(x, q + 1, first_site, inside)
    c = load_point(x, q + 2, first_site, inside)
    d = load_point(x, q + 3, first_site, inside)
    return subtract(b, a), subtract(c, b), subtract(d, c)


@triton.jit
def angle_of(b1, b2, b3):
    """(n1, n2, length, volume, over_norm, sine, cosine), as in csrc/torsion_math.hpp."""
    n1 = cross(b1, b2)
    n2 = cross(b2, b3)
    length = tl.sqrt(dot(b2, b2) + LENGTH)
    volume = dot(b1, n2)
    x = dot(n1, n2)
    y = length * volume
    over_norm = 1.0 / tl.sqrt(x * x + y * y + AREA)
    return n1, n2, length, volume, over_norm, y * over_norm, x * over_norm


@triton.jit
def slope_of_angle(b1, b2, b3, db1, db2, db3, angle):
    """The derivative of :func:`angle_of` where the bonds move by db1, db2, db3."""
    n1, n2, length, volume, over_norm, sine, cosine = angle
    dn1 = add(cross(db1, b2), cross(b1, db2))
    dn2 = add(cross(db2, b3), cross(b2, db3))
    dlength = dot(b2, db2) / length
    dvolume = dot(db1, n2) + dot(b1, dn2)
    dx = dot(dn1, n2) + dot(n1, dn2)
    dy = dlength * volume + length * dvolume
    relative = (cosine * dx + sine * dy) * over_norm  # d norm / norm
    return (dn1, dn2, dlength, dvolume, -relative * over_norm, dy * over_norm - sine * relative,
            dx * over_norm - cosine * relative)


@triton.jit
def gradient_of(b1, b2, b3, angle, grad_sine, grad_cosine):
    """Gradient with respect to the three bonds of grad_sine * sine + grad_cosine * cosine."""
    n1, n2, length, volume, over_norm, sine, cosine = angle
    along = grad_sine * sine + grad_cosine * cosine
    grad_x = over_norm * (grad_cosine - along * cosine)
    grad_y = over_norm * (grad_sine - along * sine)
    grad_volume = grad_y * length
    grad_n1 = scale(grad_x, n2)
    grad_n2 = add(scale(grad_x, n1), scale(grad_volume, b1))
    return (add(scale(grad_volume, n2), cross(b2, grad_n1)),
            add(scale(grad_y * volume / length, b2), add(cross(grad_n1, b1), cross(b3, grad_n2))), cross(grad_n2, b2))


@triton.jit
def slope_of_gradient(b1, b2, b3, db1, db2, db3, angle, slope, grad_sine, grad_cosine):
    """The derivative of :func:`gradient_of` where the bonds move; grad_sine and grad_cosine stay."""
    n1, n2, length, volume, over_norm, sine, cosine = angle
    dn1, dn2, dlength, dvolume, dover_norm, dsine, dcosine = slope
    along = grad_sine * sine + grad_cosine * cosine
    dalong = grad_sine * dsine + grad_cosine * dcosine
    rest_x = grad_cosine - along * cosine
    rest_y = grad_sine - along * sine
    grad_x = over_norm * rest_x
    grad_y = over_norm * rest_y
    dgrad_x = dover_norm * rest_x - over_norm * (dalong * cosine + along * dcosine)
    dgrad_y = dover_norm * rest_y - over_norm * (dalong * sine + along * dsine)
    grad_volume = grad_y * length
    dgrad_volume = dgrad_y * length + grad_y * dlength
    grad_n1 = scale(grad_x, n2)
    dgrad_n1 = add(scale(dgrad_x, n2), scale(grad_x, dn2))
    grad_n2 = add(scale(grad_x, n1), scale(grad_volume, b1))
    dgrad_n2 = add(add(scale(dgrad_x, n1), scale(grad_x, dn1)), add(scale(dgrad_volume, b1), scale(grad_volume, db1)))
    over = volume / length
    stretch = grad_y * over
    dstretch = dgrad_y * over + grad_y * (dvolume - over * dlength) / length
    dg1 = add(add(scale(dgrad_volume, n2), scale(grad_volume, dn2)), add(cross(db2, grad_n1), cross(b2, dgrad_n1)))
    dg2 = add(add(scale(dstretch, b2), scale(stretch, db2)), add(add(cross(dgrad_n1, b1), cross(grad_n1, db1)),
              add(cross(db3, grad_n2), cross(b3, dgrad_n2))))
    return dg1, dg2, add(cross(dgrad_n2, b2), cross(grad_n2, db2))


@triton.jit
def angles_kernel(positions, quadruples, cotangent, output, n_items, n_torsions, n_atoms, SLOPE: tl.constexpr,
                  WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """(sin, cos) of each torsion of each replica, or with SLOPE their derivative along ``cotangent``."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    item = block * BLOCK + tl.arange(0, BLOCK)
    inside = item < n_items
    torsion = item % n_torsions
    first_site = (item // n_torsions).to(tl.int64) * n_atoms
    b1, b2, b3 = load_bonds(positions, quadruples, torsion, first_site, inside)
    angle = angle_of(b1, b2, b3)
    if SLOPE:
        db1, db2, db3 = load_bonds(cotangent, quadruples, torsion, first_site, inside)
        angle = slope_of_angle(b1, b2, b3, db1, db2, db3, angle)
    pair = output + 2 * item.to(tl.int64)
    tl.store(pair, angle[5].to(output.dtype.element_ty), mask=inside)
    tl.store(pair + 1, angle[6].to(output.dtype.element_ty), mask=inside)


@triton.jit
def share_of(place, mine, g1, g2, g3):
    """What the atom at ``place`` of a quadruple gets from the gradients of its bonds: head of one, tail of the next."""
    share = tl.where(place == 0, -g1, tl.where(place == 1, g1 - g2, tl.where(place == 2, g2 - g3, g3)))
    return tl.where(mine, share, 0.0)


@triton.jit
def gradient_kernel(positions, quadruples, row_ptr, incidence, grad_output, cotangent, output, n_sites, n_torsions,
                    n_atoms, SLOPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Each atom's gradient of <grad_output, torsions>, or with SLOPE its derivative along ``cotangent``.

    ``incidence`` [4 torsions]: 4 * torsion + place of the atom in its quadruple; atom a has row_ptr[a] .. [a + 1].
    """
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    site = block * BLOCK + tl.arange(0, BLOCK)
    inside = site < n_sites
    atom = site % n_atoms
    replica = (site // n_atoms).to(tl.int64)
    first_site = replica * n_atoms
    begin = tl.load(row_ptr + atom, mask=inside, other=0)
    count = tl.load(row_ptr + atom + 1, mask=inside, other=0) - begin
    x = tl.zeros([BLOCK], tl.float64)
    y = tl.zeros([BLOCK], tl.float64)
    z = tl.zeros([BLOCK], tl.float64)
    for k in range(tl.max(count, 0)):
        mine = k < count
        place = tl.load(incidence + begin + k, mask=mine, other=0)
        torsion = place // 4
        place = place % 4
        pair = grad_output + 2 * (replica * n_torsions + torsion)
        grad_sine = tl.load(pair, mask=mine, other=0.0).to(tl.float64)
        grad_cosine = tl.load(pair + 1, mask=mine, other=0.0).to(tl.float64)
        b1, b2, b3 = load_bonds(positions, quadruples, torsion, first_site, mine)
        angle = angle_of(b1, b2, b3)
        if SLOPE:
            db1, db2, db3 = load_bonds(cotangent, quadruples, torsion, first_site, mine)
            slope = slope_of_angle(b1, b2, b3, db1, db2, db3, angle)
            g1, g2, g3 = slope_of_gradient(b1, b2, b3, db1, db2, db3, angle, slope, grad_sine, grad_cosine)
        else:
            g1, g2, g3 = gradient_of(b1, b2, b3, angle, grad_sine, grad_cosine)
        x += share_of(place, mine, g1[0], g2[0], g3[0])
        y += share_of(place, mine, g1[1], g2[1], g3[1])
        z += share_of(place, mine, g1[2], g2[2], g3[2])
    out = output + 3 * site.to(tl.int64)
    tl.store(out, x.to(output.dtype.element_ty), mask=inside)
    tl.store(out + 1, y.to(output.dtype.element_ty), mask=inside)
    tl.store(out + 2, z.to(output.dtype.element_ty), mask=inside)


def incidences(quadruples: torch.Tensor, n_atoms: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(row_ptr [atoms + 1], 4 * torsion + place [4 torsions]), both int64: in which torsions each atom takes part."""
    atoms, incidence = quadruples.reshape(-1).sort(stable=True)
    return torch.searchsorted(atoms, torch.arange(n_atoms + 1, device=atoms.device)), incidence


def angles(positions, quadruples, cotangent=None, *, wide: bool | None = None) -> torch.Tensor:
    """[replicas, torsions, 2]; arguments are checked by ops/torsions.py."""
    n_replicas, n_atoms, _ = positions.shape
    n_torsions = quadruples.shape[0]
    output = positions.new_empty(n_replicas, n_torsions, 2)
    n_items = n_replicas * n_torsions
    if n_items:
        _launch("torsions", angles_kernel, n_items, wide, positions, quadruples, cotangent, output, n_items, n_torsions,
                n_atoms)
    return output


def gradient(grad_output, positions, quadruples, cotangent=None, *, wide: bool | None = None) -> torch.Tensor:
    """[replicas, atoms, 3]; arguments are checked by ops/torsions.py."""
    n_replicas, n_atoms, _ = positions.shape
    output = torch.empty_like(positions)
    n_sites = n_replicas * n_atoms
    if n_sites:
        _launch("torsions_gradient", gradient_kernel, n_sites, wide, positions, quadruples,
                *incidences(quadruples, n_atoms), grad_output, cotangent, output, n_sites, quadruples.shape[0], n_atoms)
    return output


def _launch(name: str, kernel, n: int, wide: bool | None, positions, quadruples, *rest) -> None:
    """``rest`` ends with cotangent, output and the sizes; a missing cotangent is a kernel without SLOPE."""
    cotangent = rest[-5]
    launch = {"BLOCK": BLOCK, **LAUNCH, **tuned(name, str(positions.dtype), positions.device)}
    wide = n + launch["BLOCK"] >= 2**31 if wide is None else wide
    with torch.cuda.device_of(positions):  # Triton launches on the current device
        kernel[triton.cdiv(n, launch["BLOCK"]),](positions, quadruples, *rest, SLOPE=cotangent is not None, WIDE=wide,
                                                 **launch)
