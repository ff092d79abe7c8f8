"""What a handler of a command sees of the link, and what all of them do in the same way."""
from typing import NamedTuple

from amaranth import Cat, Module, Signal
from amaranth.hdl import ValueLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

from ...config import Config
from ...isa import INSTRUCTION_BYTES
from ..protocol import MAX_PAYLOAD, Result

#: What a handler knows of the core. busy: a run is under way. ready: the memory can be used.
#: run: number of the run that was started last.
CoreState = data.StructLayout({"busy": 1, "ready": 1, "run": 16})
#: How a command ended, and how many bytes its answer has besides that.
Answer = data.StructLayout({"result": Result, "bytes": range(MAX_PAYLOAD)})
#: Of a place in a memory that is filled in units: instructions (prog_depth <= 2**17), registers,
#: tokens. One bit more tells that the memory's end was passed.
PLACE_BITS = 18


def unit_bytes(config: Config) -> int:
    """Most bytes of a unit of payload."""
    return max(INSTRUCTION_BYTES, config.bus_bytes)


def word_bytes(config: Config) -> int:
    """Most bytes of a word of an answer."""
    return max(4, config.bus_bytes)


class Sizes(NamedTuple):
    """unit: bytes of a unit of payload behind the arguments; at least 1, also if there is none.
    word: bytes of a word of the answer."""
    unit: int = 1
    word: int = 4


class HandlerPort(Signature):
    """A command, seen by the dispatcher. It comes in steps, one after the other:

    1. ``args`` and ``rest`` are there, and stay. ``JUDGED`` cycles later ``refusal`` says whether
       the command can be executed. A refused one ends here; so much comes to every handler,
       whatever the command.
    2. ``unit``: what is behind the arguments, in units. ``place``: args[0], and one more for each
       unit before.
    3. ``execute``: a pulse, when all of them have come. ``torn``: the last one was not complete.
    4. ``answer``: looked at from the next cycle on, taken once.
    5. ``words``: of the answer, taken until its bytes are complete.
    """

    JUDGED = 2      #: registered conditions, registered verdict

    def __init__(self, config: Config) -> None:
        super().__init__({
            "core": Out(CoreState), "args": Out(data.ArrayLayout(32, 2)),
            "rest": Out(range(MAX_PAYLOAD + 1)), "refusal": In(Result),
            "unit": Out(stream.Signature(8 * unit_bytes(config), always_ready=True)),
            "place": Out(PLACE_BITS), "torn": Out(1), "execute": Out(1),
            "answer": In(stream.Signature(Answer)),
            "words": In(stream.Signature(8 * word_bytes(config)))})


class Handler(wiring.Component):
    """A command of the link. A new one is a class like this, a row in ``protocol.COMMANDS`` and one
    in :meth:`.link.Link.elaborate`.

    Parameters
    ----------
    config : Config
    sizes : Sizes
    members : dict
        What it works on.

    Members
    -------
    port : In(HandlerPort)
    """

    def __init__(self, config: Config, members: dict, sizes: Sizes = Sizes()):
        self.config, self.sizes = config, sizes
        super().__init__({"port": In(HandlerPort(config)), **members})

    def refuse(self, m: Module, *rules: tuple[ValueLike, Result]) -> None:
        """The result of the first condition that holds, or OK.

        A condition depends on ``args``, ``rest`` and ``core`` alone.
        """
        hold = Signal(len(rules), name="hold", reset_less=True)
        m.d.sync += [hold.eq(Cat(condition for condition, _ in rules)),
                     self.port.refusal.eq(Result.OK)]
        for k, (_, result) in reversed([*enumerate(rules)]):
            with m.If(hold[k]):
                m.d.sync += self.port.refusal.eq(result)

    def answer(self, *, valid: ValueLike = 1, result: ValueLike = Result.OK,
               bytes: ValueLike = 0) -> list:
        """Statements that say how the command ended; by default at once and well."""
        answer = self.port.answer
        return [answer.valid.eq(valid), answer.payload.result.eq(result),
                answer.payload.bytes.eq(bytes)]
