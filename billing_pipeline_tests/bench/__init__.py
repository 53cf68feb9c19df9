"""Benchmarks: each prints one line, a figure of ours beside a bare one measured in the same run.

`make bench` runs all, `make bench ONLY=name` one.  They are not tests: a slow machine is no defect.
"""
