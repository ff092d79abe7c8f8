"""Where the words of a tile and of a segment end, and the checksum behind them."""
from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class SegmentEnd(wiring.Component):
    """Stops behind the words of a tile; behind a segment's last, drops what is left and compares.

    Timing: ``ended`` a cycle after the last word; behind a segment 4 cycles after its last chunk.

    Parameters
    ----------
    W : int
        Bytes of a chunk.

    Members
    -------
    at_end, at_final, over : In(1), drop : Out(1)
        Of :class:`.Refill`: the tile's words are served, the segment's; none is left.
    broken : In(1)
        All ends here.
    i : In(stream of 8 * W bits)
        The chunk of the checksum is taken.
    crc : In(32)
        Of the chunks before it, as late as :class:`.Checksum` says.
    ended : Out(1), resume : In(1)
        As :class:`.Unpacker` has them; ``resumed``: Out(1), both.
    finished : Out(1), damaged : Out(1)
        One cycle, all of a segment has been taken; with it: its checksum was wrong.
    """

    def __init__(self, *, W: int):
        super().__init__({
            "at_end": In(1), "at_final": In(1), "over": In(1), "drop": Out(1), "broken": In(1),
            "i": In(stream.Signature(8 * W)), "crc": In(32), "ended": Out(1, init=1),
            "resume": In(1), "resumed": Out(1), "finished": Out(1), "damaged": Out(1)})

    def elaborate(self, platform):
        m = Module()
        differs = Signal(8, reset_less=True)            # the chunk from crc, by groups of 4 bits
        m.d.sync += differs.eq(Cat(self.i.payload.word_select(k, 4) != self.crc.word_select(k, 4)
                                   for k in range(len(differs))))
        m.d.comb += self.damaged.eq(differs.any())
        with m.FSM():
            with m.State("WORDS"):
                with m.If(self.ended):
                    m.d.comb += self.resumed.eq(self.resume)
                    m.d.sync += self.ended.eq(~self.resume)
                with m.Elif(self.broken):
                    m.d.sync += self.ended.eq(1)
                with m.Elif(self.at_end):
                    m.d.sync += self.ended.eq(~self.at_final)
                    with m.If(self.at_final):
                        m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += self.drop.eq(1)
                with m.If(self.over):
                    m.next = "CHECK"
            with m.State("CHECK"):                      # the last word is in the checksum
                m.next = "TRAILER"
            with m.State("TRAILER"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.next = "VERDICT"
            with m.State("VERDICT"):
                m.d.comb += self.finished.eq(1)
                m.d.sync += self.ended.eq(1)
                m.next = "WORDS"
        return m
