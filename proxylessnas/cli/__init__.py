"""The command ``proxylessnas``. Each verb is a file of this folder; see ``_verb.py`` for how to add one."""

from __future__ import annotations

# Nothing more may live here: the module `list` becomes an attribute of this package and hides the built-in.
from ._main import main as main
from ._main import verbs as verbs
