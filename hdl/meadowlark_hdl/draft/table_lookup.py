"""Drafts from a table in external memory: what follows the last tokens."""
from amaranth import Array, Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.pipe import delay, reg
from ..lib.queues import Queue
from ..signatures import ReadPort
from ..tech.cells import Multiplier
from .table_lookup_golden import (BUCKET_BITS, BUCKET_BYTES, LENGTHS, START, STATE_BITS,
                                  TAG_BITS, TOKEN_BITS)

LONGEST = LENGTHS[-1]


def LastTokens() -> data.StructLayout:
    """tokens: the last of the text, the newest first. count: how many there are, up to 5."""
    return data.StructLayout({"tokens": data.ArrayLayout(TOKEN_BITS, LONGEST),
                              "count": range(LONGEST + 1)})


def Entry() -> data.StructLayout:
    """token: what follows. length: tokens of its context; 0: the table says nothing."""
    return data.StructLayout({"token": TOKEN_BITS, "length": range(LONGEST + 1)})


def mixed(state, token):
    """The hash with one more token, see :func:`.table_lookup_golden.mix`."""
    state = (state ^ token)[:STATE_BITS]
    state = state ^ (state << 11)[:STATE_BITS]
    state = state ^ (state >> 17)
    return state ^ (state << 13)[:STATE_BITS]


class TableLookup(wiring.Component):
    """The entry with the longest context that fits the last tokens.

    Golden: :func:`meadowlark_hdl.draft.table_lookup_golden.lookup`, equal. A token a cycle goes
    into the hash; the buckets of all lengths are read one behind the other, and entries are
    compared as they come.

    Timing: the read of length n is offered n + ``READ`` cycles after the tokens were taken, if
    memory takes the others at once; the entry is there ``LATENCY`` cycles after the last word.
    One text at a time.

    Parameters
    ----------
    config : Config
        bus_bytes: at most 16, a bucket.

    Members
    -------
    base : In(32)       First bus word of the table.
    buckets : In(17)    Its buckets, 1 or more. Both are constant while a text is looked up.
    i : In(stream of LastTokens)
    o : Out(stream of Entry)
    mem : Out(ReadPort)
    """

    READ = Multiplier.LATENCY + 3       # the tokens, a state, ... product, address, queue
    LATENCY = 3                         # the word, whether it fits, the entry

    def __init__(self, config: Config):
        if config.bus_bytes > BUCKET_BYTES:
            raise ValueError(f"bus_bytes must be at most {BUCKET_BYTES}, not {config.bus_bytes!r}")
        self.config = config
        super().__init__({
            "base": In(32), "buckets": In(BUCKET_BITS), "i": In(stream.Signature(LastTokens())),
            "o": Out(stream.Signature(Entry())), "mem": Out(ReadPort(config))})

    def elaborate(self, platform):
        m = Module()
        words = BUCKET_BYTES // self.config.bus_bytes
        busy, ending = Signal(), Signal()
        begins = self.i.valid & self.i.ready
        m.d.comb += [self.i.ready.eq(~busy), self.o.valid.eq(busy & ending)]
        with m.If(begins):
            m.d.sync += busy.eq(1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [busy.eq(0), ending.eq(0)]

        # Hashes: after n tokens, at[n].
        tokens = reg(data.ArrayLayout(TOKEN_BITS, LONGEST), "tokens")
        state, wanted = reg(STATE_BITS, "state"), reg(LONGEST + 1, "wanted")
        at = Signal(LONGEST + 1)
        tags = Array(reg(TAG_BITS, f"tag{n}") for n in LENGTHS)
        expected = reg(range(len(LENGTHS) + 1), "expected")
        count = self.i.payload.count
        # Without a token there is nothing to hash, and the next text may come at once.
        m.d.sync += [at.eq(Cat(begins & (count != 0), at)), state.eq(mixed(state, tokens[0])),
                     tokens.eq(tokens.as_value() >> TOKEN_BITS)]
        with m.If(begins):
            m.d.sync += [tokens.eq(self.i.payload.tokens), state.eq(START),
                         wanted.eq(Cat(count >= n for n in range(LONGEST + 1))),
                         expected.eq(sum(count >= n for n in LENGTHS)), self.o.payload.length.eq(0)]
            with m.If(count == 0):
                m.d.sync += ending.eq(1)
        for n, tag in zip(LENGTHS, tags, strict=True):
            with m.If(at[n]):
                m.d.sync += tag.eq(state)

        # Addresses, and the commands.
        m.submodules.product = product = Multiplier()
        m.submodules.commands = commands = Queue(32, depth=4)
        m.d.comb += [product.a.eq(state[-BUCKET_BITS:]), product.b.eq(self.buckets)]
        read = Cat(at[n] & wanted[n] for n in LENGTHS).any()
        read = delay(m, read, product.latency, name="read", reset=True)
        address = reg(32, "address")
        offered = Signal()
        m.d.sync += [offered.eq(read), address.eq(
            self.base + (product.p[BUCKET_BITS:2 * BUCKET_BITS] << exact_log2(words)))]
        m.d.comb += [
            commands.i.valid.eq(offered), commands.i.payload.eq(address),
            self.mem.r_cmd.valid.eq(commands.o.valid), commands.o.ready.eq(self.mem.r_cmd.ready),
            self.mem.r_cmd.payload.addr.eq(commands.o.payload),
            self.mem.r_cmd.payload.len.eq(words - 1), self.mem.r_data.ready.eq(1)]
        self._compare(m, words, tags, expected, ending)
        return m

    def _compare(self, m: Module, words: int, tags: Array, expected: Signal,
                 ending: Signal) -> None:
        """Entries as they come. ``ending``: the last of them has been compared."""
        bits = 8 * self.config.bus_bytes
        pieces = max(1, 32 // bits)             # words of an entry
        come = Signal()
        row = reg(bits * pieces, "row")         # one entry or several, of a word or several
        nth, length = Signal(range(words)), Signal(range(len(LENGTHS)))
        m.d.sync += come.eq(self.mem.r_data.valid)
        with m.If(self.mem.r_data.valid):
            m.d.sync += row.eq(Cat(row[bits:], self.mem.r_data.payload))
        last = nth == words - 1
        with m.If(come):
            m.d.sync += nth.eq(nth + 1)
            with m.If(last):
                m.d.sync += [nth.eq(0), length.eq(length + 1)]
        with m.If(ending):
            m.d.sync += length.eq(0)

        # Whether they fit, and of which length.
        whole = come if pieces == 1 else come & nth[:exact_log2(pieces)].all()
        entries = [row.word_select(j, 32) for j in range(len(row) // 32)]
        fits, judged, ends = reg(len(entries), "fits"), Signal(), Signal()
        compared, of = reg(len(row), "compared"), reg(range(len(LENGTHS)), "of")
        m.d.sync += [judged.eq(whole), ends.eq(come & last), of.eq(length), compared.eq(row),
                     fits.eq(Cat((entry[TOKEN_BITS:] == tags[length]) & ~entry.all()
                                 for entry in entries))]

        # The first of a bucket, and of buckets the last.
        found = Signal()
        with m.If(judged):
            m.d.sync += found.eq((found | fits.any()) & ~ends)
            for j in reversed(range(len(entries))):
                with m.If(fits[j] & ~found):
                    m.d.sync += [self.o.payload.token.eq(compared.word_select(j, 32)),
                                 self.o.payload.length.eq(Array(LENGTHS)[of])]
            with m.If(ends & (of + 1 == expected)):
                m.d.sync += ending.eq(1)
