"""Exit statuses of the commands, besides 0."""
from __future__ import annotations

#: ``--check`` found a difference, or the simulation itself failed.
DIFFERENT = 1
#: Everything that the user can put right.
WRONG_USE = 2
INTERRUPTED = 130
