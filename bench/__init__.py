"""Benchmarks: each is `python -m bench.NAME`, measures a peer or a limit in the same run, and
ends with one line of JSON."""
