"""Runtimes: what runs a model, how long it takes there, and what the machine is. A runtime is one file."""
