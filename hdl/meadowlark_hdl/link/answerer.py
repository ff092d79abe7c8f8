"""Answers of commands as frames: a result, then words of the handler."""
from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown
from .framer import FramePort
from .protocol import MAX_PAYLOAD, Result


def AnswerHead(word_bytes: int) -> data.StructLayout:
    """type, seq: of the frame. result: its first byte. bytes: how many follow, 0..MAX_PAYLOAD - 1,
    in words of ``word`` bytes."""
    return data.StructLayout({"type": 8, "seq": 8, "result": Result, "bytes": range(MAX_PAYLOAD),
                              "word": range(word_bytes + 1)})


class Answerer(wiring.Component):
    """An answer and its words to a frame.

    Timing: the header in the cycle in which ``i`` is valid, a byte a cycle, and between words a
    cycle more, or as long as the word takes to come. ``i`` is taken a cycle after the last byte.

    Parameters
    ----------
    word_bytes : int
        Of the widest word.

    Members
    -------
    i : In(stream of AnswerHead)
    words : In(stream of 8 * word_bytes)    As many as hold the answer's bytes, lowest byte first.
    o : Out(FramePort)
    """

    def __init__(self, word_bytes: int):
        self.word_bytes = word_bytes
        super().__init__({"i": In(stream.Signature(AnswerHead(word_bytes))),
                          "words": In(stream.Signature(8 * word_bytes)), "o": Out(FramePort())})

    def elaborate(self, platform):
        m = Module()
        head, header = self.i.payload, self.o.header.payload
        word = Signal(8 * self.word_bytes, reset_less=True)
        in_word = Countdown(m, range(self.word_bytes), name="in_word", behind=True, reset=False,
                            reset_flags=False)
        left = Countdown(m, range(MAX_PAYLOAD), name="left", behind=True, reset=False,
                         reset_flags=False)
        m.d.comb += [header.type.eq(head.type), header.seq.eq(head.seq),
                     header.length.eq(head.bytes + 1), self.o.payload.payload.eq(word[:8])]
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.o.header.valid.eq(self.i.valid)
                m.d.sync += [word.eq(head.result), in_word.load_all(1), left.load(head.bytes)]
                with m.If(self.i.valid & self.o.header.ready):
                    m.next = "BYTE"
            with m.State("BYTE"):
                m.d.comb += self.o.payload.valid.eq(1)
                with m.If(self.o.payload.ready):
                    m.d.sync += [word.eq(word >> 8), in_word.step(), left.step()]
                    with m.If(left.last):
                        m.next = "DONE"
                    with m.Elif(in_word.last):
                        m.next = "WORD"
            with m.State("WORD"):
                m.d.comb += self.words.ready.eq(1)
                m.d.sync += [word.eq(self.words.payload), in_word.load_all(head.word)]
                with m.If(self.words.valid):
                    m.next = "BYTE"
            with m.State("DONE"):
                m.d.comb += self.i.ready.eq(1)
                m.next = "HEADER"
        return m
