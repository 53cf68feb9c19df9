"""The preflight: is everything in place that a flush needs?  Asked in one go, and nothing is changed by asking.

`ask.py` goes through `domain/probes.py` in order; `site.py` is what the probes look at, and each of the other modules
asks about one side of it.  What is to be asked of Dagster is in `orchestration/`.
"""
