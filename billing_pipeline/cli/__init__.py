"""The `billing-pipeline` command: one file per group of commands, registered in `main.py`.

A command reads the settings, calls one function and prints; heavy libraries are imported inside it, because
every command pays for what this package imports.
"""
