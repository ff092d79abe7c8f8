"""What the walkers of Issue have in common: when they begin and end, and what they present."""
from __future__ import annotations

from collections.abc import Mapping

from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..compute.tiling_engine import EngineControl, first_result
from ..config import Config
from ..isa import Op
from ..signatures import InstructionLayout, LotsLayout, ModelLayout, PassLayout


def FirstBlock() -> data.StructLayout:
    """Where an instruction's blocks of tokens begin: number, words of activations and tokens before
    it. 0, or with ``last`` the last block."""
    return data.StructLayout({"block": 6, "words": 13, "tokens": 13})


def Job() -> data.StructLayout:
    """What there is to do: an instruction, the pass and the model that it is for, its first block,
    and of QK and SV the lots."""
    return data.StructLayout({"instr": InstructionLayout, "pass_": PassLayout(),
                              "model": ModelLayout, "first": FirstBlock(), "lots": LotsLayout()})


def TileControl(config: Config) -> data.StructLayout:
    """What the array wants of the tile at the front.

    beat: the one to read. tile_row: the one whose scale to read. release: this beat is the last
    one, the next belongs to the next tile.
    """
    return data.StructLayout({"beat": range(config.tile_beats),
                              "tile_row": range(config.tile_rows), "release": 1})


def Activity() -> data.StructLayout:
    """For the counters, a bit each. array_active: the array gets a beat. wait_tile, wait_vector,
    wait_store: what is waited for."""
    return data.StructLayout({"array_active": 1, "wait_tile": 1, "wait_vector": 1,
                              "wait_store": 1})


def presentable(config: Config) -> dict[str, object]:
    """All that walkers may present in a cycle: name -> shape. Fields of EngineControl, those of its
    ``lane`` and ``to`` among them, of TileControl and of Activity."""
    engine = dict(EngineControl(config).members)
    lane, to = engine.pop("lane"), engine.pop("to")
    return {**lane.members, **to.members, **engine, **TileControl(config).members,
            **Activity().members}


def results_settle(config: Config) -> int:
    """Cycles from a row's control until its last result has been seen to keep the vector unit
    busy."""
    return first_result(config) + config.P + 4


class Walker(wiring.Component):
    """Walks through an instruction: its tiles, rows and beats, one beat of control a cycle.

    Walkers work one at a time and know nothing of each other. Issue ORs what they present, so what
    more than one presents is 0 while a walker is idle. Enables are 0 unless a cycle sets them;
    addresses count for nothing where no enable goes with them.

    Timing: the first cycle that may present anything is the one after ``req``; ``idle`` rises in
    the cycle after the last one.

    Parameters
    ----------
    config : Config
    settle : mapping of Op to int
        The operators it executes, and how many cycles after it is idle their effects are done, or
        keep the vector unit busy.
    **ports
        More members.

    Attributes
    ----------
    PRESENTS : tuple of str
        Names of what it presents, see :func:`presentable`.

    Members
    -------
    req : In(1)             One cycle, while idle: begin.
    idle : Out(1)
    job : In(Job)           Stands from the cycle of ``req`` until the instruction is retired.
    front : In(1)           A tile is there, see :class:`.TileReader`.
    control : Out           A structure of what it presents.
    """

    PRESENTS: tuple[str, ...]

    def __init__(self, config: Config, *, settle: Mapping[Op, int], **ports: wiring.Member):
        self.config, self.settle = config, settle
        shapes = presentable(config)
        super().__init__({
            "req": In(1), "idle": Out(1, init=1), "job": In(Job()), "front": In(1),
            "control": Out(data.StructLayout({name: shapes[name] for name in self.PRESENTS}))}
            | ports)
