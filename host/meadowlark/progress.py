"""Who is told what takes long."""
from collections.abc import Callable

#: Gets a sentence and, where it is known, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]
