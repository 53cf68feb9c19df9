"""The only `import dagster`: assets, checks, the job and its schedule.

An asset body unpacks the context, calls one stage of a flow and returns metadata; nothing is decided here.
Modules here do not use `from __future__ import annotations`, because Dagster reads the annotations.
"""
