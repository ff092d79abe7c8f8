"""Draws a token from the logits while they are made: arg-max, Gumbel-max, top-k, top-p."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import enum, memory, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from ..compute.multiplier import Multiplier
from ..config import Config
from ..fixed import EXP2_TABLE
from ..signatures import LogitPort, RunLayout
from .sampler_golden import LOG2_TABLE, TAIL_TABLE

# One ROM of 1024 words of 16 bits holds the three tables; the upper address bits choose.
_LOG2, _TAIL, _EXP2 = range(3)
_ROM = [int(x) for table in (LOG2_TABLE, TAIL_TABLE, EXP2_TABLE) for x in table]
assert min(_ROM) >= 0 and max(LOG2_TABLE) < 1 << 12 and max(TAIL_TABLE) < 1 << 14

# The pipeline, in cycles after the item's register. Items are 4 cycles apart at least and every
# stage passes on what the one before held, so each register holds an item's value for 4 cycles.
_SCALED = 13        # logit / temperature (there from 10 on, held from 14 on)
_WEIGHT = 20        # 2**-(distance to the largest); the table's address is there at 16
_MANTISSA = 16      # of the second hash, normalised; addresses of its tables at 17 and 18
_NOISE = 21         # Gumbel noise
_DRAWN = 22         # scaled logit + noise
_KEPT = 23          # whether the nucleus holds the item
_BEST = 25          # maximum updated
#: From an item of the list to the next: longer than from the sum to the end, so that the sum, the
#: id and the reads of the ROM need no further delay.
_ROUND = 12
#: Likewise if the entry is skipped: item, copy, two compares, shift.
_SHIFT = 5
assert _BEST - _DRAWN < _ROUND and len({s % _ROUND for s in (16, 17, 18)}) == 3


class _State(enum.Enum, shape=4):
    COLLECT = 0     # logits come
    DRAIN = 1       # the last one passes the pipeline
    HEAD = 2        # the largest entry of the list, for its scaled value
    SCALE = 3
    TURN = 4        # entries of the list, last first; each becomes the first
    SUM = 5         # the last one passes the pipeline
    LIMIT = 6       # sum of the weights * top_p
    DRAW = 7        # the last one passes the pipeline
    DONE = 8
    IDLE = 9


class Sampler(wiring.Component):
    """One token a head pass, drawn as :func:`.sampler_golden.sample` does, and the logits' CRC-32.

    Greedy and temperature sampling are a running maximum (of the logit; of logit/temperature plus
    Gumbel noise, which needs neither sum nor sort). Top-k keeps the ``topk`` largest logits in a
    sorted list: a new one is compared with all of them at once, the smaller ones move down one
    place. After the last logit the list goes round, last entry first: with top-p
    once for the sum of the weights, then once for the draw. The weights *before* an entry are the
    sum less those seen so far.

    Source: Gumbel-max trick, Maddison et al., arXiv:1411.0030; nucleus, arXiv:1904.09751.
    Golden: :mod:`.sampler_golden`, bit-exact.
    Timing: logits at least 4 cycles apart, the first at least 16 after ``start``; never stalls.
    ``finish`` to ``done``: 28 cycles; with top-k 72 + 5*(topk - top_k) + 12*top_k; with top-p
    96 + 10*(topk - top_k) + 24*top_k.

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
    token : Out(18)
    crc : Out(32)               CRC-32 of the logits as little-endian int32.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "logit": In(LogitPort()), "run": In(RunLayout()), "position": In(13),
            "start": In(1), "finish": In(1),
            "busy": Out(1), "done": Out(1), "token": Out(Config.TOKEN_BITS), "crc": Out(32)})

    def elaborate(self, platform):
        m = Module()
        run, slots = self.run, self.config.topk
        greedy = Signal()
        ranked = Signal()                   # with top-k
        nucleus = Signal()                  # and top-p
        m.d.sync += [greedy.eq(run.inv_t_mant == 0),
                     ranked.eq((run.inv_t_mant != 0) & (run.top_k != 0)),
                     nucleus.eq(run.top_p != 0)]

        # The item at work: a logit as it comes, or an entry of the list. flow[s] is high for one
        # cycle when the registers of stage s begin to hold a new item's values.
        value = Signal(signed(Config.LOGIT_BITS), reset_less=True)
        token = Signal(Config.TOKEN_BITS, reset_less=True)
        there = Signal()
        feed = Signal()
        flow = Signal(_BEST)
        m.d.sync += flow.eq(Cat(feed, flow[:-1]))

        # CRC: a byte a cycle, for the 4 cycles that a logit stays.
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        byte = Signal(4)
        m.d.sync += byte.eq(Cat(self.logit.valid, byte[:-1]))
        m.d.comb += [crc.start.eq(self.start), crc.valid.eq(byte.any() & ~self.start),
                     self.crc.eq(crc.crc)]
        for i in range(4):
            with m.If(byte[i]):
                m.d.comb += crc.data.eq(value[8 * i:8 * i + 8])

        # The sorted list: the lower halves compared, then the upper ones (one compare of the whole
        # behind the wires to all entries took 10.7 ns), then entries that go below the item move
        # down. A later logit of the same value goes below the earlier one.
        keys = [Signal(signed(Config.LOGIT_BITS), name=f"key_{i}", reset_less=True)
                for i in range(slots)]
        ids = [Signal(Config.TOKEN_BITS, name=f"id_{i}", reset_less=True) for i in range(slots)]
        held = Signal(slots)
        lower = Signal(slots)
        below = Signal(slots)
        new_key = Signal(signed(Config.LOGIT_BITS), reset_less=True)    # the item, for the list
        new_id = Signal(Config.TOKEN_BITS, reset_less=True)
        new_there = Signal(reset_less=True)
        insert = Signal(3)
        turn = Signal(3)
        turning = Signal()                  # an entry comes round: it goes above all others
        m.d.sync += [
            new_key.eq(value), new_id.eq(token), new_there.eq(there),
            turn.eq(Cat(turning, turn[:-1])),
            insert.eq(Cat((byte[0] & ranked) | turn[0], insert[:-1])),
            lower.eq(Cat(new_key[:16] > keys[i][:16] for i in range(slots))),
            below.eq(Cat(
                (Cat(lower[i], new_key[16:]).as_signed()
                 > Cat(Const(0, 1), keys[i][16:]).as_signed()) | ~held[i] | turn[2]
                for i in range(slots)))]
        for i in range(slots):
            with m.If(insert[2] & below[i]):
                if i == 0:
                    m.d.sync += [keys[0].eq(new_key), ids[0].eq(new_id), held[0].eq(new_there)]
                else:
                    m.d.sync += [keys[i].eq(Mux(below[i - 1], keys[i - 1], new_key)),
                                 ids[i].eq(Mux(below[i - 1], ids[i - 1], new_id)),
                                 held[i].eq(Mux(below[i - 1], held[i - 1], new_there))]

        # Pipeline: noise and scaled logit, their sum; weight, sum of weights, nucleus.
        limiting = Signal()
        product, scaled = self._scale(m, value, Mux(limiting, run.top_p, run.inv_t_mant))
        largest = Signal(signed(30), reset_less=True)
        distance = Signal(31, reset_less=True)      # largest - scaled: never negative
        noise, rom_data = self._noise(m, token, flow, distance)
        # Held until the noise is there
        item_scaled = Signal(signed(30), reset_less=True)
        late_scaled = Signal(signed(30), reset_less=True)
        with m.If(flow[_SCALED]):
            m.d.sync += item_scaled.eq(scaled)
        with m.If(flow[_SCALED + 4]):
            m.d.sync += late_scaled.eq(item_scaled)
        m.d.sync += distance.eq(largest - item_scaled)
        far = Signal(reset_less=True)
        part = Signal(16, reset_less=True)
        weight = Signal(16, reset_less=True)
        m.d.sync += [far.eq(distance[16:].any()),
                     part.eq(rom_data >> distance[12:14]),
                     weight.eq(Mux(far, 0, part >> Cat(Const(0, 2), distance[14:16])))]
        seen = Signal(21)                           # at most 32 * 2**15
        total = Signal(21, reset_less=True)
        before = Signal(21, reset_less=True)
        limit = Signal(37, reset_less=True)         # total * top_p
        kept = Signal()
        with m.If(flow[_WEIGHT]):
            m.d.sync += seen.eq(seen + weight)
        m.d.sync += [before.eq(total - seen),
                     kept.eq(~nucleus | (Cat(Const(0, 16), before) < limit))]

        # The id travels with its item, from register to register when the next one needs it.
        travelling = token
        for stage in range(3, _DRAWN, 4):
            held_id = Signal(Config.TOKEN_BITS, name=f"id_from_{stage}", reset_less=True)
            with m.If(flow[stage]):
                m.d.sync += held_id.eq(travelling)
            travelling = held_id

        # Running maximum: candidate, compare, replace. The list comes in rising order, so there
        # an equal one replaces.
        drawing = Signal()                          # the list goes round for the draw
        candidate = Signal(signed(32), reset_less=True)
        best = Signal(signed(32), reset_less=True)
        some = Signal()
        over = Signal()
        test = Signal()
        replace = Signal()
        with m.If(greedy):
            m.d.comb += [test.eq(flow[1]), replace.eq(flow[2])]
            with m.If(flow[0]):
                m.d.sync += candidate.eq(value)
        with m.Else():
            m.d.comb += [test.eq(Mux(ranked, flow[_KEPT] & drawing & kept, flow[_DRAWN])),
                         replace.eq(Mux(ranked, flow[_KEPT + 1], flow[_DRAWN + 1]))]
            with m.If(flow[_NOISE]):
                m.d.sync += candidate.eq(late_scaled + noise)
        m.d.sync += over.eq(test & (~some | (Cat(ranked, candidate).as_signed()
                                            > Cat(Const(0, 1), best).as_signed())))
        with m.If(replace & over):
            m.d.sync += [best.eq(candidate), some.eq(1),
                         self.token.eq(Mux(greedy, token, travelling))]

        # Control.
        state = Signal(_State)
        wait = Signal(range(32))
        rank = Signal(range(slots + 1))             # of the last entry of the list
        chosen = Signal()
        m.d.sync += [self.done.eq(0), chosen.eq(rank < run.top_k)]
        m.d.comb += self.busy.eq((state != _State.IDLE) & (state != _State.COLLECT))
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Switch(state):
            with m.Case(_State.COLLECT):
                m.d.comb += feed.eq(self.logit.valid & ~ranked)
                m.d.sync += there.eq(1)
                with m.If(self.logit.valid):
                    m.d.sync += [value.eq(self.logit.value), token.eq(self.logit.row)]
                with m.If(self.finish):
                    m.d.sync += [wait.eq(_DRAWN + 3), state.eq(_State.DRAIN)]
            with m.Case(_State.DRAIN):
                with m.If(wait == 0):
                    m.d.sync += state.eq(Mux(ranked, _State.HEAD, _State.DONE))
            with m.Case(_State.HEAD):
                m.d.comb += feed.eq(1)
                m.d.sync += [value.eq(keys[0]), rank.eq(slots - 1), wait.eq(_BEST + 1),
                             state.eq(_State.SCALE)]
            with m.Case(_State.SCALE):
                with m.If(wait == 0):
                    m.d.sync += [largest.eq(item_scaled), seen.eq(0), drawing.eq(~nucleus),
                                 state.eq(_State.TURN)]
            with m.Case(_State.TURN):
                with m.If(wait == 0):
                    m.d.comb += [turning.eq(1), feed.eq(held[-1] & chosen)]
                    m.d.sync += [value.eq(keys[-1]), token.eq(ids[-1]), there.eq(held[-1]),
                                 rank.eq(rank - 1),
                                 wait.eq(Mux(chosen, _ROUND - 1, _SHIFT - 1))]
                    with m.If(rank == 0):
                        m.d.sync += [rank.eq(slots - 1), wait.eq(_BEST + 1),
                                     state.eq(Mux(drawing, _State.DRAW, _State.SUM))]
            with m.Case(_State.SUM):
                with m.If(wait == 0):
                    m.d.sync += [total.eq(seen), value.eq(seen), limiting.eq(1), seen.eq(0),
                                 wait.eq(7), state.eq(_State.LIMIT)]
            with m.Case(_State.LIMIT):
                with m.If(wait == 0):
                    m.d.sync += [limit.eq(product), limiting.eq(0), drawing.eq(1),
                                 state.eq(_State.TURN)]
            with m.Case(_State.DRAW):
                with m.If(wait == 0):
                    m.d.sync += state.eq(_State.DONE)
            with m.Case(_State.DONE):
                m.d.sync += [self.done.eq(1), state.eq(_State.IDLE)]

        with m.If(self.start):
            m.d.sync += [state.eq(_State.COLLECT), flow.eq(0), byte.eq(0), insert.eq(0),
                         turn.eq(0), held.eq(0), some.eq(0), over.eq(0), drawing.eq(0),
                         limiting.eq(0), wait.eq(0), self.done.eq(0)]
        return m

    def _scale(self, m, value, factor):
        """32 bits signed * 16 bits, from two products; and it >> inv_t_shift, rounded, saturated.

        product: 4 cycles after value, 48 bits signed. scaled: 10 cycles after it, 30 bits signed.
        """
        parts = []
        for name, part in (("low", value[:16]), ("high", value[16:].as_signed())):
            m.submodules[f"multiply_{name}"] = multiplier = Multiplier(dsp=self.config.dsp)
            m.d.comb += [multiplier.a.eq(part), multiplier.b.eq(factor)]
            parts.append(multiplier.p)
        low, high = parts
        # |value * factor| < 2**31 * 2**16; the lower product is not negative
        product = Signal(signed(48), reset_less=True)
        m.d.sync += product.eq(Cat(low[:16], (high + low[16:32])[:32]))

        # One more bit below, so that the rounding bit survives the shift, also by 0
        shift = self.run.inv_t_shift
        shifted = [Signal(signed(49), name=f"shifted_{i}", reset_less=True) for i in range(3)]
        m.d.sync += [
            shifted[0].eq(Mux(shift[4], (product << 1) >> 16, product << 1)),
            shifted[1].eq(shifted[0] >> Cat(Const(0, 2), shift[2:4])),
            shifted[2].eq(shifted[1] >> shift[:2])]
        # 31 bits with the rounding bit: saturated before rounding, and again if that overflows
        clipped = Signal(signed(31), reset_less=True)
        rounded = Signal(signed(31), reset_less=True)
        scaled = Signal(signed(30), reset_less=True)
        top = shifted[2][30:]
        m.d.sync += [
            clipped.eq(Mux(top.all() | ~top.any(), shifted[2],
                           Mux(top[-1], -1 << 30, (1 << 30) - 1))),
            rounded.eq((clipped + 1) >> 1),
            scaled.eq(Mux(rounded[29] & ~rounded[30], (1 << 29) - 1, rounded))]
        return product, scaled

    @staticmethod
    def _hash(m, name, x):
        """hash32, 5 cycles after x: one sum a stage, the exclusive ors before it."""
        a, b, c, d, e, v = (Signal(32, name=f"{name}_{n}", reset_less=True) for n in "abcdev")
        y, z = a ^ (a >> 12), b ^ (b >> 4)
        m.d.sync += [a.eq(~x + (x << 15)[:32]), b.eq(y + (y << 2)), c.eq(z + (z << 3)),
                     d.eq(z << 11), e.eq(c + d), v.eq(e ^ (e >> 16))]
        return v

    def _noise(self, m, token, flow, distance):
        """Gumbel noise of a token, 21 cycles after it; 2**-(distance mod 4096), 3 after it.

        Both read the ROM, at different times. The key is hashed in the pipeline as well, in the
        14 cycles after ``start``.
        """
        key = Signal(32, reset_less=True)
        x = Signal(32, reset_less=True)
        first = self._hash(m, "first", x)
        v = self._hash(m, "second", first)
        keying = Signal(13)
        m.d.sync += [
            keying.eq(Cat(self.start, keying[:-1])),
            x.eq(Mux(keying[0], self.run.seed,
                     Mux(keying[6], first ^ self.position, token ^ key)))]
        with m.If(keying[12]):
            m.d.sync += key.eq(first)

        # Normalise: after each step only the bits that can still become one of the leading 9 are
        # kept. v = 0 behaves as v = 1: 31 leading zeros and an empty mantissa.
        bits, zeros = v, []
        for i, (step, keep) in enumerate(((16, 24), (8, 16), (4, 12), (2, 10), (1, 9))):
            empty = ~bits[-step:].any()
            moved = Signal(keep, name=f"norm_{step}", reset_less=True)
            found = Signal(i + 1, name=f"zeros_{step}", reset_less=True)
            m.d.sync += [
                moved.eq(Mux(empty, bits << step, bits)[len(bits) - keep:len(bits)]),
                found.eq(Cat(empty, zeros))]
            bits, zeros = moved, found
        tail = Signal(8, reset_less=True)           # v's leading bits, until their turn
        with m.If(flow[_MANTISSA - 2]):
            m.d.sync += tail.eq(v[24:])

        m.submodules.rom = rom = memory.Memory(shape=16, depth=1024, init=_ROM)
        read = rom.read_port()
        address = Signal(10, reset_less=True)
        found = Signal(16, reset_less=True)
        m.d.comb += [read.en.eq(1), read.addr.eq(address)]
        m.d.sync += [found.eq(read.data), address.eq(Cat(distance[4:12], Const(_EXP2, 2)))]
        with m.If(flow[_MANTISSA]):
            m.d.sync += address.eq(Cat(bits[:8], Const(_LOG2, 2)))
        with m.If(flow[_MANTISSA + 1]):
            m.d.sync += address.eq(Cat(tail, Const(_TAIL, 2)))

        # (zeros + 1) * 4096 - log2 - tail: at most 2**17, at least -2**14
        partial = Signal(signed(19), reset_less=True)
        noise = Signal(signed(19), reset_less=True)
        m.d.sync += [partial.eq(Cat(Const(0, 12), zeros + 1) - found), noise.eq(partial - found)]
        return noise, found
