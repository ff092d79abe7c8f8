"""Draws a token from the logits while they are made: arg-max, Gumbel-max, top-k, top-p."""
from amaranth import Cat, Module, Mux, ResetInserter, Signal, Value, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..signatures import LogitPort, PlaceWrite, RunLayout, SeedWrite
from .argmax import ArgMax
from .logit_crc import LogitCrc
from .logit_scale import LogitScale
from .noise import Noise
from .nucleus import Nucleus
from .scan import Scan
from .sorted_list import SortedList, flipped
from .tables import Tables
from .turns import Turns

# The pipeline, in cycles after an item came. Items are 4 cycles apart at least, so that what a
# stage gives is there for 4 cycles.
_SCALED = LogitScale.LATENCY        # logit / temperature
_WEIGHED = _SCALED + 8              # the same, from a register
_DRAWN = Noise.LATENCY + 1          # scaled logit + noise
_LOOKED = _DRAWN + 1                # the same, where turn and token are there for 3 cycles
_KEPT = _WEIGHED + Nucleus.LATENCY  # whether the nucleus holds the item
_END = _KEPT + ArgMax.LATENCY       # maximum updated
_WAITED = 5                         # a logit is the list's item, at the latest
# Until no maximum nor CRC is written any more, but for 2 cycles that Scan takes anyway.
_COLLECTED = _WAITED + _LOOKED + ArgMax.LATENCY - 2
_COMPARED = _WAITED + max(1 + ArgMax.LATENCY, LogitCrc.LATENCY) - 3
#: From an entry of the list to the next: so many that sum and id need no further delay, nor do the
#: reads of the tables meet.
_APART = 6
assert _DRAWN <= _KEPT < _DRAWN + _APART - 1
assert len({s % _APART for s in (*Noise.ASKS, _WEIGHED + Nucleus.ASKS)}) == 3
# Logits are multiples of 4 apart, entries of the list 6 or, between two cells, 8: none meets
# another that is hashed once more.
assert not {Noise.HASH, 2 * Noise.HASH} & {*range(4, 12, 4), _APART, _APART + 2, 2 * _APART}


class Sampler(wiring.Component):
    """Tokens of a head pass, drawn as :func:`.sampler_golden.sample` does, and the logits' CRC-32.

    The logits of a row come from ``last + 1`` tokens of the pass, one behind the other, and take
    turns. Each turn has a maximum and a CRC of its own. There is one sorted list: with top-k
    ``last`` is 0.

    Greedy and temperature sampling are a running maximum (of the logit; of logit/temperature plus
    Gumbel noise, which needs neither sum nor sort). Top-k keeps the ``topk`` largest logits in a
    sorted list, whose entries then go through the same pipeline; with top-p twice, since which of
    them count depends on the sum of their weights.

    Source: Gumbel-max trick, Maddison et al., arXiv:1411.0030; nucleus, arXiv:1904.09751.
    Golden: :mod:`.sampler_golden`, bit-exact.
    Timing: rows at least 4 cycles for each turn apart, the first at least 16 after ``start``; never
    stalls. ``finish`` to ``done``: ``GREEDY`` cycles; with a temperature ``LATENCY``; with top-k
    98 + 4*ring + 4*drawn; with top-p 130 + 6*ring + 8*drawn; ring = topk + ceil(topk/7),
    drawn = top_k, or the number of logits if that is less. That is if the last logit has taken its
    turn, see :class:`.turns.Turns`.

    Parameters
    ----------
    config : Config
        ``turns`` at most.

    Members
    -------
    logit : In(LogitPort())     Logits in row order; the row is the token id.
    run : In(RunLayout())       inv_t_mant, inv_t_shift, top_k (0..topk), top_p, seed, batch:
                                constant from ``start`` to ``done``.
    places : In(PlaceWrite)     Where the tokens of a batch belong, each a turn.
    seeds : In(SeedWrite)       Of a batch, what the run's hashed seed is xored with in each turn.
    position : In(13)           Of the token to come in turn 0; in turn k, k more. Of a batch each
                                is as much behind its place. Constant likewise.
    last : In                   Turns, less 1; constant likewise.
    start : In(1)               Pulse, at any time: forget everything, begin anew.
    finish : In(1)              Pulse, with the last logit or later: all have been given.
    busy : Out(1)               Between finish and done.
    done : Out(1)               Pulse; ``token`` and ``crc`` are there until the next start.
    turn : In                   Whose they are; 0 until ``done``.
    token : Out(19)             A cycle after ``turn``.
    crc : Out(32)               CRC-32 of the logits as little-endian int32.
    """

    LATENCY, GREEDY = _COLLECTED + 3, _COMPARED + 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "logit": In(LogitPort()), "run": In(RunLayout()), "places": In(PlaceWrite(config)),
            "seeds": In(SeedWrite(config)), "position": In(13), "last": In(range(config.turns)),
            "start": In(1), "finish": In(1), "turn": In(range(config.turns)),
            "busy": Out(1), "done": Out(1), "token": Out(Config.TOKEN_BITS), "crc": Out(32)})

    def elaborate(self, platform):
        m = Module()
        run, anew = self.run, ResetInserter(self.start)
        greedy, ranked, with_top_p = Signal(), Signal(), Signal()
        m.d.sync += [greedy.eq(run.inv_t_mant == 0), with_top_p.eq(run.top_p != 0),
                     ranked.eq((run.inv_t_mant != 0) & (run.top_k != 0))]
        m.submodules.turns = turns = Turns(self.config.turns)
        m.submodules.list = entries = SortedList(self.config.topk)
        scan = Scan(self.config.topk, collected=_COLLECTED, compared=_COMPARED, pipeline=_END + 1,
                    apart=_APART, product=LogitScale.PRODUCT)
        m.submodules.scan = anew(scan)
        assert entries.SETTLED + 5 <= scan.collected
        wiring.connect(m, wiring.flipped(self.logit), turns.i)
        m.d.comb += [
            *(getattr(entries.logit, name).eq(getattr(turns.o, name))
              for name in entries.logit.signature.members),
            turns.start.eq(self.start), turns.last.eq(self.last), turns.finish.eq(self.finish),
            entries.clear.eq(self.start), entries.ring.eq(scan.ring),
            entries.turn.eq(scan.turn), scan.count.eq(entries.count),
            scan.held.eq(entries.item.held), scan.ranked.eq(ranked), scan.greedy.eq(greedy),
            scan.nucleus.eq(with_top_p), scan.top_k.eq(run.top_k), scan.finish.eq(turns.finished),
            self.busy.eq(scan.busy), self.done.eq(scan.done)]

        # flow[s] is high for one cycle when stage s begins to show another item.
        flow, came = Signal(max(_KEPT, _LOOKED) + 1), Signal()
        m.d.sync += [came.eq(entries.comes & ~self.start), flow.eq(Mux(self.start, 0, Cat(
            scan.feed | (entries.comes & ~ranked), flow[:-1])))]
        turn, first, draw = self._item(m, turns, entries.comes)

        def kept(value, since: int, until: int, name: str) -> Value:
            """What stage ``since`` gives, from register to register as long as needed."""
            for stage in range(since + 3, until, 4):
                later = reg(value.shape(), f"{name}_from_{stage + 1}")
                with m.If(flow[stage]):
                    m.d.sync += later.eq(value)
                value = later
            return value
        value, token = flipped(entries.item.key).as_signed(), entries.item.token
        m.submodules.crc = crc = LogitCrc(self.config.turns)
        m.d.comb += [crc.valid.eq(came), crc.value.eq(value), crc.first.eq(first),
                     crc.turn.eq(Mux(scan.given, self.turn, turn)), self.crc.eq(crc.crc)]

        m.submodules.scale = scale = LogitScale()
        m.submodules.noise = noise = Noise()
        m.submodules.nucleus = nucleus = Nucleus()
        m.submodules.tables = tables = Tables()
        wiring.connect(m, noise.tables, tables.urgent)
        wiring.connect(m, nucleus.tables, tables.other)
        scaled = kept(scale.scaled, _SCALED, _WEIGHED, "scaled")
        hashed = kept(token, 0, Noise.HASH, "token")        # as long as it takes
        m.d.comb += [
            scale.value.eq(Mux(scan.limiting, nucleus.total, value)),
            scale.factor.eq(Mux(scan.limiting, run.top_p, run.inv_t_mant)),
            scale.shift.eq(run.inv_t_shift),
            noise.start.eq(self.start), noise.seed.eq(run.seed), noise.draw.eq(draw),
            noise.valid.eq(flow[0]), noise.token.eq(hashed),
            nucleus.valid.eq(flow[_WEIGHED]), nucleus.scaled.eq(scaled),
            nucleus.lead.eq(scan.lead), nucleus.sum.eq(scan.sum),
            nucleus.limit_en.eq(scan.limit), nucleus.limit.eq(scale.product)]

        # The list comes in rising order, so there an equal one replaces.
        candidate = reg(signed(32), "candidate")
        drawn = kept(scaled, _WEIGHED, Noise.LATENCY, "scaled") + noise.noise
        with m.If(Mux(greedy, flow[0], flow[Noise.LATENCY])):
            m.d.sync += candidate.eq(Mux(greedy, value, drawn))
        m.submodules.argmax = argmax = ArgMax(self.config.turns)
        some = Signal()                             # of the list
        with m.If(argmax.valid | self.start):
            m.d.sync += some.eq(~self.start)

        def compared(at, name):
            """What a logit brings along, when its maximum is looked at."""
            return Mux(greedy, at, kept(at, 0, _LOOKED, name))
        m.d.comb += [
            argmax.valid.eq(Mux(greedy, flow[1], Mux(
                ranked, flow[_KEPT] & scan.drawing & (nucleus.kept | ~with_top_p), flow[_LOOKED]))),
            argmax.value.eq(candidate), argmax.rising.eq(ranked), self.token.eq(argmax.best),
            argmax.first.eq(Mux(ranked, ~some, compared(first, "first"))),
            argmax.turn.eq(Mux(scan.given, self.turn, compared(turn, "turn"))),
            argmax.token.eq(Mux(greedy, token, kept(hashed, 4, _LOOKED, "token")))]
        return m

    def _item(self, m: Module, turns: Turns, comes):
        """Of an item its turn, whether it is the first of it, and which draw it belongs to: the
        token's position, of a batch xored with the turn's seed. There as long as the item. comes:
        it is there from the next cycle on."""
        batch, given = self.run.batch, turns.o
        now, seed = [given.turn, given.first], Signal(32)       # of a logit; it waits, then it is
        if self.config.turns > 1:                               # the item
            tables = []
            for name, port, data, bits in (
                    ("positions", self.places, self.places.data.position, 13),
                    ("seeds", self.seeds, self.seeds.data, 32)):
                m.submodules[name] = table = memory.Memory(shape=bits, depth=self.config.P, init=[])
                write, read = table.write_port(), table.read_port(domain="comb")
                m.d.comb += [write.en.eq(port.en), write.addr.eq(port.addr), write.data.eq(data),
                             read.addr.eq(given.turn)]
                tables.append(read.data)
            now += [Mux(batch, tables[0], given.turn)[:13], Mux(batch, tables[1], 0)[:32]]
        waiting = [reg(len(x), f"waiting_{k}") for k, x in enumerate(now)]
        turn, first, draw = (reg(bits, f"item_{name}") for name, bits in (
            ("turn", len(given.turn)), ("first", 1), ("draw", 32)))
        position = Signal(13)
        m.d.comb += position.eq(self.position)
        if self.config.turns > 1:
            m.d.comb += [position.eq(self.position + waiting[2]), seed.eq(waiting[3])]
        with m.If(given.valid):
            m.d.sync += [later.eq(x) for later, x in zip(waiting, now, strict=True)]
        with m.If(comes):
            m.d.sync += [turn.eq(waiting[0]), first.eq(waiting[1]), draw.eq(position ^ seed)]
        return turn, first, draw
