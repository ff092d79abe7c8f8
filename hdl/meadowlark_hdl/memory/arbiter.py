"""One memory port shared by the Reader, the drafter, the StoreUnit and the host's window."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..signatures import MemoryPort, ReadCommand, ReadPort, WritePort
from ..lib.countdown import Countdown
from ..lib.queues import Queue


class MemoryArbiter(wiring.Component):
    """Joins reads of the Reader, the drafter and the host, and writes of StoreUnit and host.

    Reader and drafter are one client: the one asks for nothing from the other's first command to
    its last word.

    Reads change hands only when nothing is outstanding, so data needs no tags; a client that
    waits stops the other from asking for more, so none starves. A granted write command is
    followed by its own data and nothing else, and its ``w_done`` goes to its owner. Reads and
    writes are independent of each other.

    Timing: commands are registered (``COMMAND`` cycle, one every 2 cycles); data passes in the
    same cycle; ``w_done`` is 1 cycle late. A change of owner costs the latency of memory. Write
    data of a command may go to memory before the command does.

    Parameters
    ----------
    config : Config
        bus_bytes, burst_words, fifo_words.

    Members
    -------
    reader, drafter : In(ReadPort)
    store : In(WritePort)
    host : In(MemoryPort)
        At most ``3 * fifo_words`` words are outstanding; more commands wait.
    mem : Out(MemoryPort)
    """

    COMMAND = 1
    WRITES = 16     # write commands whose completion is still to come

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"reader": In(ReadPort(config)), "drafter": In(ReadPort(config)),
                          "store": In(WritePort(config)), "host": In(MemoryPort(config)),
                          "mem": Out(MemoryPort(config))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.host.ready.eq(self.mem.ready)
        self._reads(m)
        self._writes(m)
        return m

    def _reads(self, m):
        c, mem = self.config, self.mem
        reader, drafter, host = self.reader.r_cmd, self.drafter.r_cmd, self.host.r_cmd
        command, offered = Signal(ReadCommand(c), reset_less=True), Signal()
        owner, served = Signal(), Signal()          # owner: 1 is the host
        wants, of_drafter = Signal(), Signal()      # of the other client; its words go to ...
        # Words asked for and received, modulo 4 * fifo_words.
        asked, got = Signal(range(4 * c.fifo_words)), Signal(range(4 * c.fifo_words))
        outstanding = Signal.like(asked)            # one cycle old: one more burst at most
        m.d.sync += outstanding.eq(asked - got)
        valid, take, free = Signal(), Signal(), Signal()
        payload = Signal(ReadCommand(c))
        # The one that is not the owner waits. A cycle old: right after a change of owner, when that
        # matters nothing yet, it is the owner's own.
        other = Signal()
        m.d.sync += other.eq(Mux(owner, wants, host.valid))
        m.d.comb += [
            wants.eq(reader.valid | drafter.valid), valid.eq(Mux(owner, host.valid, wants)),
            payload.eq(Mux(owner, host.payload,
                           Mux(drafter.valid, drafter.payload, reader.payload))),
            free.eq(~offered & ~outstanding[-1] & ~(other & served)), take.eq(valid & free),
            reader.ready.eq(free & ~owner), drafter.ready.eq(free & ~owner),
            host.ready.eq(free & owner),
            mem.r_cmd.valid.eq(offered), mem.r_cmd.payload.eq(command),
            self.reader.r_data.payload.eq(mem.r_data.payload),
            self.host.r_data.payload.eq(mem.r_data.payload),
            self.drafter.r_data.payload.eq(mem.r_data.payload),
            self.reader.r_data.valid.eq(mem.r_data.valid & ~owner & ~of_drafter),
            self.drafter.r_data.valid.eq(mem.r_data.valid & ~owner & of_drafter),
            self.host.r_data.valid.eq(mem.r_data.valid & owner),
            mem.r_data.ready.eq(Mux(owner, self.host.r_data.ready, Mux(
                of_drafter, self.drafter.r_data.ready, self.reader.r_data.ready)))]
        with m.If(take):
            with m.If(~owner):
                m.d.sync += of_drafter.eq(drafter.valid)
            m.d.sync += [command.eq(payload), offered.eq(1), served.eq(1),
                         asked.eq(asked + payload.len + 1)]
        with m.Elif(mem.r_cmd.ready):
            m.d.sync += offered.eq(0)
        with m.If(mem.r_data.valid & mem.r_data.ready):
            m.d.sync += got.eq(got + 1)
        with m.If(other & (served | ~valid) & ~offered & (asked == got)):
            m.d.sync += [owner.eq(~owner), served.eq(0)]

    def _writes(self, m):
        c, mem = self.config, self.mem
        store, host = self.store.w_cmd, self.host.w_cmd
        m.submodules.owners = owners = Queue(1, depth=self.WRITES)
        command, offered = Signal(ReadCommand(c), reset_less=True), Signal()
        owner, sending = Signal(), Signal()
        left = Countdown(m, range(c.burst_words), name="words", behind=True, reset=False,
                         reset_flags=False)
        free, pick, picked, data_valid = (Signal() for _ in range(4))
        payload = Signal(ReadCommand(c))
        m.d.sync += picked.eq(free & (store.valid | host.valid))
        m.d.comb += [
            free.eq(~offered & ~sending & owners.i.ready),
            # With both waiting, the one that was not served last.
            pick.eq(Mux(store.valid & host.valid, ~owner, host.valid)),
            payload.eq(Mux(pick, host.payload, store.payload)),
            store.ready.eq(free & ~pick), host.ready.eq(free & pick),
            owners.i.payload.eq(owner), owners.i.valid.eq(picked),
            mem.w_cmd.valid.eq(offered), mem.w_cmd.payload.eq(command),
            data_valid.eq(Mux(owner, self.host.w_data.valid, self.store.w_data.valid)),
            mem.w_data.valid.eq(data_valid & sending),
            mem.w_data.payload.eq(
                Mux(owner, self.host.w_data.payload, self.store.w_data.payload)),
            self.store.w_data.ready.eq(mem.w_data.ready & sending & ~owner),
            self.host.w_data.ready.eq(mem.w_data.ready & sending & owner),
            owners.o.ready.eq(mem.w_done)]
        m.d.sync += [self.store.w_done.eq(mem.w_done & ~owners.o.payload),
                     self.host.w_done.eq(mem.w_done & owners.o.payload)]
        with m.If(free & (store.valid | host.valid)):
            m.d.sync += [command.eq(payload), offered.eq(1), sending.eq(1), owner.eq(pick),
                         left.load(payload.len)]
        with m.Elif(mem.w_cmd.ready):
            m.d.sync += offered.eq(0)
        with m.If(mem.w_data.valid & mem.w_data.ready):
            m.d.sync += left.step()
            with m.If(left.last):
                m.d.sync += sending.eq(0)
