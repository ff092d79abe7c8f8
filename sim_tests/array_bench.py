"""Issue and TilingEngine as one component, with the tile buffer and the vector unit in Python."""
from __future__ import annotations

import random
from dataclasses import dataclass, field

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from bench import cycles, pack, start, unpack
from meadowlark_hdl.compute.tiling_engine import EngineControl, TilingEngine
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Lots
from meadowlark_hdl.isa import Instruction
from meadowlark_hdl.issue.issue import Issue
from meadowlark_hdl.signatures import (ActWrite, Beat, FetchedInstruction, ModelLayout, PassLayout,
                                       Result, ResultPort, RopeWrite, RowScale, TileRead)
from presented import packed_lots

SUM_GAP = 20


class ArrayUnderTest(wiring.Component):
    """Issue -> TilingEngine; everything else is a port."""

    def __init__(self, config: Config, *, sum_gap: int = SUM_GAP):
        self.config = config
        self.issue = Issue(config, sum_gap=sum_gap)
        self.engine = TilingEngine(config)
        ports = self.issue.signature.members
        super().__init__({
            "instr": In(stream.Signature(FetchedInstruction())),
            "pass_": In(PassLayout()), "model": In(ModelLayout),
            "tile": Out(TileRead(config)), "act": In(ActWrite(config)),
            "result": Out(ResultPort(config)), "rope": Out(RopeWrite(config)),
            "norm_start": Out(1), "norm_done": In(1),
            "gamma_addr": In(range(config.tile_beats)), "gamma": Out(Beat(config)),
            "vector_busy": In(1), "store_cmd": ports["store_cmd"], "store_done": In(1),
            "pass_end": Out(1), "retired": Out(1), "array_active": Out(1), "bad_op": Out(1),
            "clear": In(1), "saturations": Out(32), "control": Out(EngineControl(config))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.issue = issue = self.issue
        m.submodules.engine = engine = self.engine
        wiring.connect(m, wiring.flipped(self.instr), issue.instr)
        wiring.connect(m, wiring.flipped(self.store_cmd), issue.store_cmd)
        tile = self.tile
        m.d.comb += [
            issue.pass_.eq(self.pass_), issue.model.eq(self.model),
            tile.beat_addr.eq(issue.tile.beat_addr), tile.scale_addr.eq(issue.tile.scale_addr),
            tile.release.eq(issue.tile.release), issue.tile.available.eq(tile.available),
            issue.tile.beat.eq(tile.beat), issue.tile.scale.eq(tile.scale),
            engine.beat.eq(tile.beat), engine.scale.eq(tile.scale),
            engine.control.eq(issue.control), self.control.eq(issue.control),
            issue.store_done.eq(self.store_done),
            issue.engine_result.valid.eq(engine.result.valid),
            issue.engine_result.payload.eq(engine.result.payload),
            self.result.valid.eq(issue.result.valid), self.result.payload.eq(issue.result.payload),
            issue.vector_busy.eq(self.vector_busy), issue.norm_done.eq(self.norm_done),
            issue.gamma_addr.eq(self.gamma_addr), self.gamma.eq(issue.gamma),
            self.norm_start.eq(issue.norm_start), self.pass_end.eq(issue.pass_end),
            self.retired.eq(issue.retired), self.array_active.eq(issue.array_active),
            self.bad_op.eq(issue.bad_op),
            engine.clear.eq(self.clear), self.saturations.eq(engine.saturations)]
        if self.config.gemm:
            m.d.comb += issue.spill_room.eq(1)
        if self.config.unified:
            m.d.comb += issue.missed.eq(engine.missed)
        for name in ("valid", "addr", "cos", "sin"):
            m.d.comb += getattr(self.rope, name).eq(getattr(issue.rope, name))
        for name in self.act.signature.members:
            m.d.comb += getattr(engine.act, name).eq(getattr(self.act, name))
        return m


@dataclass
class Tile:
    """Beats int[beats, W] and row scales (mant, shift, bias) of a tile."""
    beats: np.ndarray
    scales: list = field(default_factory=list)


class Bench:
    """Serves tiles, collects results; one per cocotb test."""

    def __init__(self, dut, config: Config, *, model: dict, pass_: dict):
        self.dut, self.config = dut, config
        self.model, self.pass_ = model, pass_
        self.tiles: list[Tile] = []             # waiting for a half
        self.halves: list[Tile | None] = [None, None]
        self.results: list[dict] = []
        self.result_cycles: list[int] = []
        self.ropes: list[tuple] = []
        self.trace: list[tuple[int, ...]] | None = None     # a list: a tuple a cycle, see _serve
        self.active = 0
        self.retired = 0
        self.stall = 0.0

    async def begin(self, stall=0.0):
        self.stall = stall
        # Counts outlive a reset.
        await start(self.dut, model=pack(ModelLayout, **self.model),
                    pass_=pack(PassLayout(), **self.pass_), clear=1)
        self.dut.clear.value = 0
        cocotb.start_soon(self._serve())

    async def _serve(self):
        dut, config = self.dut, self.config
        fill = 0
        scale_layout, result = RowScale(), Result(config)
        beats, scales = [0, 0], [0, 0]          # read, and on their way to the output register
        while True:
            dut.tile__beat.value, dut.tile__scale.value = beats[0], scales[0]
            if self.tiles and self.halves[fill] is None and random.random() >= self.stall:
                self.halves[fill] = self.tiles.pop(0)
                fill ^= 1
            dut.tile__available.value = sum((h is not None) << i
                                            for i, h in enumerate(self.halves))
            await ReadOnly()
            half, beat = divmod(int(dut.tile__beat_addr.value), config.tile_beats)
            tile = self.halves[half]
            read = 0
            if tile is not None and beat < len(tile.beats):
                read = sum((int(v) & (1 << 18) - 1) << 18 * i
                           for i, v in enumerate(tile.beats[beat]))
            beats = [beats[1], read]
            half, row = divmod(int(dut.tile__scale_addr.value), config.tile_rows)
            tile = self.halves[half]
            read = 0
            if tile is not None and row < len(tile.scales):
                mant, shift, bias = tile.scales[row]
                read = pack(scale_layout, mant=mant, shift=shift, bias=bias)
            scales = [scales[1], read]
            release = int(dut.tile__release.value)
            if dut.result__valid.value:
                self.results.append(unpack(result, int(dut.result__payload.value)))
                self.result_cycles.append(cycles(dut))
            if dut.rope__valid.value:
                self.ropes.append((int(dut.rope__addr.value), dut.rope__cos.value.to_signed(),
                                   dut.rope__sin.value.to_signed()))
            if self.trace is not None:
                self.trace.append(tuple(int(signal.value) for signal in (
                    dut.control, dut.array_active, dut.tile__beat_addr, dut.tile__scale_addr)))
            self.active += int(dut.array_active.value)
            self.retired += int(dut.retired.value)
            await RisingEdge(dut.clk)
            for i in range(2):
                if release >> i & 1:
                    assert self.halves[i] is not None, "released an empty half"
                    self.halves[i] = None

    async def write_acts(self, values: np.ndarray, word: int, *, paired: int = 0):
        """int16[blocks, lanes, n] to the lanes' memories from ``word`` of each block on. paired:
        lanes are heads, all of whose lanes take it."""
        dut, W = self.dut, self.config.W
        layout = [(b, k, j) for b in range(values.shape[0]) for k in range(values.shape[1])
                  for j in range(0, values.shape[2], 4)]
        for b, k, j in layout:
            dut.act__valid.value = 1
            if paired:
                dut.act__paired.value = 1
            dut.act__lane.value = k
            dut.act__addr.value = b * self.model["block_words"] + word + j // W
            dut.act__mask.value = 0b1111 << j % W
            dut.act__data.value = sum((int(v) & 0xFFFF) << 16 * i
                                      for i, v in enumerate(values[b, k, j:j + 4]))
            await RisingEdge(dut.clk)
        dut.act__valid.value = 0
        if paired:
            dut.act__paired.value = 0
        for _ in range(self.config.P + 2):
            await RisingEdge(dut.clk)

    async def execute(self, instruction: Instruction, lots: Lots | None = None):
        """Run one instruction; returns its cycles from acceptance to retirement. lots: of QK and
        SV."""
        dut = self.dut
        dut.instr__payload.value = pack(FetchedInstruction(), instr=dict(instruction),
                                        lots=packed_lots(lots) if lots else {})
        dut.instr__valid.value = 1
        before = self.retired
        while True:
            await ReadOnly()
            taken = bool(dut.instr__ready.value)
            await RisingEdge(dut.clk)
            if taken:
                break
        begun = cycles(dut)
        dut.instr__valid.value = 0
        while self.retired == before:
            await RisingEdge(dut.clk)
        return cycles(dut) - begun

    def table(self, kind: int) -> dict[tuple[int, int, int], dict]:
        """Results of a kind by (element, block, lane); each came once."""
        out = {}
        for r in self.results:
            if r["kind"] == kind:
                key = r["to"]["element"], r["to"]["block"], r["lane"]
                assert key not in out, f"result {key} came twice"
                out[key] = r
        return out
