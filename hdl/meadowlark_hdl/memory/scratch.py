"""Scratch memory: new keys and values, written by the vector unit, read for the KV cache."""
from __future__ import annotations

from amaranth import Module, Mux, ResetInserter, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.collisions import NO_RW_CHECK
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..lib.queues import Queue
from ..lib.table import Table
from ..signatures import (ModelLayout, PassLayout, PlaceLayout, PlaceWrite, ScratchCommand,
                          ScratchWrite, StoreCommand)


class Scratch(wiring.Component):
    """A memory of int8 values, and what walks it for STORE.

    A token of the pass owns ``model.token_words`` words of W values, token s the s-th of them. A
    command sends a row of each token, one token after the other: the rows are contiguous in
    external memory, that of position p is the p-th. Those of a batch lie where each token belongs,
    so the store unit gets a command for each. Nothing is stalled by that but the commands
    themselves.

    Timing: ``FIRST`` cycles from a command to its first part of a word when nothing is under way,
    ``NEXT`` from the last part of a command to the first of the next, and ``ROW`` from first to
    first at least; between them a part a cycle while they are taken. Of a batch ``NEXT`` between
    the tokens as well, or ``PLACE`` cycles from the first part of one to that of the next.

    Parameters
    ----------
    config : Config
        scratch_bytes, store_bytes, tight_keys.

    Members
    -------
    write : In(ScratchWrite)    Readable three cycles later. Nothing that a command reads may be
                                written before its last part has been taken.
    model, pass_ : In(ModelLayout), In(PassLayout)
                                token_words, pos0, n and batch; constant from a command on until its
                                last part has been taken.
    places : In(PlaceWrite)     Where the tokens of a batch belong; the base of any pass.
    cmd : In(stream of ScratchCommand)      ``COMMANDS`` wait.
    store : Out(stream of StoreCommand)     Before the command's first part is read.
    words : Out(stream of 8 * store_bytes bits)
    flush : In(1)               While high, as in reset; the memory stays.
    idle : Out(1)               Nothing is under way; with ``flush`` too.
    """

    COMMANDS = 16
    FIRST, NEXT, ROW, PLACE = 7, 2, 3, 4
    CREDITS = 8     # a credit is back 5 cycles later: address, RAM, register, queue, register

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "write": In(ScratchWrite(config)), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "places": In(PlaceWrite(config)),
            "cmd": In(stream.Signature(ScratchCommand(config))),
            "store": Out(stream.Signature(StoreCommand())),
            "words": Out(stream.Signature(8 * config.store_bytes)),
            "flush": In(1), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, size = self.config, self.config.store_bytes
        in_word = exact_log2(config.W // size)
        m.submodules.ram = ram = memory.Memory(
            shape=8 * size, depth=config.scratch_bytes // size, init=[], attrs=NO_RW_CHECK)
        r = ram.read_port()
        self._write(m, ram)
        m.submodules.commands = commands = Queue(ScratchCommand(config), depth=self.COMMANDS)
        m.submodules.out = out = Queue(8 * size, depth=self.CREDITS)
        wiring.connect(m, wiring.flipped(self.cmd), commands.i)
        wiring.connect(m, out.o, wiring.flipped(self.words))

        # Where the token's part begins and what is read next, in parts of words.
        token, at = reg(r.addr.shape(), "token"), reg(r.addr.shape(), "at")
        stride, row = reg(r.addr.shape(), "stride"), reg(8, "row")
        tokens = Countdown(m, 13, name="tokens", behind=True, reset=False)
        parts = Countdown(m, 8, name="parts", behind=True, reset=False)         # of the token's row
        # Of a batch, the command's next token; it and its place are new.
        batch, slot, taken, moved = self.pass_.batch, Signal(range(config.P)), Signal(), Signal()
        last_slot = reg(1, "last_slot")
        m.submodules.places = places = Table(PlaceLayout(), config.P)
        m.d.comb += [places.en.eq(self.places.en), places.at.eq(self.places.addr),
                     places.entry.eq(self.places.data), places.addr.eq(slot),
                     taken.eq(self.store.valid & self.store.ready)]
        m.d.sync += [last_slot.eq(~batch | (slot == self.pass_.n - 1)), moved.eq(batch & taken)]
        with m.If(batch & taken):
            m.d.sync += slot.eq(Mux(last_slot, 0, slot + 1))
        # What follows from the next command, two cycles later, while the last one is walked: the
        # parts of a row, and what the store unit gets.
        command, coming, known = commands.o.payload, Signal(), Signal()
        next_row, addr, chunks = reg(8, "next_row"), reg(27, "addr"), reg(12, "chunks")
        base, behind = reg(27, "base"), reg(20, "behind")       # of the cache; in it, in chunks
        position = reg(13, "position") if config.batches else self.pass_.pos0
        still = ~commands.o.ready & ~moved
        m.d.sync += [
            coming.eq(commands.o.valid & still), known.eq(coming & still),
            next_row.eq(self._words(command, 1 << in_word)),
            base.eq(command.addr + (places.data.base if config.batches else 0)),
            behind.eq(self._words(command, position)),
            addr.eq(base + behind),
            chunks.eq(self._words(command, Mux(batch, 1, self.pass_.n))),
            stride.eq(self.model.token_words << in_word)]
        if config.batches:
            m.d.sync += position.eq(Mux(batch, places.now.position, 0) + self.pass_.pos0)
        m.d.comb += [self.store.payload.addr.eq(addr), self.store.payload.chunks.eq(chunks)]

        read, back = Signal(), Signal()
        credit, credited = Signal(range(self.CREDITS + 1), init=self.CREDITS), Signal(init=1)
        m.d.sync += [credit.eq(credit + back - read), back.eq(self.words.valid & self.words.ready)]
        with m.If(back & ~read):
            m.d.sync += credited.eq(1)
        with m.Elif(read & ~back):
            m.d.sync += credited.eq(credit != 1)
        with m.FSM() as fsm:
            with m.State("COMMAND"):
                m.d.comb += [self.store.valid.eq(known),
                             commands.o.ready.eq(known & self.store.ready & last_slot)]
                m.d.sync += [row.eq(next_row), tokens.load_all(Mux(batch, 1, self.pass_.n)),
                             parts.load_all(next_row)]
                with m.If(slot == 0):               # else behind the token before
                    m.d.sync += [token.eq(command.word << in_word), at.eq(command.word << in_word)]
                with m.If(taken):
                    m.next = "READ"
            with m.State("READ"):
                with m.If(credited):
                    m.d.comb += read.eq(1)
                    m.d.sync += [at.eq(at + 1), parts.step()]
                    with m.If(parts.last):
                        m.d.sync += [token.eq(token + stride), at.eq(token + stride),
                                     parts.load_all(row), tokens.step()]
                        with m.If(tokens.last):
                            m.next = "COMMAND"

        # Address, RAM, its register, queue.
        in_ram, in_register, found = Signal(), Signal(), reg(8 * size, "found")
        m.d.comb += [r.addr.eq(at), out.i.valid.eq(in_register), out.i.payload.eq(found)]
        m.d.sync += [in_ram.eq(read), in_register.eq(in_ram), found.eq(r.data)]
        at_rest = reg(1, "at_rest")         # a flush lasts until it is seen, so none resets it
        m.d.sync += at_rest.eq(fsm.ongoing("COMMAND") & ~commands.o.valid & ~self.cmd.valid
                               & (credit == self.CREDITS))
        m.d.comb += self.idle.eq(at_rest)
        return ResetInserter(self.flush)(m)

    def _words(self, command, rows):
        """Words of so many rows of a command."""
        return rows * command.words if self.config.tight_keys else rows << command.log2_words

    def _write(self, m: Module, ram: memory.Memory) -> None:
        """What the vector unit gives, a register in front of the memory."""
        w, groups = ram.write_port(granularity=8), self.config.store_bytes // 4
        enable, values = Signal(4 * groups), reg(32, "values")
        address = reg(self.write.addr.shape(), "address")
        m.d.sync += [address.eq(self.write.addr), values.eq(self.write.data)]
        for k in range(groups):
            here = self.write.valid & (self.write.addr[:exact_log2(groups)] == k)
            m.d.sync += enable[4 * k:4 * k + 4].eq(self.write.mask & here.replicate(4))
        m.d.comb += [w.addr.eq(address >> exact_log2(groups)), w.en.eq(enable),
                     w.data.eq(values.replicate(groups))]
