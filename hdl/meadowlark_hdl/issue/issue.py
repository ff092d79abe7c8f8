"""Issue: executes instructions, one at a time, as a beat of control a cycle."""
from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..compute.tiling_engine import EngineControl
from ..config import Config
from ..isa import Op
from ..signatures import (Beat, FetchedInstruction, ModelLayout, NormJob, PassLayout, ResultPort,
                          RopeWrite, ScratchCommand, TileRead)
from .dispatch import Dispatch
from .drain import Drain
from .fill import Fill
from .gammas import Gammas
from .keys import Keys
from .result_join import ResultJoin
from .rows import Rows
from .stores import Stores
from .tile_reader import TileReader
from .token_tiles import TokenTiles
from .walker import Activity, presentable


class Issue(wiring.Component):
    """Turns instructions into the array's control and the serial operands of the vector unit.

    :class:`.Dispatch` gives each instruction to one of the walkers: :class:`.TokenTiles` (EMBED,
    ROPE), :class:`.Gammas` (NORM), :class:`.Rows` (LINEAR), :class:`.Keys` (QK, SV) and
    :class:`.Stores` (STORE); of a core with ``gemm`` SPILL to Keys and FILL to :class:`.Fill`.
    :class:`.Drain` has the results of SV, beside Keys.
    :class:`.TileReader` reads the tiles, :class:`.ResultJoin` joins the results. Here they are only
    wired.

    An instruction starts when every result of the one before has been written (its pipelines are a
    few tens of cycles; the memory side runs ahead meanwhile); but QK does not wait for SV's. Within
    an instruction rows follow each other without a gap, except that rows with results start at
    least P cycles apart.
    docs/architecture.md, "Instructions", says what each one does.

    Golden: :mod:`.issue_golden`.
    Timing: control, the tile's addresses, result and rope are registers. What an instruction takes
    is its walker's time, and that to settle.

    Parameters
    ----------
    config : Config
    sum_gap : int
        Cycles from the start of a row of SUM to that of the first row of DRAIN.

    Members
    -------
    instr : In(stream of FetchedInstruction)
    pass_ : In(PassLayout), model : In(ModelLayout)   Constant while an instruction runs, pass_ from
                                            the cycle before its first one on.
    control : Out(EngineControl)
    tile : Out(TileRead)
    engine_result : In(ResultPort), result : Out(ResultPort)   Joined, one cycle later.
    rope : Out(RopeWrite)
    norm_job : Out(NormJob)
    norm_start : Out(1), norm_done : In(1), gamma_addr : In, gamma : Out(Beat), vector_busy : In(1)
    lanes, attending : Out                  Lanes it uses; whether it is QK or SV.
    store_cmd : Out(stream of ScratchCommand)
    store_done : In(1)                      One cycle for each of them whose data is in memory.
    spill_start, spill_addr, spill_rows, spill_room : Out(1), Out(27), Out(13), In(1)
                                            As those of :class:`.Spiller`; only with
                                            ``config.gemm``.
    missed : In(1)                          As that of :class:`.TilingEngine`; only with
                                            ``config.unified``.
    pass_end : Out(1)                       One cycle: END executed, everything before it written.
    retired : Out(1)                        One cycle an instruction.
    drained : Out(1)                        Nothing of an SV is left to do; only with
                                            ``config.fences``.
    pc : Out(16)                            Of the instruction in execution.
    bad_op : Out(1)                         High while an instruction with an unknown op stands.
    array_active, wait_tile, wait_vector, wait_store : Out(1)   For the counters.
    """

    def __init__(self, config: Config, *, sum_gap: int):
        self.config = config
        self.drain = Drain(config, sum_gap=sum_gap)
        super().__init__({
            "instr": In(stream.Signature(FetchedInstruction())),
            "pass_": In(PassLayout()), "model": In(ModelLayout),
            "control": Out(EngineControl(config)),
            "tile": Out(TileRead(config)),
            "engine_result": In(ResultPort(config)), "result": Out(ResultPort(config)),
            "rope": Out(RopeWrite(config)),
            "norm_job": Out(NormJob()), "norm_start": Out(1), "norm_done": In(1),
            "gamma_addr": In(range(config.tile_beats)), "gamma": Out(Beat(config)),
            "vector_busy": In(1),
            # As those of Dispatch.
            "lanes": Out(range(config.P + 1), init=config.P), "attending": Out(1, init=1),
            "store_cmd": Out(stream.Signature(ScratchCommand(config))), "store_done": In(1),
            "pass_end": Out(1), "retired": Out(1), "pc": Out(16), "bad_op": Out(1),
            "array_active": Out(1), "wait_tile": Out(1), "wait_vector": Out(1),
            "wait_store": Out(1),
        } | ({"spill_start": Out(1), "spill_addr": Out(27), "spill_rows": Out(13),
              "spill_room": In(1)} if config.gemm else {})
            | ({"drained": Out(1)} if config.fences else {})
            | ({"missed": In(1)} if config.unified else {}))

    def elaborate(self, platform):
        m = Module()
        config, tile = self.config, self.tile
        m.submodules.token_tiles = token_tiles = TokenTiles(config)
        m.submodules.gammas = gammas = Gammas(config)
        m.submodules.rows = rows = Rows(config)
        m.submodules.keys = keys = Keys(config)
        m.submodules.drain = drain = self.drain
        m.submodules.stores = stores = Stores(config)
        walkers = [token_tiles, gammas, rows, keys, stores]
        if config.gemm:
            m.submodules.fill = fill = Fill(config)
            walkers.append(fill)
            m.d.comb += [
                self.spill_start.eq(keys.req & (keys.job.instr.op == Op.SPILL)),
                self.spill_addr.eq(keys.job.instr.addr), self.spill_rows.eq(keys.rows),
                keys.room.eq(self.spill_room), fill.rows.eq(keys.rows),
                stores.spills.eq(self.spill_start)]
        if config.fences:
            m.d.comb += self.drained.eq(drain.settled)
        if config.unified:
            m.d.comb += keys.missed.eq(self.missed)
        m.submodules.dispatch = dispatch = Dispatch(config, settle=[w.settle for w in walkers])
        m.submodules.reader = reader = TileReader(config)
        m.submodules.join = join = ResultJoin(config)

        wiring.connect(m, wiring.flipped(self.instr), dispatch.instr)
        m.d.comb += [
            dispatch.pass_.eq(self.pass_), dispatch.model.eq(self.model),
            dispatch.vector_busy.eq(self.vector_busy),
            dispatch.drained.eq(drain.settled), drain.instr.eq(dispatch.job.instr),
            keys.taken.eq(drain.takes), dispatch.idle.eq(Cat(walker.idle for walker in walkers))]
        for name in ("lanes", "attending", "pass_end", "retired", "pc", "bad_op"):
            m.d.comb += getattr(self, name).eq(getattr(dispatch, name))

        for k, walker in enumerate(walkers):
            m.d.comb += [walker.req.eq(dispatch.req[k]), walker.job.eq(dispatch.job),
                         walker.front.eq(reader.front)]
        # What more than one presents is 0 where it is not its turn.
        presented = {name: reduce(or_, (w.control[name] for w in (*walkers, drain)
                                        if name in w.PRESENTS))
                     for name in presentable(config)}
        presented["wait_vector"] |= dispatch.wait_vector
        presented["wait_store"] |= dispatch.wait_store
        engine, tiles = self.control, reader.control
        m.d.sync += [
            *(part[name].eq(presented[name]) for part in (engine.lane, engine.to)
              for name in part.shape().members), engine.part.eq(presented["part"]),
            *(getattr(self, name).eq(presented[name]) for name in Activity().members)]
        if config.gemm:
            m.d.sync += engine.one.eq(presented["one"])
        m.d.comb += [tiles[name].eq(presented[name]) for name in tiles.shape().members]

        wiring.connect(m, reader.tile, wiring.flipped(tile))
        m.d.comb += [
            reader.serial.eq(~token_tiles.idle),
            reader.rewind.eq(token_tiles.rewind), reader.next.eq(token_tiles.next),
            reader.lent.eq(~gammas.idle), reader.lent_addr.eq(self.gamma_addr),
            reader.release.eq(token_tiles.release | gammas.release),
            self.gamma.eq(tile.beat), token_tiles.beat.eq(tile.beat),
            token_tiles.scale.eq(tile.scale),
            self.norm_start.eq(gammas.start), gammas.done.eq(self.norm_done),
            self.norm_job.lent.eq(~gammas.idle),
            *(self.norm_job[name].eq(dispatch.job.instr[name])
              for name in ("last", "wide", "shift", "y", "beside", "row_beats")),
            stores.done.eq(self.store_done), dispatch.storing.eq(stores.storing)]
        wiring.connect(m, keys.summed, drain.lots)
        wiring.connect(m, stores.cmd, wiring.flipped(self.store_cmd))
        wiring.connect(m, wiring.flipped(self.engine_result), join.engine)
        wiring.connect(m, token_tiles.element, join.element)
        wiring.connect(m, join.result, wiring.flipped(self.result))
        wiring.connect(m, token_tiles.rope, wiring.flipped(self.rope))
        return m
