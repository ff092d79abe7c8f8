"""Signals of the simulated board in a run: a VCD file, and how GTKWave shows it.

The simulator writes the file (see :meth:`meadowlark.sim.SimBoard.write_waves`). Beside it comes a
save file that groups signals by unit, and translate filter files, by which GTKWave shows the
program counter as the instruction there, in the words of ``meadowlark info``.
"""
from __future__ import annotations

import io
import mmap
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meadowlark_hdl.isa import FIELDS, MODEL_REGS, Op

from ..compile.disassemble import line, subjects
from ..files import temporary_folder, write_atomic
from .targets import SimTarget, Target

if TYPE_CHECKING:
    from vcd.gtkw import GTKWSave

    from ..compile.image import Image

#: Of the program counter.
_BITS = MODEL_REGS[0].bits
#: Where a core's units are in the file.
_TOP = "core.core.inner.wired"
#: Groups of the save file from the top: name and the scope of a unit below :data:`_TOP`. A unit
#: within one of these is a closed group in it, unless it has a group itself.
_UNITS = (
    ("Sequencer", "sequencer"), ("Fetch", "fetch"), ("Issue", "issue"),
    ("Memory: arbiter", "arbiter"), ("Memory: reader", "reader"), ("Memory: store", "store"),
    ("Scratch memory", "scratch"),
    ("Decoder", "decoder"), ("Unpacker", "decoder.unpacker"), ("Tile buffer", "tiles"),
    ("Tiling engine", "engine"), ("Softmax, lane 0", "engine.lane0.softmax"),
    ("Vector unit", "vector"),
    ("Sampler", "sampler"), ("Drafter", "drafter"), ("Counters", "counters"), ("Link", "link"),
)
#: What the save file leaves out, it is in the file: copies (Amaranth numbers names that it has
#: twice), elements of arrays, clocks and restarts.
_ASIDE = re.compile(r"\$|\].*\[|clk$|^(?:restart|flush)_")
#: Of the instruction that Issue works on: its place in the program, and its fields.
_COUNTER = f"{_TOP}.issue.pc"
_DISPATCH = f"{_TOP}.issue.dispatch"


class Waves:
    """The signals of a command's first run.

    Parameters
    ----------
    file : str
        The VCD file; the others stand beside it.
    first, last : int
        Cycles ``first`` to ``last - 1`` of the run are written.
    """

    def __init__(self, file: str, first: int, last: int) -> None:
        self.file, self.first, self.last = file, first, last
        name = str(Path(file).with_suffix(""))
        self._save, self._counters, self._operators = (
            f"{name}{end}" for end in (".gtkw", ".pc.txt", ".op.txt"))
        self._cycles: int | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All that is written."""
        return self.file, self._save, self._counters, self._operators

    @contextmanager
    def recording(self, target: Target, image: Image, name: str) -> Iterator[None]:
        """Write the run within, unless there was one before. target: a SimTarget with ``waves``.

        Raises
        ------
        UserError
            A file cannot be written.
        """
        if self._cycles is not None:
            yield
            return
        assert isinstance(target, SimTarget)
        with temporary_folder(Path(os.path.realpath(self.file)).parent, ".waves-") as folder:
            made = folder / "waves.vcd"
            target.sim.write_waves(made, self.first, self.last)
            try:
                yield
            finally:
                self._cycles = target.sim.end_waves()
            if self._cycles:
                self._finish(made, image)

    def _finish(self, made: Path, image: Image) -> None:
        from vcd.gtkw import make_translation_filter
        what = [f"{pc} {line(i)}" + (f" ({name})" if name else "")
                for pc, (i, name) in enumerate(zip(image.listed, subjects(image)))]
        write_atomic(self._counters, make_translation_filter(
            [*enumerate(what)], datafmt="hex", size=_BITS).encode())
        write_atomic(self._operators, make_translation_filter(
            [(op, op.name) for op in Op], datafmt="hex", size=FIELDS[0].bits).encode())
        with made.open(encoding="ascii") as file:
            signals = _signals(file)
            # Not in Python's memory: it is large.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                write_atomic(self.file, content)
        write_atomic(self._save, self._saved(signals).encode())

    def _saved(self, signals: dict[str, list[str]]) -> str:
        """Contents of the save file. signals: of :func:`_signals`."""
        from vcd.gtkw import GTKWSave
        text = io.StringIO()
        save = GTKWSave(text)
        save.dumpfile(self.file)
        save.savefile(self._save)
        save.timestart(self.first)
        save.zoom_markers(-4.0, self.first)
        save.treeopen(f"{_TOP}.")
        save.signals_width(320)
        fields = [ref for ref in signals[_DISPATCH] if ref.startswith("instr.")]
        with save.group("Instruction"):
            save.trace(f"{_COUNTER}[{_BITS - 1}:0]", "instruction",
                       translate_filter_file=os.path.abspath(self._counters))
            for ref in fields:
                save.trace(_named(_DISPATCH, ref), ref.partition(".")[2],
                           translate_filter_file=os.path.abspath(self._operators)
                           if ref.startswith("instr.op[") else None)
        for name, unit in _UNITS:
            _group(save, name, f"{_TOP}.{unit}", signals)
        return text.getvalue()

    def told(self) -> str:
        """What was written, and what to do with it."""
        if not self._cycles:
            return f"no waves in {self.file}: the run ended before cycle {self.first}"
        return (f"waves of {self._cycles} cycles in {self.file}; `gtkwave {self._save}` shows "
                "them, a microsecond there is a cycle")


def _signals(file: Iterable[str]) -> dict[str, list[str]]:
    """Scope -> names, with bits, of what the header of a VCD file declares in it, as Verilator
    writes it: a declaration a line."""
    found: dict[str, list[str]] = defaultdict(list)
    scopes: list[str] = []
    for words in map(str.split, file):
        match words:
            case ["$scope", _, name, "$end"]:
                scopes.append(name)
            case ["$upscope", _]:
                scopes.pop()
            case ["$var", _, _, _, *name, "$end"]:
                found[".".join(scopes)].append("".join(name))
            case ["$enddefinitions", _]:
                break
    return found


def _named(scope: str, ref: str) -> str:
    """A signal as GTKWave calls it: a point in its own name is not one between scopes."""
    return f"{scope}.\\{ref}" if "." in ref else f"{scope}.{ref}"


def _group(save: GTKWSave, name: str, scope: str,
           signals: dict[str, list[str]]) -> None:
    """A group of a unit and, closed in it, of those within."""
    shown = [ref for ref in signals.get(scope, ()) if not _ASIDE.search(ref)]
    prefix = f"{scope}."
    within = sorted({x[len(prefix):].partition(".")[0] for x in signals if x.startswith(prefix)})
    if not shown and not within:
        return
    with save.group(name, closed=True):
        for ref in shown:
            save.trace(_named(scope, ref))
        for unit in within:
            if all(f"{_TOP}.{own}" != prefix + unit for _, own in _UNITS):
                _group(save, unit, prefix + unit, signals)
