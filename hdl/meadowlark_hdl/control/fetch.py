"""Walks a list of instructions: queues them for the engine and makes their tile jobs."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import INSTRUCTION_BITS, Op, Src
from ..lib.collisions import NO_RW_CHECK
from ..lib.queues import Queue
from ..lib.pipe import reg
from ..signatures import (FetchedInstruction, InstructionLayout, ModelLayout, PassLayout,
                          PlaceWrite, TileJob)
from .subgroups import Subgroups
from .tile_jobs import TileJobs


class Fetch(wiring.Component):
    """Fetches the instructions of one pass and the tiles they need, ahead of the engine.

    An instruction is queued as soon as its jobs can be made next, so the engine knows it before
    its tiles arrive; :class:`.tile_jobs.TileJobs` makes them. An unknown ``src`` makes no jobs. A
    token beyond ``model.vocab`` and a list that runs past the program memory stop the walk until
    ``flush``: nothing is read that is not the model's. A QK and the SVs behind it are repeated for
    one subgroup of lots after the other (:class:`.subgroups.Subgroups`). With ``config.fences`` a
    NORM or LINEAR with ``more`` is queued when all before it is done, so nothing of it is read
    ahead.

    Timing: the first job comes ``START`` cycles after ``start``. The next instruction is fetched
    while jobs are made (5 cycles each, QK 9). The first job of an instruction comes ``FIRST``
    cycles after the last one of the instruction before (TOKEN: ``TOKEN`` more); further ones follow
    every 2 cycles (TOKEN: 6). An instruction behind a fence is queued ``QUEUED`` cycles after
    ``retired``, its first job comes ``FENCE`` cycles after it; both 2 sooner after ``drained``.

    Parameters
    ----------
    config : Config
        prog_depth, context, tile_beats, only.

    Members
    -------
    start : In(1)
        One cycle, while not busy; ``start_pc`` and ``model`` count in that cycle. A ``start_pc``
        beyond the program memory is past its end.
    start_pc : In(16)
    pass_ : In(PassLayout)
        Constant while busy; valid from ``start`` on.
    model : In(ModelLayout)
    places : In(PlaceWrite)
        Where the tokens of a batch belong, while not busy.
    prog_en, prog_addr, prog_data : In
        Write port of the program memory, while not busy.
    out : Out(stream of FetchedInstruction)
        ``QUEUE`` of them wait. The END that ends the list is its last element, another is
        skipped.
    jobs : Out(stream of TileJob)
    token_addr : Out(range(context))
        Position of a token; ``token_data`` : In(19) holds its id 2 cycles later.
    store_done : In(1)
        One cycle for each STORE instruction whose data is in memory; in a batch for each token.
    spilled : In(13)
        Only with ``config.gemm``. Scores that the latest SPILL writes.
    retired, drained : In(1)
        Only with ``config.fences``. One cycle for each queued instruction that is done; what SV
        leaves behind it is done, too.
    flush : In(1)
        While high, as in reset; the program stays.
    busy : Out(1)
        Between ``start`` and the transfer of the last instruction and job.
    pc : Out(16)
        The instruction being fetched; after the end that of END.
    bad_token, program_end : Out(1)
        High from such a token, such an end, until ``flush``.
    """

    QUEUE = 8
    START, FIRST, TOKEN, FENCE, QUEUED = 13, 10, 1, 11, 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "start": In(1), "start_pc": In(16), "pass_": In(PassLayout()),
            "model": In(ModelLayout), "places": In(PlaceWrite(config)),
            "prog_en": In(1), "prog_addr": In(range(config.prog_depth)),
            "prog_data": In(unsigned(INSTRUCTION_BITS)),
            "out": Out(stream.Signature(FetchedInstruction())),
            "jobs": Out(stream.Signature(TileJob(config))),
            "token_addr": Out(range(config.context)), "token_data": In(Config.TOKEN_BITS),
            "store_done": In(1), "flush": In(1), "busy": Out(1), "pc": Out(16),
            "bad_token": Out(1), "program_end": Out(1)}
            | ({"spilled": In(13)} if config.gemm else {})
            | ({"retired": In(1), "drained": In(1)} if config.fences else {}))

    def elaborate(self, platform):
        m = Module()
        c = self.config
        only = c.only
        m.submodules.program = program = memory.Memory(
            shape=unsigned(len(only.free) if only else INSTRUCTION_BITS), depth=c.prog_depth,
            init=[], attrs=NO_RW_CHECK)
        w, r = program.write_port(), program.read_port()
        m.submodules.queue = queue = Queue(FetchedInstruction(), depth=self.QUEUE)
        m.submodules.tiles = tiles = TileJobs(c)
        m.submodules.subgroups = subgroups = Subgroups(c)
        for part in (tiles, subgroups):
            wiring.connect(m, wiring.flipped(self.places), part.places)
        wiring.connect(m, queue.o, wiring.flipped(self.out))
        wiring.connect(m, tiles.jobs, wiring.flipped(self.jobs))
        # Of a model's own core the memory has what differs between instructions.
        stored = Cat(self.prog_data[k] for k in only.free) if only else self.prog_data
        fetched = Cat(only.whole(r.data)) if only else r.data
        # One bit more than an address can have: behind the last place comes none.
        pc = Signal(17)
        outside = Signal(reset_less=True)
        m.d.sync += outside.eq(pc >= c.prog_depth)
        m.d.comb += [
            w.en.eq(self.prog_en), w.addr.eq(self.prog_addr), w.data.eq(stored),
            self.pc.eq(pc), r.addr.eq(pc),
            tiles.start.eq(self.start), tiles.model.eq(self.model), tiles.pass_.eq(self.pass_),
            tiles.store_done.eq(self.store_done), tiles.token_data.eq(self.token_data),
            self.token_addr.eq(tiles.token_addr), self.bad_token.eq(tiles.bad_token)]

        word = Signal(InstructionLayout, reset_less=True)       # the next instruction
        stores = Signal(16)                 # that are queued in this pass, as they are done
        each = reg(6, "each")
        m.d.sync += each.eq(Mux(self.pass_.batch, self.pass_.n, 1))
        # What kind it is, in registers a cycle behind it.
        skipped, ends, has_jobs, is_store, is_qk, is_last_sv = (
            Signal(name=name, reset_less=True) for name in (
                "skipped", "ends", "has_jobs", "is_store", "is_qk", "is_last_sv"))
        stored = Mux(is_store, each, 0)
        if c.gemm:
            is_spill = reg(1, "is_spill")
            m.d.sync += is_spill.eq(word.op == Op.SPILL)
            m.d.comb += tiles.spilled.eq(self.spilled)
            stored = Mux(is_spill, 1, stored)
        qk_pc = Signal(17, reset_less=True)
        is_end = word.op == Op.END
        goes_on = word.last & self.pass_.final
        # A cycle old: what WORD changes of them counts not before the next instruction.
        room, rest = Signal(), Signal()
        m.d.sync += [
            word.eq(fetched), skipped.eq(is_end & goes_on), ends.eq(is_end & ~goes_on),
            has_jobs.eq((word.src != Src.NONE) & (word.src <= Src.KV) & ~is_end),
            is_store.eq(word.op == Op.STORE), is_qk.eq(word.op == Op.QK),
            is_last_sv.eq((word.op == Op.SV) & ~word.more),
            room.eq(queue.i.ready), rest.eq(tiles.work.ready)]
        goes = room & ~(has_jobs & ~rest)
        if c.fences:
            goes &= ~self._fence(m, word, queue.i)
        m.d.comb += [queue.i.payload.instr.eq(word), queue.i.payload.pc.eq(pc),
                     queue.i.payload.lots.eq(subgroups.lots),
                     tiles.work.payload.instr.eq(word), tiles.work.payload.stores.eq(stores),
                     tiles.work.payload.first.eq(subgroups.lots.first),
                     tiles.work.payload.keys.eq(subgroups.lots.keys),
                     tiles.work.payload.base.eq(subgroups.base),
                     subgroups.instr.eq(word), subgroups.pass_.eq(self.pass_)]
        with m.FSM(name="walk") as walk:
            with m.State("STOPPED"):
                with m.If(self.start):
                    m.d.sync += [pc.eq(self.start_pc), stores.eq(0)]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.next = "RAM"
            with m.State("RAM"):
                m.next = "KIND"
            with m.State("KIND"):
                m.next = "WORD"
                with m.If(word.op == Op.QK):
                    m.next = "LOTS_1"
            for cycle in range(1, Subgroups.LATENCY):           # KIND is the first of them
                with m.State(f"LOTS_{cycle}"):
                    m.next = f"LOTS_{cycle + 1}" if cycle + 1 < Subgroups.LATENCY else "WORD"
            with m.State("WORD"):
                with m.If(outside):
                    m.next = "OUTSIDE"
                with m.Elif(skipped):
                    m.d.sync += pc.eq(pc + 1)
                    m.next = "ADDRESS"
                with m.Elif(goes):
                    m.d.comb += [queue.i.valid.eq(1), tiles.work.valid.eq(has_jobs)]
                    m.d.sync += stores.eq(stores + stored)
                    with m.If(ends):
                        m.next = "STOPPED"
                    with m.Else():
                        m.d.sync += pc.eq(pc + 1)
                        m.next = "ADDRESS"
                    with m.If(is_qk):
                        m.d.sync += qk_pc.eq(pc)
                    with m.If(is_last_sv):
                        m.d.comb += subgroups.next.eq(1)
                        with m.If(~subgroups.final):
                            m.d.sync += pc.eq(qk_pc)
            with m.State("OUTSIDE"):
                m.d.sync += self.program_end.eq(1)
        m.d.comb += self.busy.eq(~walk.ongoing("STOPPED") | tiles.busy | queue.o.valid)
        return ResetInserter(self.flush)(m)

    def _fence(self, m: Module, word, queued):
        """Whether an instruction waits for those before it."""
        waits, retired = reg(1, "waits"), Signal(init=1)
        under_way = Signal(range(self.QUEUE + 4))       # with those that Issue has
        # What an SV leaves is seen in ``drained`` a cycle after it is retired.
        m.d.sync += [
            waits.eq(word.more & ((word.op == Op.NORM) | (word.op == Op.LINEAR))),
            under_way.eq(under_way + (queued.valid & queued.ready) - self.retired),
            retired.eq(under_way == 0)]
        return waits & ~(retired & self.drained)
