"""Compressed sparse rows on a GPU: the checks that csrc/spline_conv.cpp makes before it trusts a list."""

import torch
import triton
import triton.language as tl

ROWS = 128  # rows of one program, one a thread: a row's columns lie side by side, so most loads are met in L1
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}  # integers only: fusion is off as everywhere
FINE, BAD_ROWS, BAD_COLUMNS, ASYMMETRIC = range(4)  # SplineStatus of csrc/spline_conv.hpp


@triton.jit
def check_kernel(row_ptr, col, found, n_nodes, n_edges, ROWS: tl.constexpr):
    """found [programs, 3]: rows out of order, columns out of range, and the balance of both sides of the pairs.

    The balance is a sum of a hash of each pair, +1 from one side and -1 from the other, modulo 2^32, with the hash of
    csrc/spline_conv.cpp.  No load goes outside, whatever the arrays hold.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_nodes
    begin = tl.load(row_ptr + row, mask=inside, other=0)
    end = tl.load(row_ptr + row + 1, mask=inside, other=0)
    bad = (begin < 0) | (begin > end) | (end > n_edges)
    bad = bad | ((row == 0) & (begin != 0)) | ((row == n_nodes - 1) & (end != n_edges))
    bad_rows = tl.sum((bad & inside).to(tl.int64), 0)
    count = tl.where(inside & ~bad, end - begin, 0)
    bad_columns = tl.zeros([ROWS], tl.int64)
    balance = tl.zeros([ROWS], tl.uint32)
    for k in range(tl.max(count, 0)):
        mine = k < count
        j = tl.load(col + begin + k, mask=mine, other=0).to(tl.int64)
        bad_columns += (mine & ((j < 0) | (j >= n_nodes))).to(tl.int64)
        low = tl.minimum(j, row).to(tl.uint32)
        high = tl.maximum(j, row).to(tl.uint32)
        hashed = (low * 0x9E3779B1) ^ (high * 0x85EBCA77 + 0x27D4EB2F)
        hashed = (hashed ^ (hashed >> 15)) * 0x2C1B3C6D
        balance += tl.where(mine & (j > row), hashed, tl.where(mine & (j < row), 0 - hashed, 0)).to(tl.uint32)
    out = found + 3 * tl.program_id(0).to(tl.int64)
    tl.store(out, bad_rows)
    tl.store(out + 1, tl.sum(bad_columns, 0))
    tl.store(out + 2, tl.sum(balance.to(tl.int64), 0))


def check(row_ptr: torch.Tensor, col: torch.Tensor, symmetric: bool) -> int:
    """FINE, or what is wrong with a list; waits for the GPU, as an error before anything is computed has to."""
    n_nodes, n_edges = row_ptr.numel() - 1, col.numel()
    if n_nodes == 0:
        return FINE if n_edges == 0 and int(row_ptr[0]) == 0 else BAD_ROWS
    programs = triton.cdiv(n_nodes, ROWS)
    found = torch.empty(programs, 3, dtype=torch.int64, device=col.device)
    with torch.cuda.device_of(col):
        check_kernel[programs,](row_ptr, col, found, n_nodes, n_edges, ROWS=ROWS, **LAUNCH)
    rows, columns, balance = found.sum(0).tolist()
    if rows:
        return BAD_ROWS
    if columns:
        return BAD_COLUMNS
    return ASYMMETRIC if symmetric and balance % 2**32 else FINE
