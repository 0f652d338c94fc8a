"""Architectures and search spaces as data: text, JSON, tables of the published ones. Needs no torch."""
