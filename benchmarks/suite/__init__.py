"""Throughput of diffmd_fast, each operation native and reference in one suite.

Threads are pinned to one for both sides unless a benchmark says otherwise, and denormals are flushed on both sides.
``time_`` gives seconds a call, ``track_speedup_`` the ratio of medians of alternating calls in one process.
"""
