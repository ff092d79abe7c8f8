"""The last step of all that goes to activation or scratch memory: shift, round, saturate, count."""
from amaranth import C, Cat, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.narrow import Narrow
from ..lib.pipe import Pipe, Piped
from ..signatures import ActWrite, ScratchWrite
from .addresses import to_words


def Place(config: Config) -> data.StructLayout:
    """Of an activation: word, lane, element in the word (in scratch memory: the four values, and
    which of them, as :class:`.Addresses` has it); whether anybody will read it (else its
    saturations do not count); that it is scratch memory; the shift, and that there are 8
    bits; whether it ends its NORM; with ``config.lane_pairs`` that all lanes of a head take it."""
    return data.StructLayout({"word": range(to_words(config)), "lane": range(config.P),
                              "sub": range(config.W), "exists": 1, "scratch": 1, "shift": 6,
                              "small": 1, "ending": 1}
                             | ({"paired": 1} if config.lane_pairs else {}))


class ActWriter(Piped):
    """Values -> ``rshift``, saturated to 16 or 8 bits -> activation memories or scratch memory.

    Golden: :func:`meadowlark_hdl.fixed.rshift` and :func:`~meadowlark_hdl.fixed.saturate`.
    Timing: a write leaves ``cycles["act"]`` cycles after its values; one a cycle, never stalls.

    Parameters
    ----------
    config : Config

    Members
    -------
    pair, norm : In(1)              There are the values of a pair; those of NORM.
    valid, place : In(1), In(Place)
    values : In(values of signed(34))
        One; two of ROPE; ``norm_width`` of NORM. Others mean nothing.
    act, scratch : Out(ActWrite), Out(ScratchWrite)
    norm_done : Out(1)              With the last write of a NORM.
    clear : In(1)                   Sets saturations to 0.
    saturations : Out(32)           Values that were saturated and exist; wraps around.
    """

    def __init__(self, config: Config):
        self.config = config
        self.width = max(2, config.norm_width)
        super().__init__({
            "valid": In(1), "pair": In(1), "norm": In(1), "place": In(Place(config)),
            "values": In(data.ArrayLayout(signed(34), self.width)), "act": Out(ActWrite(config)),
            "scratch": Out(ScratchWrite(config)), "norm_done": Out(1), "clear": In(1),
            "saturations": Out(32)})

    def stages(self, pipe: Pipe) -> None:
        m, W = pipe.m, self.config.W
        pair, norm = (pipe.at(0, port).reg(f"of_{port.name}") for port in (self.pair, self.norm))
        valid = pipe.at(0, self.valid, valid=True).reg("valid")
        place = pipe.at(0, self.place, name="place").reg("place")
        narrows = []
        for k in range(self.width):
            m.submodules[f"narrow{k}"] = narrow = Narrow(width=34, shift_bits=6, bits=16, small=8)
            value = pipe.at(0, self.values[k], name=f"value_{k}").reg(f"value_{k}")
            narrows.append(pipe.through(narrow, i=value, shift=place.shift, small=place.small))
        done = narrows[0].o.cycle
        pipe.cycles["act"] = done

        sub, two = place.sub.at(done - 1), pair.at(done - 1)
        low = [(sub[0] == k) | two for k in range(2)]
        mask = [(sub[1:] == k >> 1) & low[k & 1] for k in range(W)]
        four = pipe.at(done - 1, Cat((sub[1] == k >> 1) & low[k & 1] for k in range(4)),
                       name="four").reg("scratch_mask")
        if self.config.norm_width > 1:
            fours = norm.until(done - 2).near("fours").value
            mask = [fours & (sub[2:] == k >> 2) | ~fours & bit for k, bit in enumerate(mask)]
        mask = pipe.at(done - 1, Cat(mask), name="mask").reg("act_mask")
        writes, exists, scratch = valid.at(done), place.exists.at(done), place.scratch.at(done)
        m.d.comb += [
            self.act.valid.eq(writes & ~scratch), self.act.addr.eq(place.word.at(done)),
            self.scratch.valid.eq(writes & scratch), self.scratch.mask.eq(four.value),
            self.scratch.addr.eq(place.word.at(done)),
            *(data.eq(narrow.o.value) for data, narrow in zip(
                self.scratch.data, 4 // len(narrows) * narrows, strict=True)),
            self.act.lane.eq(place.lane.at(done)), self.act.mask.eq(mask.value),
            *(data.eq(narrows[k % len(narrows)].o.value) for k, data in enumerate(self.act.data)),
            self.norm_done.eq(writes & place.ending.at(done))]
        if self.config.lane_pairs:
            m.d.comb += self.act.paired.eq(place.paired.at(done))

        # One value of a write, two of a pair, all of the norm's.
        pair, norm = pair.at(done), norm.at(done)
        counts = (1, pair) if self.config.norm_width == 1 else (1, pair | norm, norm, norm)
        counted = Signal(3)
        m.d.sync += counted.eq(sum((narrow.saturated.value & writes & exists & which
                                    for narrow, which in zip(narrows, counts, strict=True)),
                                   C(0, 1)))
        # No flush takes the count away: a run that was aborted has one as well.
        saturations = Signal(32, reset_less=True)
        m.d.sync += saturations.eq(saturations + counted)
        with m.If(self.clear):
            m.d.sync += saturations.eq(0)
        m.d.comb += self.saturations.eq(saturations)
