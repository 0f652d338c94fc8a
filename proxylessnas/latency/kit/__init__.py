"""Latency kits: measure a search space on a device without PyTorch, and make a table of what comes back."""
