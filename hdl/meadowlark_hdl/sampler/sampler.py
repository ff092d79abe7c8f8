"""Draws a token from the logits while they are made: arg-max, Gumbel-max, top-k, top-p."""
from amaranth import Cat, Module, Mux, ResetInserter, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..signatures import LogitPort, RunLayout
from .argmax import ArgMax
from .logit_crc import LogitCrc
from .logit_scale import LogitScale
from .noise import Noise
from .nucleus import Nucleus
from .scan import Scan
from .sorted_list import SortedList, flipped
from .tables import Tables

# The pipeline, in cycles after an item came. Items are 4 cycles apart at least, so that what a
# stage gives is there for 4 cycles.
_SCALED = LogitScale.LATENCY        # logit / temperature
_WEIGHED = _SCALED + 4              # the same, from a register
_DRAWN = Noise.LATENCY + 1          # scaled logit + noise
_KEPT = _WEIGHED + Nucleus.LATENCY  # whether the nucleus holds the item
_END = _KEPT + 2                    # maximum updated
_COLLECTED = _DRAWN + 7             # list and pipeline at rest, of a logit that waited for a step
#: From an entry of the list to the next: so many that sum and id need no further delay, nor do the
#: reads of the tables meet.
_APART = 6
assert _DRAWN <= _KEPT < _DRAWN + _APART - 1
assert len({s % _APART for s in (*Noise.ASKS, _WEIGHED + Nucleus.ASKS)}) == 3
# Logits are multiples of 4 apart: none meets another that is hashed for the second time.
assert Noise.HASH % 4 and Noise.HASH < _APART


class Sampler(wiring.Component):
    """One token a head pass, drawn as :func:`.sampler_golden.sample` does, and the logits' CRC-32.

    Greedy and temperature sampling are a running maximum (of the logit; of logit/temperature plus
    Gumbel noise, which needs neither sum nor sort). Top-k keeps the ``topk`` largest logits in a
    sorted list, whose entries then go through the same pipeline; with top-p twice, since which of
    them count depends on the sum of their weights.

    Source: Gumbel-max trick, Maddison et al., arXiv:1411.0030; nucleus, arXiv:1904.09751.
    Golden: :mod:`.sampler_golden`, bit-exact.
    Timing: logits at least 4 cycles apart, the first at least 16 after ``start``; never stalls.
    ``finish`` to ``done``: ``LATENCY`` cycles; with top-k 83 + 4*ring + 4*drawn; with top-p
    110 + 6*ring + 8*drawn; ring = topk + ceil(topk/7), drawn = top_k, or the number of logits if
    that is less.

    Parameters
    ----------
    config : Config

    Members
    -------
    logit : In(LogitPort())     Logits in row order; the row is the token id.
    run : In(RunLayout())       inv_t_mant, inv_t_shift, top_k (0..topk), top_p, seed: constant
                                from ``start`` to ``done``.
    position : In(13)           Of the token to come; constant likewise.
    start : In(1)               Pulse, at any time: forget everything, begin anew.
    finish : In(1)              Pulse, with the last logit or later: all have been given.
    busy : Out(1)               Between finish and done.
    done : Out(1)               Pulse; ``token`` and ``crc`` hold until the next start.
    token : Out(19)
    crc : Out(32)               CRC-32 of the logits as little-endian int32.
    """

    LATENCY = _COLLECTED + 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "logit": In(LogitPort()), "run": In(RunLayout()), "position": In(13),
            "start": In(1), "finish": In(1),
            "busy": Out(1), "done": Out(1), "token": Out(Config.TOKEN_BITS), "crc": Out(32)})

    def elaborate(self, platform):
        m = Module()
        run, anew = self.run, ResetInserter(self.start)
        greedy, ranked, with_top_p = Signal(), Signal(), Signal()
        m.d.sync += [greedy.eq(run.inv_t_mant == 0), with_top_p.eq(run.top_p != 0),
                     ranked.eq((run.inv_t_mant != 0) & (run.top_k != 0))]
        m.submodules.crc = crc = LogitCrc()
        m.submodules.list = entries = SortedList(self.config.topk)
        scan = Scan(self.config.topk, collected=_COLLECTED, pipeline=_END + 1, apart=_APART,
                    product=LogitScale.PRODUCT)
        m.submodules.scan = anew(scan)
        assert entries.SETTLED + 5 <= scan.collected
        wiring.connect(m, wiring.flipped(self.logit), crc.logit, entries.logit)
        m.d.comb += [
            crc.start.eq(self.start), entries.clear.eq(self.start), entries.ring.eq(scan.ring),
            entries.turn.eq(scan.turn), scan.count.eq(entries.count),
            scan.held.eq(entries.item.held), scan.ranked.eq(ranked),
            scan.nucleus.eq(with_top_p), scan.top_k.eq(run.top_k), scan.finish.eq(self.finish),
            self.busy.eq(scan.busy), self.done.eq(scan.done), self.crc.eq(crc.crc)]

        # flow[s] is high for one cycle when stage s begins to show another item.
        flow = Signal(_KEPT + 1)
        m.d.sync += flow.eq(Mux(self.start, 0, Cat(
            scan.feed | (entries.comes & ~ranked), flow[:-1])))

        def kept(value, since: int, until: int, name: str) -> Value:
            """What stage ``since`` gives, from register to register as long as needed."""
            for stage in range(since + 3, until, 4):
                later = reg(value.shape(), f"{name}_from_{stage + 1}")
                with m.If(flow[stage]):
                    m.d.sync += later.eq(value)
                value = later
            return value
        value, token = flipped(entries.item.key).as_signed(), entries.item.token

        m.submodules.scale = scale = LogitScale()
        m.submodules.noise = noise = Noise()
        m.submodules.nucleus = nucleus = Nucleus()
        m.submodules.tables = tables = Tables()
        wiring.connect(m, noise.tables, tables.urgent)
        wiring.connect(m, nucleus.tables, tables.other)
        scaled = kept(scale.scaled, _SCALED, _WEIGHED, "scaled")
        m.d.comb += [
            scale.value.eq(Mux(scan.limiting, nucleus.total, value)),
            scale.factor.eq(Mux(scan.limiting, run.top_p, run.inv_t_mant)),
            scale.shift.eq(run.inv_t_shift),
            noise.start.eq(self.start), noise.seed.eq(run.seed), noise.position.eq(self.position),
            noise.valid.eq(flow[0]), noise.token.eq(token),
            nucleus.valid.eq(flow[_WEIGHED]), nucleus.scaled.eq(scaled),
            nucleus.lead.eq(scan.lead), nucleus.sum.eq(scan.sum),
            nucleus.limit_en.eq(scan.limit), nucleus.limit.eq(scale.product)]

        # The list comes in rising order, so there an equal one replaces.
        candidate = reg(signed(32), "candidate")
        drawn = kept(scaled, _WEIGHED, Noise.LATENCY, "scaled") + noise.noise
        with m.If(Mux(greedy, flow[0], flow[Noise.LATENCY])):
            m.d.sync += candidate.eq(Mux(greedy, value, drawn))
        argmax = ArgMax()
        m.submodules.argmax = anew(argmax)
        m.d.comb += [
            argmax.valid.eq(Mux(greedy, flow[1], Mux(
                ranked, flow[_KEPT] & scan.drawing & (nucleus.kept | ~with_top_p), flow[_DRAWN]))),
            argmax.value.eq(candidate), argmax.rising.eq(ranked), self.token.eq(argmax.best),
            argmax.token.eq(Mux(greedy, token, kept(token, 0, _DRAWN + 1, "token")))]
        return m
