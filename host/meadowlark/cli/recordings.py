"""What is recorded of a simulated board while a command works: ``--trace`` and ``--waves``."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from .options import given
from .terminal import Progress, say

if TYPE_CHECKING:
    from ..compile.image import Image
    from ..run.targets import Target
    from ..run.timeline import Timeline
    from ..run.waves import Waves


@dataclass(frozen=True, kw_only=True)
class Trace:
    """``--trace``: the file, and what is to be in it."""
    file: str
    timeline: Timeline

    def recording(self, target: Target, image: Image, name: str) -> AbstractContextManager[None]:
        """Of a run."""
        return self.timeline.recording(target, image, name)

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


@contextmanager
def recorded(target: Target, image: Image, name: str, *by: Trace | Waves | None) -> Iterator[None]:
    """A run of an image, and who records it."""
    with ExitStack() as stack:
        for one in by:
            if one is not None:
                stack.enter_context(one.recording(target, image, name))
        yield


def _check(option: str, file: str, target: str, what: str) -> None:
    if target != "sim":
        raise UserError(f"{option} shows {what} --target sim simulates, not {target}; leave one of "
                        "them out")
    if file == "-":
        raise UserError(f"{option} needs a file: stdout is for the results")


def trace_option(command: Callable) -> Callable:
    """``--trace``: a timeline of the simulated board; the command gets it as ``trace``, a
    :class:`Trace` or None."""
    for option in reversed((
            click.option("--trace", "trace_to", metavar="FILE",
                         help="Write what each unit of the simulated board did, as trace events "
                              "in JSON, which https://ui.perfetto.dev opens. A microsecond there "
                              "is a cycle. Of a name that ends in .gz it is compressed. This "
                              "board is built once more."),
            click.option("--trace-passes", "trace_passes", type=click.IntRange(min=1), default=4,
                         show_default=True, metavar="N",
                         help="Passes of each run that --trace records, the first ones. One takes "
                              "about half a MB for a million weights that are read."))):
        command = option(command)

    @functools.wraps(command)
    def collected(*args, trace_to: str | None, trace_passes: int, target: str, **kw):
        if trace_to is None and given("trace_passes"):
            raise UserError("--trace-passes limits --trace; give it a file, or leave both out")
        trace = None
        if trace_to is not None:
            _check("--trace", trace_to, target, "what")
            from ..run.timeline import Timeline
            trace = Trace(file=trace_to, timeline=Timeline(trace_passes))
        return command(*args, **kw, target=target, trace=trace)
    return collected


def waves_option(command: Callable) -> Callable:
    """``--waves``: signals of the simulated board; the command gets them as ``waves``, a
    :class:`~meadowlark.run.waves.Waves` or None."""
    for option in reversed((
            click.option("--waves", "waves_to", metavar="FILE",
                         help="Write the signals of the simulated board in the first run, as VCD, "
                              "and beside it a save file for GTKWave, .gtkw, which groups them by "
                              "unit and shows instructions as text. A microsecond there is a "
                              "cycle. This board is built once more."),
            click.option("--waves-cycles", default="0:10000", show_default=True,
                         metavar="FROM:TO",
                         help="Cycles of the run that --waves writes, the last one left out. A "
                              "thousand take about 11 MB on board virtual, and more the larger its "
                              "core."))):
        command = option(command)

    @functools.wraps(command)
    def collected(*args, waves_to: str | None, waves_cycles: str, target: str, **kw):
        if waves_to is None and given("waves_cycles"):
            raise UserError("--waves-cycles limits --waves; give it a file, or leave both out")
        waves = None
        if waves_to is not None:
            _check("--waves", waves_to, target, "signals that")
            from ..run.waves import Waves, cycles_of
            waves = Waves(waves_to, *cycles_of(waves_cycles))
        return command(*args, **kw, target=target, waves=waves)
    return collected
