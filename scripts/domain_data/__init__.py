"""Builds data/ from pinned packages: one module for each domain, `build_data.py` is the entry."""
