"""Benchmarks: the same token ids in, the same number of tokens out, one process per cell."""
