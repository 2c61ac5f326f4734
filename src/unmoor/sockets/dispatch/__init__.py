"""Generations of the dispatch table in the kernel: load, verify, switch, explain."""
