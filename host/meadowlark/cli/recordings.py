"""What is recorded of a simulated board while a command works: ``--trace`` and ``--waves``."""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from .options import given
from .terminal import Progress, say

if TYPE_CHECKING:
    from ..api import Timeline, Waves


@dataclass(frozen=True, kw_only=True)
class Trace:
    """``--trace``: the file, and what is to be in it."""
    file: str
    timeline: Timeline

    def write(self, progress: Progress) -> None:
        """Write the file, after the last run."""
        progress("writing the timeline")
        self.timeline.write(self.file)

    def tell(self) -> None:
        """What was written, and what to do with it."""
        runs = self.timeline.recordings
        parts = [r.name if r.whole else f"the first {len(r.passes)} passes of {r.name}"
                 for r in runs]
        say(f"timeline of {' and '.join(parts)} in {self.file}; https://ui.perfetto.dev opens it, "
            "a microsecond there is a cycle")


def _recorder(name: str, limit: str, what: str, options: Sequence[Callable],
              made: Callable[[str, Any], object]) -> Callable[[Callable], Callable]:
    """An option ``--NAME FILE`` with one that limits it; the command gets what is ``made`` of their
    values as ``NAME``, or None. what: it shows of the simulated board."""
    key = f"{name}_{limit}"

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)

        @functools.wraps(command)
        def collected(*args, target: str, **kw):
            file, most = kw.pop(f"{name}_to"), kw.pop(key)
            if file is None:
                if given(key):
                    raise UserError(f"--{name}-{limit} limits --{name}; give it a file, or leave "
                                    "both out")
                return command(*args, **kw, target=target, **{name: None})
            if target != "sim":
                raise UserError(f"--{name} shows {what} --target sim simulates, not {target}; "
                                "leave one of them out")
            if file == "-":
                raise UserError(f"--{name} needs a file: stdout is for the results")
            return command(*args, **kw, target=target, **{name: made(file, most)})
        return collected
    return decorate


def _trace(file: str, passes: int) -> Trace:
    from ..api import Timeline
    return Trace(file=file, timeline=Timeline(passes))


def waves_of(file: str, cycles: str) -> Waves:
    """Of the values of ``--waves`` and ``--waves-cycles``."""
    from ..api import Waves
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", cycles)
    first, last = map(int, found.groups()) if found else (0, 0)
    if first >= last:
        raise UserError(f"--waves-cycles is FROM:TO, two numbers with FROM below TO, such as "
                        f"0:10000, not {cycles!r}")
    return Waves(file, first, last)


#: ``--trace``: a timeline; the command gets it as ``trace``, a :class:`Trace` or None.
trace_option = _recorder("trace", "passes", "what", (
    click.option("--trace", "trace_to", metavar="FILE",
                 help="Write what each unit of the simulated board did, as trace events in JSON, "
                      "which https://ui.perfetto.dev opens. A microsecond there is a cycle. Of a "
                      "name that ends in .gz it is compressed. This board is built once more."),
    click.option("--trace-passes", "trace_passes", type=click.IntRange(min=1), default=4,
                 show_default=True, metavar="N",
                 help="Passes of each run that --trace records, the first ones. One takes about "
                      "half a MB for a million weights that are read.")), _trace)

#: ``--waves``: signals; the command gets it as ``waves``, a :class:`..api.Waves` or None.
waves_option = _recorder("waves", "cycles", "signals that", (
    click.option("--waves", "waves_to", metavar="FILE",
                 help="Write the signals of the simulated board in the first run, as VCD, and "
                      "beside it a save file for GTKWave, .gtkw, which groups them by unit and "
                      "shows instructions as text. A microsecond there is a cycle. This board is "
                      "built once more."),
    click.option("--waves-cycles", default="0:10000", show_default=True, metavar="FROM:TO",
                 help="Cycles of the run that --waves writes, the last one left out. A thousand "
                      "take about 11 MB on board virtual, and more the larger its core.")),
    waves_of)
