"""What instructions take beside memory: the cycle model's latencies against the gateware's.

Issue, TilingEngine and VectorUnit as the core has them; a tile is there when it is wanted, and so
is room for a STORE.
"""
import os
from dataclasses import replace
from types import SimpleNamespace

import cocotb
import numpy as np
import pytest
from array_bench import ArrayUnderTest, Bench, Tile
from bench import cycles, simulate
from meadowlark.compile.cycles import Spent, Machine, kind_of
from meadowlark_boards import get_board
from meadowlark_hdl.compute.vector_unit import VectorUnit
from meadowlark_hdl.config import Config
from presented import a_pass, repeated
from meadowlark_hdl.isa import NO_WINDOW, Fn, Header, Instruction, Mode, Op, Pair, Sink, Src

CONFIGS = {"w16p8": Config(W=16, P=8, bus_bytes=2, act_words=128, score_depth=1024, tile_beats=64,
                           tile_rows=16, residual_values=4096),
           "w8p3": Config(W=8, P=3, bus_bytes=2, act_words=128, score_depth=512, tile_beats=64,
                          tile_rows=16, residual_values=4096, vector_products=8)}
HIDDEN = 64


class Executor(ArrayUnderTest):
    """Issue -> TilingEngine -> VectorUnit."""

    def __init__(self, config: Config):
        super().__init__(config, sum_gap=VectorUnit(config).sum_gap)

    def elaborate(self, platform):
        m = super().elaborate(platform)
        issue, engine = self.issue, self.engine
        m.submodules.vector = vector = VectorUnit(self.config)
        m.d.comb += [
            vector.norm_job.eq(issue.norm_job), vector.pass_.eq(self.pass_),
            vector.model.eq(self.model), vector.norm_start.eq(issue.norm_start),
            vector.gamma.eq(issue.gamma), issue.gamma_addr.eq(vector.gamma_addr),
            issue.norm_done.eq(vector.norm_done), issue.vector_busy.eq(vector.busy),
            vector.r.valid.eq(issue.result.valid), vector.r.payload.eq(issue.result.payload)]
        for name in ("valid", "addr", "cos", "sin"):
            m.d.comb += getattr(vector.rope, name).eq(getattr(issue.rope, name))
        for name in ("valid", "lane", "addr", "mask", "data"):
            m.d.comb += getattr(engine.act, name).eq(getattr(vector.act, name))
        return m


def machine_of(config: Config, model: dict) -> Machine:
    """One whose memory is never waited for."""
    machine = Machine(SimpleNamespace(listed=[], model_regs=model, memory=b"", facts={}),
                       replace(get_board("virtual"), config=config))
    machine._wait = lambda *tile: None
    return machine


def instructions(config: Config, n: int):
    """(instruction, beats of each of its tiles); None: as many as there are keys."""
    W = config.W
    beats = HIDDEN // W
    yield Instruction(Op.EMBED, src=Src.TOKEN, sink=Sink.RESIDUAL, stats=1, rows=1,
                      row_beats=beats), [beats] * n
    yield Instruction(Op.ROPE, src=Src.TABLE, rows=1, row_beats=2), [2] * n
    yield Instruction(Op.NORM, src=Src.STREAM, sink=Sink.ACT, row_beats=beats), [beats]
    yield Instruction(Op.NORM, src=Src.STREAM, sink=Sink.ACT, row_beats=beats, last=1), [beats]
    yield Instruction(Op.NORM, src=Src.STREAM, sink=Sink.ACT, row_beats=1, beside=1), [1]
    yield Instruction(Op.LINEAR, src=Src.STREAM, mode=Mode.INT8, header=Header.SCALE, tiles=1,
                      rows=4, last_rows=4, row_beats=1, sink=Sink.RESIDUAL, diagonal=1), [4]
    for sink, pair, fn in [(sink, pair, fn) for sink in (Sink.ACT, Sink.SCRATCH) for pair, fn in (
            (Pair.NONE, Fn.NONE), (Pair.NONE, Fn.TANH), (Pair.ROPE, Fn.NONE),
            (Pair.GLU, Fn.SILU))] + [
            (sink, Pair.NONE, Fn.NONE) for sink in (Sink.RESIDUAL, Sink.BESIDE, Sink.LOGIT)]:
        last = int(sink == Sink.LOGIT)
        yield Instruction(Op.LINEAR, src=Src.STREAM, mode=Mode.INT8, header=Header.SCALE, tiles=3,
                          rows=4, last_rows=2, row_beats=beats, sink=sink, pair=pair, fn=fn,
                          last=last), \
            [4 * beats, 4 * beats, 2 * beats]
    yield Instruction(Op.STORE, row_beats=2), []
    head = 2
    for back in (NO_WINDOW, 0, 9):
        yield Instruction(Op.QK, src=Src.KV, rows=64 // head, row_beats=head, group=2,
                          back=back), None
    for back in (NO_WINDOW, 20):        # of fewer values, and what waits for their drains
        yield Instruction(Op.QK, src=Src.KV, rows=64, row_beats=1, group=3, back=back), None
        yield Instruction(Op.NORM, src=Src.STREAM, sink=Sink.ACT, row_beats=beats), [beats]
    yield Instruction(Op.QK, src=Src.KV, rows=64, row_beats=1, group=3, back=4, ahead=1), None
    # Rows that are under way would outlive a reset as short as that of the next test.
    yield Instruction(Op.NORM, src=Src.STREAM, sink=Sink.ACT, row_beats=beats), [beats]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(tokens=[1, 20], pos0=[0, 30])
async def as_predicted(dut, tokens, pos0):
    """From 30 on keys are in two tiles; from 0 on in one, and lots wait for their slices. Windows
    that hide all of a tile from some lots, a part of it, nothing."""
    config = CONFIGS[os.environ["CASE"]]
    model = {"hidden": HIDDEN, "stride": HIDDEN + 16, "block_words": 16, "vocab": 100,
             "head_log2": (2 * config.W).bit_length() - 1}
    p = a_pass(config.P, tokens, pos0, 1 if pos0 else 3, 3)
    bench = Bench(dut, config, pass_={"pos0": p.pos0, "n": p.n, "nb": p.nb, "ctx": p.ctx,
                                      "final": 1},
                  model={name: model[name]
                         for name in ("hidden", "stride", "head_log2", "block_words")})
    await bench.begin()
    dut.store_cmd__ready.value = 1      # there is room
    wrong, machine = [], machine_of(config, model)
    every = [(*each, tiles) for work, tiles in instructions(config, tokens)
             for each in repeated(config, p, work, min(work["row_beats"], 2))]
    for instruction, lots, tiles in every:
        if tiles is None:
            assert lots
            rows, beats = instruction["rows"], instruction["row_beats"]
            tiles = [min(rows, lots.keys.stop - at) * beats for at in lots.keys[::rows]]
        bench.tiles = [Tile(np.ones((beats, config.W), int), [(40000, 20, 0)] * 16)
                       for beats in tiles]
        took = await bench.execute(instruction, lots)
        # From its turn to the next one's; the drains of an SV go on behind it.
        machine.now = cycles(dut) - took
        machine._execute(Spent(), instruction, p, lots)
        want = machine.now + took - cycles(dut)
        name = kind_of(instruction)
        cocotb.log.info(f"{name}: {took} cycles, {want} predicted")
        wrong += [(name, took, want)] if took != want else []
    assert not wrong


@pytest.mark.parametrize("case", CONFIGS)
def test_engine_cycles(case, seed):
    simulate(Executor(CONFIGS[case]), __name__, seed=seed, case=case)
