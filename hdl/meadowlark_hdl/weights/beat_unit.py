"""What the decoder and its units say to each other, and the unit that stands in for none."""
from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

from ..config import Config
from ..signatures import Beat


def beat_count(config: Config):
    return range(config.tile_beats + 1)


class BeatUnit(Signature):
    """Decoder -> the unit that makes the beats of some modes.

    start: one cycle, with mode and beats (1..tile_beats) of the next tile; at the earliest in the
    cycle of ``done`` of the tile before. enable: the unit may work (no other one holds beats).
    i: chunks of the tile. done: one cycle, in the cycle the unit takes the tile's last chunk or
    later; it takes no other before the next start. o: the beats, which nothing stalls. busy: the
    unit holds something that is yet to leave through o, from the cycle before the first beat on.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({
            "start": Out(1), "mode": Out(3), "beats": Out(beat_count(config)),
            "enable": Out(1), "i": Out(stream.Signature(8 * config.W)), "done": In(1),
            "o": In(stream.Signature(data.StructLayout({"beat": Beat(config), "last": 1}),
                                     always_ready=True)),
            "busy": In(1)})


class BeatMaker(wiring.Component):
    """A unit of the decoder: what makes the beats of tiles in some modes.

    Parameters
    ----------
    config : Config

    Members
    -------
    unit : In(BeatUnit)
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"unit": In(BeatUnit(config))})


class NoUnit(BeatMaker):
    """Stands in for a mode that does not exist: the right number of beats, without a chunk."""

    def elaborate(self, platform):
        m = Module()
        u = self.unit
        left, form = Signal(beat_count(self.config)), Signal()
        m.d.comb += [
            form.eq(u.enable & (left != 0)), u.done.eq(form & (left == 1)), u.busy.eq(u.o.valid)]
        m.d.sync += [u.o.valid.eq(form), u.o.payload.last.eq(left == 1)]
        with m.If(form):
            m.d.sync += left.eq(left - 1)
        # A cycle late, for nobody minds; the tag still stands.
        starting = Signal()
        m.d.sync += starting.eq(u.start)
        with m.If(starting):
            m.d.sync += left.eq(u.beats)
        return m
