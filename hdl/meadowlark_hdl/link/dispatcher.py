"""Commands one after the other: to the handler of each, and its answer to a frame."""
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

from amaranth import Module, Mux, Signal
from amaranth.hdl import Value, ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..config import Config
from ..lib.countdown import Countdown
from .answerer import Answerer
from .framer import FramePort, ReceivedFrames
from .handlers.handler import CoreState, HandlerPort, Sizes, unit_bytes, word_bytes
from .protocol import ANSWER, MAX_PAYLOAD, Result
from .units import Units


class Form(NamedTuple):
    """What a command looks like. arguments: of 4 bytes each, 1 or 2. answered: has an answer."""
    arguments: int
    answered: bool
    sizes: Sizes


class Dispatcher(wiring.Component):
    """Takes commands to their handlers, in order, each answered before the next is begun.

    A command without all of its arguments, and one that is none, is answered here. What is left of
    a refused one is dropped. A frame is given back as soon as all of it has been taken.

    Timing: a payload byte a cycle; 14 cycles a command besides its bytes, its handler and its
    answer.

    Parameters
    ----------
    config : Config
    forms : mapping of int to Form      By the frame's type.

    Members
    -------
    frames : In(ReceivedFrames)
    core : In(CoreState)
    handlers : Out(HandlerPort)[]       In the order of ``forms``.
    o : Out(FramePort)                  Answers.
    idle : Out(1)                       No command waits, or is under way.
    """

    def __init__(self, config: Config, forms: Mapping[int, Form]):
        self.config, self.forms = config, forms
        super().__init__({
            "frames": In(ReceivedFrames()), "core": In(CoreState),
            "handlers": Out(HandlerPort(config)).array(len(forms)), "o": Out(FramePort()),
            "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        frames, ports, forms = self.frames, self.handlers, [*self.forms.values()]
        m.submodules.units = units = Units(unit_bytes(self.config))
        m.submodules.answerer = answerer = Answerer(word_bytes(self.config))
        connect(m, answerer.o, flipped(self.o))
        chosen = Signal(len(forms), reset_less=True)    # which command it is: one bit, or none
        head = answerer.i.payload

        def of_chosen(values: Sequence[ValueLike]) -> Value:
            return reduce(or_, (Mux(one, value, 0) for one, value in zip(chosen, values)))

        args = Signal.like(ports[0].args, reset_less=True)
        rest = Signal(range(MAX_PAYLOAD + 1), reset_less=True)
        place = Signal.like(ports[0].place, reset_less=True)
        accepted, execute = Signal(), Signal()
        for port, one in zip(ports, chosen):
            m.d.comb += [
                port.core.eq(self.core), port.args.eq(args), port.rest.eq(rest),
                port.place.eq(place), port.torn.eq(units.torn),
                port.unit.payload.eq(units.o.payload),
                port.unit.valid.eq(units.o.valid & accepted & one),
                port.execute.eq(execute & accepted & one),
                port.words.ready.eq(answerer.words.ready & one)]
        m.d.comb += [answerer.words.valid.eq(of_chosen([port.words.valid for port in ports])),
                     answerer.words.payload.eq(of_chosen([port.words.payload for port in ports])),
                     head.word.eq(of_chosen([form.sizes.word for form in forms]))]

        left = Countdown(m, range(MAX_PAYLOAD + 1), name="payload", last=False)  # bytes not taken
        take, restart = Signal(), Signal()
        m.d.comb += [units.i.valid.eq(take & frames.payload.valid),
                     units.i.payload.eq(frames.payload.payload), frames.payload.ready.eq(take),
                     units.restart.eq(restart)]
        with m.If(units.i.valid):
            m.d.sync += left.step()
        with m.If(units.o.valid):
            m.d.sync += place.eq(place + 1)

        with m.FSM() as fsm:
            with m.State("IDLE"):
                header = frames.header
                m.d.sync += [head.type.eq(header.type | ANSWER), head.seq.eq(header.seq),
                             left.load(header.length), accepted.eq(0)]
                m.d.sync += [one.eq(header.type == command)
                             for one, command in zip(chosen, self.forms)]
                with m.If(frames.valid):
                    m.next = "KNOWN"
            with m.State("KNOWN"):
                m.d.comb += [restart.eq(1), units.size.eq(
                    4 + of_chosen([4 * (form.arguments - 1) for form in forms]))]
                m.next = "ARGUMENTS"
            with m.State("ARGUMENTS"):
                m.d.comb += take.eq(left.some)
                m.d.sync += head.result.eq(Result.BAD_LENGTH)
                with m.If(~left.some):
                    m.next = "TAKE"
                with m.Elif(units.i.valid & units.last):
                    m.next = "GATHER"
            with m.State("GATHER"):
                m.d.sync += [args.eq(units.o.payload), place.eq(units.o.payload),
                             rest.eq(left.left)]
                with m.If(units.o.valid):
                    m.next = "CHECK"
            with m.State("CHECK"):          # the handlers judge, for HandlerPort.JUDGED cycles
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.next = "VERDICT"
            with m.State("VERDICT"):
                refusal = of_chosen([port.refusal for port in ports])
                m.d.sync += [head.result.eq(Mux(chosen.any(), refusal, Result.BAD_COMMAND)),
                             accepted.eq(chosen.any() & (refusal == Result.OK))]
                m.d.comb += [restart.eq(1),
                             units.size.eq(of_chosen([form.sizes.unit for form in forms]))]
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += take.eq(left.some)
                with m.If(~left.some):
                    m.next = "TAKEN"
            with m.State("TAKEN"):          # the last unit comes in this cycle
                m.d.comb += frames.pop.eq(1)
                m.next = "EXECUTE"
            with m.State("EXECUTE"):
                m.d.comb += execute.eq(1)
                m.d.sync += head.bytes.eq(0)
                m.next = "ANSWER"
                with m.If(accepted):
                    m.next = "EXECUTING"
            with m.State("EXECUTING"):
                m.d.sync += [
                    head.result.eq(of_chosen([port.answer.payload.result for port in ports])),
                    head.bytes.eq(of_chosen([port.answer.payload.bytes for port in ports]))]
                with m.If(of_chosen([port.answer.valid for port in ports])):
                    m.d.comb += [port.answer.ready.eq(one) for port, one in zip(ports, chosen)]
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                silent = of_chosen([int(not form.answered) for form in forms]) != 0
                m.d.comb += answerer.i.valid.eq(~silent)
                with m.If(silent | answerer.i.ready):
                    m.next = "IDLE"
        m.d.comb += self.idle.eq(fsm.ongoing("IDLE") & ~frames.valid)
        return m
