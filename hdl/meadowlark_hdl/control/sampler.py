"""Draws a token from the logits while they are made: arg-max, Gumbel-max, top-k, top-p."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, enum, memory, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from ..tech.cells import Multiplier
from ..config import Config
from ..lib.fanout import fanout
from ..fixed import EXP2_TABLE
from ..signatures import LogitPort, RunLayout
from .sampler_golden import LOG2_TABLE, TAIL_TABLE

# One ROM of 1024 words of 16 bits holds the three tables; the upper address bits choose.
_LOG2, _TAIL, _EXP2 = range(3)
_ROM = [int(x) for table in (LOG2_TABLE, TAIL_TABLE, EXP2_TABLE) for x in table]
assert min(_ROM) >= 0 and max(LOG2_TABLE) < 1 << 12 and max(TAIL_TABLE) < 1 << 14

# The pipeline, in cycles after the item's register. Items are 4 cycles apart at least and every
# stage passes on what the one before held, so each register holds an item's value for 4 cycles.
_AGAIN = 5          # the first hash, to be hashed again; the second is there at twice that
_SCALED = 13        # logit / temperature (there from 10 on, held from 14 on)
_WEIGHT = 20        # 2**-(distance to the largest); the table's address is there at 16
_MANTISSA = 16      # of the second hash, normalised; addresses of its tables at 17 and 18
_NOISE = 21         # Gumbel noise
_DRAWN = 22         # scaled logit + noise
_KEPT = 23          # whether the nucleus holds the item
_BEST = 25          # maximum updated
#: From an item of the list to the next: longer than from the sum to the end, so that the sum and
#: the id need no further delay, nor the reads of the ROM.
_ROUND = 6
assert _BEST - _WEIGHT < _ROUND and len({s % _ROUND for s in (16, 17, 18)}) == 3
# An item is never hashed again when the next one comes: logits are multiples of 4 apart.
assert _AGAIN % _ROUND and _AGAIN % 4


class _State(enum.Enum, shape=4):
    CLEAR = 0       # nothing is held any more
    COLLECT = 1     # logits come
    DRAIN = 2       # the last one passes the list or the pipeline
    HEAD = 3        # the list goes round, to the largest entry: for its scaled value
    SCALE = 4
    TURN = 5        # the list goes round, last entry first
    SUM = 6         # the last one passes the pipeline
    LIMIT = 7       # sum of the weights * top_p
    DRAW = 8        # the last one passes the pipeline
    DONE = 9
    IDLE = 10


#: An entry of the sorted list. key: the logit, see :func:`_flipped`. Not held: nothing is there.
_ENTRY = data.StructLayout({"token": Config.TOKEN_BITS, "key": Config.LOGIT_BITS, "held": 1})


def _flipped(key):
    """32 bits, the sign inverted: signed numbers in the order of unsigned ones, and back."""
    return key ^ (1 << Config.LOGIT_BITS - 1)


def _order(entry):
    """An unsigned number, larger if the logit is, and smaller if nothing is there."""
    return Cat(entry.key, entry.held)


class _Cell(wiring.Component):
    """Up to 7 neighbouring ranks of the sorted list, in a LUT RAM, and a newcomer.

    A newcomer has four cycles. In the first three its place is found by bisection: a compare in
    each. At the end of the fourth it takes its place and the last entry leaves; or, if it is below
    all, it leaves itself. What leaves is the next cell's newcomer. A logit goes below its equals,
    but an entry that left its place is earlier than all in the cells below and goes to the top.
    Entries stay where they are in the RAM; only the order of its words changes.

    Timing: a newcomer every 4 cycles; with ``turn`` every 2.

    Parameters
    ----------
    size : int, 1..7

    Members
    -------
    i : In(_ENTRY)          The next newcomer.
    i_top : In(1)           It left its place in the cell above.
    phase : In(4)           Cycle of the newcomer, one-hot; always the last one with ``turn``.
    step : In(1)            In the last cycle: the newcomer takes its place, the next one comes.
    turn : In(1)            All newcomers go to the top; from 3 cycles before the first such step.
    clear : In(1)           With ``turn``: no newcomer is held. A ``step`` in every cycle is fine.
    newcomer : Out(_ENTRY)
    o : Out(_ENTRY)         What leaves, during ``step``.
    o_top : Out(1)          For the next cell's ``i_top``.
    """

    MAX = 7

    def __init__(self, size: int):
        self.size = size
        super().__init__({
            "i": In(_ENTRY), "i_top": In(1), "phase": In(4), "step": In(1), "turn": In(1),
            "clear": In(1), "newcomer": Out(_ENTRY), "o": Out(_ENTRY), "o_top": Out(1)})

    def elaborate(self, platform):
        m = Module()
        newcomer = Signal(_ENTRY, reset_less=True)
        top = Signal(reset_less=True)
        there = Signal(_ENTRY)                      # what leaves, in the last cycle
        # The word of each rank. A rank that the cell does not have is as its last.
        words = [Signal(3, name=f"word_{rank}", init=rank) for rank in range(self.size)]
        last = words[-1]
        word = words + [last] * (self.MAX - self.size)
        # The newcomer's place is the number of entries above it, upper bits first, a bit a compare;
        # 7 if it is below all: two bits are set then, and the third.
        first, _, third, fourth = self.phase
        bit = Signal(reset_less=True)
        upper = Signal(2, reset_less=True)
        below = Signal(reset_less=True)
        stays = ~(below & bit)
        m.d.sync += [upper.eq(Cat(bit, upper)), below.eq(third & bit & upper[0])]
        # From the address to a compare's end is too long for a cycle: both entries of which the bit
        # that is being found will choose one are read in the cycle before, and held.
        high, low = (Signal(len(_order(newcomer)), name=name, reset_less=True)
                     for name in ("high", "low"))
        m.d.sync += bit.eq(Mux(bit, high, low) >= Cat(_order(newcomer), self.turn | top))
        with m.If(fourth & ~self.turn):
            m.d.sync += bit.eq(1)                   # the first compare has but one, the higher
        # Their addresses with bit 0 and 1. Those read last are not yet compared: the entry whose
        # rank will be 3 when the newcomer has taken its place, and the one that leaves. Until then
        # the newcomer is beside the entries.
        middle = min(3, self.size - 1)
        highs, lows = ([Signal(4, name=f"{name}_{b}", reset_less=True) for b in range(2)]
                       for name in ("high", "low"))
        with m.If(first):
            m.d.sync += [way.eq(word[rank]) for way, rank in zip(highs + lows, (2, 6, 0, 4))]
        with m.Else():
            for b in range(2):
                place = Cat(Const(b, 1), bit, upper[0])
                m.d.sync += [
                    highs[b].eq(Mux(place == middle, Cat(last, 1), Mux(
                        place < middle, words[max(middle - 1, 0)], words[middle]))),
                    lows[b].eq(Cat(last, bit & upper[0] & b))]
        # Before its last cycle the newcomer is written beside the entries, to leave from there; in
        # it, over the entry that leaves. 16 bits of the token are read only to leave.
        read_at = {"ids": [Cat(last, ~stays)],
                   "keys": [Mux(first, word[rank], Mux(bit, ways[1], ways[0]))
                            for rank, ways in ((1, lows), (5, highs))]}
        read = []
        for name, part in (("ids", slice(16)), ("keys", slice(16, None))):
            new = newcomer.as_value()[part]
            m.submodules[name] = ram = memory.Memory(shape=len(new), depth=16, init=[])
            write = ram.write_port()
            m.d.comb += [write.addr.eq(Cat(last, ~fourth)), write.data.eq(new),
                         write.en.eq(~fourth | (self.step & stays))]
            for address in read_at[name]:
                port = ram.read_port(domain="comb")
                m.d.comb += port.addr.eq(address)
                read.append(port.data)
        leaving_id, leaving, higher = read
        m.d.comb += there.eq(Cat(leaving_id, leaving))
        m.d.sync += [low.eq(leaving[-len(low):]), high.eq(higher[-len(high):])]
        m.d.comb += [self.newcomer.eq(newcomer), self.o.eq(there), self.o_top.eq(top | stays)]
        place = Cat(bit, upper)
        with m.If(self.step):
            m.d.sync += [newcomer.eq(self.i), top.eq(self.i_top)]
            for rank in range(self.size):
                with m.If(place == rank):
                    m.d.sync += words[rank].eq(last)
                with m.Elif(place < rank):
                    m.d.sync += words[rank].eq(words[rank - 1])
        with m.If(self.clear):
            m.d.sync += newcomer.held.eq(0)
        return m


class Sampler(wiring.Component):
    """One token a head pass, drawn as :func:`.sampler_golden.sample` does, and the logits' CRC-32.

    Greedy and temperature sampling are a running maximum (of the logit; of logit/temperature plus
    Gumbel noise, which needs neither sum nor sort). Top-k keeps the ``topk`` largest logits in a
    sorted list, a chain of cells of up to 7 ranks with a comparator each. After the last logit the
    list goes round, last entry first: once to the largest, with top-p once for the sum of the
    weights, then once for the draw. The weights *before* an entry are the sum less those seen so
    far.

    Source: Gumbel-max trick, Maddison et al., arXiv:1411.0030; nucleus, arXiv:1904.09751.
    Golden: :mod:`.sampler_golden`, bit-exact.
    Timing: logits at least 4 cycles apart, the first at least 16 after ``start``; never stalls.
    ``finish`` to ``done``: 32 cycles; with top-k 83 + 4*ring + 4*drawn; with top-p 112 + 6*ring +
    8*drawn; ring = topk + ceil(topk/7), drawn = top_k, or the number of logits if that is less.

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

        # The sorted list. A logit waits for the next step, which is every fourth cycle. From HEAD
        # on the list is a ring that turns by one place with each step. Each newcomer is a place of
        # its own there, empty when the last logit has passed.
        cells = [_Cell(min(_Cell.MAX, slots - rank)) for rank in range(0, slots, _Cell.MAX)]
        phase = Signal(4, init=1)
        step, will_step = Signal(), Signal()
        steps = fanout(m, will_step, len(cells), name="step", reset=True)       # one a cell
        turn = Signal()
        clear = Signal()
        waiting = Signal(_ENTRY, reset_less=True)
        total = Signal(21, reset_less=True)         # sum of weights
        feeding = Signal(_ENTRY)            # the next item
        for i, cell in enumerate(cells):
            m.submodules[f"cell_{i}"] = cell
            m.d.comb += [cell.phase.eq(phase), cell.step.eq(steps[i]), cell.turn.eq(turn),
                         cell.clear.eq(clear), cell.i.eq(cells[i - 1].o if i else feeding),
                         cell.i_top.eq(cells[i - 1].o_top if i else 0)]
        with m.If(self.logit.valid):
            m.d.sync += [waiting.key.eq(_flipped(self.logit.value)),
                         waiting.token.eq(self.logit.row)]
        limiting = Signal()
        m.d.comb += feeding.eq(Mux(turn, cells[-1].o, waiting))
        with m.If(limiting):
            # What leaves after the largest is the place of the first cell's newcomer: empty.
            m.d.comb += [feeding.key.eq(_flipped(total)), feeding.held.eq(0)]
        m.d.sync += phase.eq(Mux(turn, 8, phase.rotate_left(1)))

        # The item at work: the newcomer of the first cell. flow[s] is high for one cycle when the
        # registers of stage s begin to hold a new item's values.
        item = cells[0].newcomer
        value = _flipped(item.key).as_signed()
        token = item.token
        feed = Signal()
        flow = Signal(_BEST)
        m.d.sync += flow.eq(Cat(feed, flow[:-1]))

        # CRC: a byte a cycle, for the 4 cycles that a logit stays.
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        byte = Signal(8, reset_less=True)
        given = Signal()
        m.d.sync += given.eq(item.held & ~turn & ~self.start)
        for i in range(4):
            with m.If(phase[i]):
                m.d.sync += byte.eq(value[8 * i:8 * i + 8])
        m.d.comb += [crc.start.eq(self.start), crc.valid.eq(given & ~self.start),
                     crc.data.eq(byte), self.crc.eq(crc.crc)]

        # Pipeline: noise and scaled logit, their sum; weight, sum of weights, nucleus.
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
        before = Signal(21, reset_less=True)
        limit = Signal(22, reset_less=True)         # total * top_p, one bit for its lower half
        kept = Signal()
        with m.If(flow[_WEIGHT]):
            m.d.sync += seen.eq(seen + weight)
        m.d.sync += [before.eq(total - seen),
                     kept.eq(~nucleus | (Cat(Const(0, 1), before) < limit))]

        # The id travels with its item, from register to register when the next one needs it.
        travelling = token
        for stage in range(3, _DRAWN, 4):
            held_id = Signal(Config.TOKEN_BITS, name=f"id_from_{stage}", reset_less=True)
            with m.If(flow[stage]):
                m.d.sync += held_id.eq(travelling)
            travelling = held_id

        # Running maximum: candidate, compare, replace. The list comes in rising order, so there
        # an equal one replaces: a bit below the numbers says so. (`>` would compare twice.)
        drawing = Signal()                          # the list goes round for the draw
        candidate = Signal(signed(32), reset_less=True)
        best = Signal(signed(32), reset_less=True)
        some = Signal()
        over = Signal()
        rising = Signal(reset_less=True)
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
        m.d.sync += [rising.eq(ranked),
                     over.eq(test & (~some | (Cat(~rising, best).as_signed()
                                              < Cat(rising, candidate).as_signed())))]
        with m.If(replace & over):
            m.d.sync += [best.eq(candidate), some.eq(1),
                         self.token.eq(Mux(greedy, token, travelling))]

        # Control.
        state = Signal(_State)
        wait = Signal(range(32))
        drain = _DRAWN + 7                          # of the pipeline, and of the list
        assert 4 * (len(cells) + 1) < drain
        count = Signal(range(slots + 1))            # held entries
        coming = Signal.like(count)                 # those of them that are still to come round
        arrived = Signal()                          # an item, from the ring
        found = arrived & item.held
        filling = (state == _State.COLLECT) | (state == _State.DRAIN)
        m.d.sync += [self.done.eq(0), arrived.eq(step), step.eq(will_step),
                     turn.eq(~filling | self.start)]
        m.d.comb += [
            clear.eq(state == _State.CLEAR),
            self.busy.eq((state != _State.CLEAR) & (state != _State.COLLECT)
                         & (state != _State.IDLE))]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(filling):
            m.d.comb += feed.eq(step & waiting.held & ~ranked)
            m.d.comb += will_step.eq(phase[2])
            m.d.sync += coming.eq(count)
        with m.Elif(found):
            m.d.sync += coming.eq(coming - 1)
        with m.If(step):
            m.d.sync += waiting.held.eq(0)
        with m.Switch(state):
            with m.Case(_State.CLEAR):
                m.d.comb += will_step.eq(1)
                with m.If(wait == 0):
                    m.d.sync += state.eq(_State.COLLECT)
            with m.Case(_State.COLLECT):
                with m.If(self.logit.valid):
                    m.d.sync += [waiting.held.eq(1), count.eq(count + (count != slots))]
                with m.If(self.finish):
                    m.d.sync += [wait.eq(drain), state.eq(_State.DRAIN)]
            with m.Case(_State.DRAIN):
                with m.If(wait == 0):
                    m.d.sync += [wait.eq(3), state.eq(Mux(ranked, _State.HEAD, _State.DONE))]
            with m.Case(_State.HEAD):
                with m.If(~step & (wait == 0)):
                    with m.If(coming == found):
                        m.d.comb += feed.eq(1)
                        m.d.sync += [coming.eq(count), wait.eq(_BEST + 1),
                                     state.eq(_State.SCALE)]
                    with m.Else():
                        m.d.comb += will_step.eq(1)
            with m.Case(_State.SCALE):
                with m.If(wait == 0):
                    m.d.sync += [largest.eq(item_scaled), seen.eq(0), drawing.eq(~nucleus),
                                 state.eq(_State.TURN)]
            with m.Case(_State.TURN):
                with m.If(found & (coming <= run.top_k)):
                    m.d.comb += feed.eq(1)
                    m.d.sync += wait.eq(_ROUND - 3)
                with m.Elif(~step & (wait == 0)):
                    with m.If(coming == 0):
                        m.d.sync += [coming.eq(count), wait.eq(_BEST + 1 - _ROUND),
                                     state.eq(Mux(drawing, _State.DRAW, _State.SUM))]
                    with m.Else():
                        m.d.comb += will_step.eq(1)
            with m.Case(_State.SUM):
                with m.If(wait == 0):
                    m.d.comb += will_step.eq(1)
                    m.d.sync += [total.eq(seen), limiting.eq(1), seen.eq(0),
                                 wait.eq(8), state.eq(_State.LIMIT)]
            with m.Case(_State.LIMIT):
                with m.If(wait == 0):
                    m.d.sync += [limit.eq(Cat(product[:16].any(), product[16:])),
                                 limiting.eq(0), drawing.eq(1), state.eq(_State.TURN)]
            with m.Case(_State.DRAW):
                with m.If(wait == 0):
                    m.d.sync += state.eq(_State.DONE)
            with m.Case(_State.DONE):
                m.d.sync += [self.done.eq(1), state.eq(_State.IDLE)]

        with m.If(self.start):
            m.d.sync += [state.eq(_State.CLEAR), flow.eq(0), waiting.held.eq(0), count.eq(0),
                         some.eq(0), over.eq(0), drawing.eq(0), limiting.eq(0),
                         wait.eq(_Cell.MAX + 2), self.done.eq(0)]
        return m

    def _scale(self, m, value, factor):
        """32 bits signed * 16 bits, from two products; and it >> inv_t_shift, rounded, saturated.

        product: 4 cycles after value, 48 bits signed. scaled: 10 cycles after it, 30 bits signed.
        """
        parts = []
        for name, part in (("low", value[:16]), ("high", value[16:].as_signed())):
            m.submodules[f"multiply_{name}"] = multiplier = Multiplier()
            m.d.comb += [multiplier.a.eq(part), multiplier.b.eq(factor)]
            parts.append(multiplier.p)
        low, high = parts
        # |value * factor| < 2**31 * 2**16; the lower product is not negative
        product = Signal(signed(48), reset_less=True)
        m.d.sync += product.eq(Cat(low[:16], (high + low[16:32])[:32]))

        # One more bit below, so that the rounding bit survives the shift, also by 0
        shift = self.run.inv_t_shift
        shifted = [Signal(signed(width), name=f"shifted_{i}", reset_less=True)
                   for i, width in enumerate((49, 34, 34))]
        wide = shifted[0]
        m.d.sync += [wide.eq(Mux(shift[4], (product << 1) >> 16, product << 1)),
                     shifted[1].eq(wide >> Cat(Const(0, 2), shift[2:4])),
                     shifted[2].eq(shifted[1] >> shift[:2])]
        # Saturated if there are bits beyond the 34, of which the last shift takes up to 3, or if
        # the rounded value has more than 30
        beyond = Signal(3, reset_less=True)
        negative = Signal(4, reset_less=True)
        rounded = Signal(signed(33), reset_less=True)
        late = Signal(signed(30), reset_less=True)
        over = Signal(reset_less=True)
        scaled = Signal(signed(30), reset_less=True)
        outside = wide[33:48] ^ wide[48].replicate(15)
        top = rounded[29:]
        m.d.sync += [
            negative.eq(Cat(wide[48], negative)),
            beyond.eq(Cat((outside >> Cat(Const(0, 2), shift[2:4])).any(), beyond)),
            rounded.eq((shifted[2] + 1) >> 1),
            late.eq(rounded), over.eq(beyond[2] | ~(top.all() | ~top.any())),
            scaled.eq(Mux(over, Mux(negative[3], -1 << 29, (1 << 29) - 1), late))]
        return product, scaled

    def _noise(self, m, token, flow, distance):
        """Gumbel noise of a token, 21 cycles after it; 2**-(distance mod 4096), 3 after it.

        Both read the ROM, at different times. What is hashed goes through one pipeline twice: one
        sum a stage, the exclusive ors before it. The key is hashed there as well, in the 12 cycles
        after ``start``.
        """
        key = Signal(32, reset_less=True)
        keying = Signal(2 * _AGAIN + 1)
        m.d.sync += keying.eq(Cat(self.start, keying[:-1]))
        x, a, b, c, d, e, v = (Signal(32, name=n, reset_less=True) for n in "xabcdev")
        # ~x + (x << 15) is ~a: a difference takes no inverters before its carry chain
        y, z, mixed = ~a ^ (~a >> 12), b ^ (b >> 4), e ^ (e >> 16)
        m.d.sync += [x.eq(token ^ key), a.eq(x - (x << 15)[:32]), b.eq(y + (y << 2)),
                     c.eq(z + (z << 3)), d.eq(z << 11), e.eq(c + d)]
        with m.If(flow[_AGAIN]):
            m.d.sync += x.eq(mixed)
        with m.If(keying[_AGAIN]):
            m.d.sync += x.eq(mixed ^ self.position)
        with m.If(keying[0]):
            m.d.sync += x.eq(self.run.seed)
        with m.If(keying[2 * _AGAIN]):
            m.d.sync += key.eq(mixed)
        with m.If(flow[2 * _AGAIN]):
            m.d.sync += v.eq(mixed)

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
