"""The program ``proxylessnas``: a file for each command; ``_command.py`` says how to add one."""

from __future__ import annotations

from ._main import commands as commands

# Nothing more may live here: the module `list` becomes an attribute of this package and hides the built-in.
from ._main import main as main
