"""The version, alone in a file: reading it needs neither torch nor an installed package."""

__version__ = "0.1.0"
