"""SoftmaxUnit: scores in, probabilities out, for one lane; nothing of it leaves the lane."""
from amaranth import C, Cat, Mux, Signal, signed
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from ..lib.fanout import near
from ..lib.saturate import beyond, limit
from ..fixed import EXP2_TABLE
from ..tech.cells import GatedAdder
from ..lib.pipe import Pipe, Piped, Timed, delay, kept, mix, mux, reg
from .softcap import SoftCap, cap_cycles
from .softmax_golden import MASKED, SCORE_FRACTION, WINDOWS


def write_latency(config: Config) -> int:
    """Cycles from a dot product to the control that belongs to its score."""
    return 3 + cap_cycles(config)


class SoftmaxUnit(Piped):
    """Score memory, running maximum, 2^x and sum of a lane.

    Write side (QK): a dot product becomes a score, ``round(acc / 2**shift)`` saturated to 18 bits
    but above MASKED, capped or not, is stored and takes part in the maximum of its block. Read side
    (SV): a score becomes the probability ``2**(score - maximum)``, u1.15, and is added to the sum
    of its block. With ``config.unified`` the maximum may be a constant, which takes the place of a
    block's own where that lies in the window below it.

    Source: deferred normalisation and one shared maximum as in FlashDecoding++, arXiv:2311.01282,
    section 3; the maximum is exact by default, because the row stays on the chip.
    Golden: :mod:`.softmax_golden`, bit-exact.
    Timing: rigid, one score and one probability a cycle. acc in cycle 0 meets its ``w_*`` in cycle
    3 (``write_latency``, with ``config.softcap`` :func:`.cap_cycles` more) and can be read 4 cycles
    later (``turn``). A block's scores follow each other at once, or after those of other blocks 5
    cycles later or more. r_addr in cycle 0 meets its block in cycle 1 and gives p in cycle
    ``latency``; its ``sum_*`` are due a cycle before, and those of one block at least 2 cycles
    apart.

    Parameters
    ----------
    config : Config

    Members
    -------
    acc : In(signed(45))          Dot product.
    shift : In(6)                 Constant while scores are in flight.
    cap : In(16)                  Only with ``config.softcap``; likewise. Factor of the soft cap
                                  (:class:`.SoftCap`), 0: there is none.
    w_en, w_masked, w_first : In(1)  Store; store MASKED instead; first key of the block.
    w_used : In(1)                A query is in the lane: its saturations count.
    saturated : Out(1)            A visible score was, 2 cycles ago (``SATURATED_LATENCY``).
    w_addr, r_addr : In(range(score_depth))
    block : In(range(16))         Of the score that is stored (w_en) or was read.
    p : Out(16)                   0..32768.
    sum_en, sum_keep : In(1)     Add p to the block's sum; to what it was (else 0).
    sum_read : In(1)              Copy the block's sum to ``total`` (a cycle later), at least 2
                                  cycles after its last ``sum_en``.
    sum_block : In(range(16))
    total : Out(28)               At most 4096 * 32768 = 2**27.
    w_keep, raw : In(1)           Only with ``config.gemm``. The score is stored as it is and the
                                  maximum stays; p is not that of the score read, but its upper 16
                                  bits + 32768.
    w_end : In(1)                 Only with ``config.unified``, as all below. With w_en: the last
                                  key of the block; another's first comes 5 cycles later or more.
    phi, window : In(signed(8)), In(2)   See :func:`.softmax_golden.of_field`; constant from the
                                  first score that is stored to the last one that is read.
    assumed : In(1)               With the block of a score that is read: the maximum is phi. Else
                                  it is what w_end has found, or the exact one.
    missed : Out(1)               The block's maximum is not phi, though there is a window and a
                                  query, ``MISSED_LATENCY`` cycles after w_end; a cycle before, what
                                  stands for the maximum is in its table.
    """

    SATURATED_LATENCY = 2   #: from w_en to ``saturated``
    MISSED_LATENCY = 6      #: from w_end to ``missed``

    def __init__(self, config: Config):
        self.config = config
        self.write_latency = write_latency(config)
        self.turn = self.write_latency + 4
        block = range(Config.SUM_BLOCKS)
        super().__init__({
            "acc": In(signed(Config.ACC_BITS)), "shift": In(6),
            "w_en": In(1), "w_masked": In(1), "w_first": In(1), "w_used": In(1),
            "saturated": Out(1),
            "w_addr": In(range(config.score_depth)), "r_addr": In(range(config.score_depth)),
            "block": In(block),
            "p": Out(16),
            "sum_en": In(1), "sum_keep": In(1), "sum_read": In(1), "sum_block": In(block),
            "total": Out(28),
        } | ({"w_keep": In(1), "raw": In(1)} if config.gemm else {})
          | ({"w_end": In(1), "phi": In(signed(8)), "window": In(2), "assumed": In(1),
              "missed": Out(1)} if config.unified else {})
          | ({"cap": In(Config.CAP_BITS)} if config.softcap else {}))

    def stages(self, pipe: Pipe) -> None:
        m, bits = pipe.m, Config.SCORE_BITS

        # acc / 2**shift in three steps: by eights, by ones with the rounding bit kept, round.
        # One bit below the binary point is kept, hence acc << 1.
        coarse = reg(signed(Config.ACC_BITS + 1), "coarse")
        fine_by = Signal(3, reset_less=True)
        widened = Signal(signed(Config.ACC_BITS + 1))
        m.d.comb += widened.eq(self.acc << 1)
        m.d.sync += coarse.eq(widened >> Cat(C(0, 3), self.shift[3:]))
        m.d.sync += fine_by.eq(self.shift[:3])
        fine = reg(signed(bits + 2), "fine")            # score with one more bit each side
        # A value that fits 1 + bits after the shift by up to 7 fits 8 + bits before it.
        shifted = Signal(signed(bits + 8))
        m.d.comb += shifted.eq(coarse[:bits + 8].as_signed() >> fine_by)
        over = Signal(reset_less=True)
        m.d.sync += [fine.eq(shifted[:bits + 2]),
                     over.eq(beyond(shifted, bits + 1) | beyond(coarse, bits + 8))]
        negative = Signal(reset_less=True)
        m.d.sync += negative.eq(coarse[-1])
        score = reg(signed(bits), "score")
        rounded = Signal(signed(bits + 2))              # (fine + 1) >> 1 may be 2**17: clamp
        m.d.comb += rounded.eq((fine + 1) >> 1)
        above = reg(1, "above")                         # score is not what was computed, but hi
        m.d.sync += [score.eq(rounded), above.eq(0)]
        with m.If(over & negative):
            m.d.sync += score.eq(MASKED)
        # Only rounding up can leave the range.
        with m.Elif(over | (rounded[bits - 1] != rounded[bits])):
            m.d.sync += [score.eq(limit(0, bits)), above.eq(1)]
        later = cap_cycles(self.config)
        uncapped, score = score, delay(m, score, later, name="score").as_signed()
        above = delay(m, above, later, name="above")

        m.submodules.scores = scores = memory.Memory(
            shape=signed(bits), depth=self.config.score_depth, init=[],
            attrs=NO_RW_CHECK)          # QK writes, SV reads
        wr, rd = scores.write_port(), scores.read_port()
        # What is stored is in a register of its own, the maximum's candidate.
        candidate, coming, at = reg(signed(bits), "candidate"), reg(1, "coming"), \
            reg(wr.addr.shape(), "at")
        # A visible score stays above MASKED: all that is lower becomes the value next to it.
        lowest = Signal()
        m.d.comb += lowest.eq((score == MASKED) & ~self.w_keep if self.config.gemm else
                              score == MASKED)
        visible = score | lowest
        if self.config.softcap:
            m.submodules.softcap = softcap = SoftCap()
            m.d.comb += [softcap.x.eq(uncapped), softcap.factor.eq(self.cap)]
            visible = Mux(kept(m, "caps", self.cap.any()), softcap.o, visible)
        m.d.sync += [candidate.eq(Mux(self.w_masked, MASKED, visible)),
                     coming.eq(self.w_en), at.eq(self.w_addr)]
        limited, counts = reg(1, "limited"), reg(1, "counts")
        m.d.sync += [limited.eq(above | lowest),
                     counts.eq(self.w_en & self.w_used & ~self.w_masked),
                     self.saturated.eq(limited & counts)]
        m.d.comb += [wr.en.eq(coming), wr.addr.eq(at), wr.data.eq(candidate),
                     rd.addr.eq(self.r_addr)]

        # The maximum of the block at work is in a register; that of another block is fetched from
        # the table with the first of its scores. The larger of both is there before its turn comes,
        # so that the loop of a cycle is one comparison.
        m.submodules.maxima = maxima = memory.Memory(
            shape=signed(bits), depth=Config.SUM_BLOCKS, init=[])
        max_wr, max_rd = maxima.write_port(), maxima.read_port(domain="comb")
        fetched, larger, running = (reg(signed(bits), name)
                                    for name in ("fetched", "larger", "running"))
        block = reg(self.block.shape(), "block")
        another = self.block != block
        begins, resumes = reg(1, "begins"), reg(1, "resumes")
        exceeds = reg(1, "exceeds")
        # Not those of another lane, which are the same a cycle later.
        anew = near(m, delay(m, coming & begins, 1, name="anew"), name="anew")
        compare = near(m, delay(m, coming, 1, name="compare"), name="compare")
        updated = near(m, compare, name="updated")
        m.d.comb += [max_rd.addr.eq(self.block), max_wr.en.eq(updated), max_wr.data.eq(running),
                     max_wr.addr.eq(delay(m, block, 3, name="at_block"))]
        if self.config.gemm:
            m.d.comb += max_wr.en.eq(updated & ~delay(m, self.w_keep, 4, name="keep"))
        with m.If(self.w_en):
            m.d.sync += block.eq(self.block)
        m.d.sync += [
            begins.eq(self.w_first | another), resumes.eq(~self.w_first & another),
            fetched.eq(max_rd.data),
            exceeds.eq((candidate - fetched)[-1]),      # fetched > candidate
            larger.eq(Mux(exceeds & delay(m, resumes, 1, name="resumes"),
                          delay(m, fetched, 1, name="fetched").as_signed(),
                          delay(m, candidate, 1, name="candidate").as_signed()))]
        with m.If(anew | compare & (larger > running)):
            m.d.sync += running.eq(larger)
        peak = max_rd.data
        if self.config.unified:
            self._judge(m, running, block, max_wr)
            peak = Mux(self.assumed, self.phi << SCORE_FRACTION, peak)

        p = self._probability(pipe, rd, peak)
        total = reg(28, "total_reg")
        m.d.comb += self.total.eq(total)
        pipe.give(self, p=p)

        # The sum so far comes out of its table with p, and goes back in the same cycle.
        m.submodules.sums = sums = memory.Memory(shape=28, depth=Config.SUM_BLOCKS, init=[])
        m.submodules.add = add = GatedAdder(28)
        sum_wr, sum_rd = sums.write_port(), sums.read_port(domain="comb")
        m.d.comb += [sum_rd.addr.eq(self.sum_block),
                     add.a.eq(delay(m, sum_rd.data, 1, name="so_far")),
                     add.keep.eq(delay(m, self.sum_keep, 1, name="sum_keep")), add.b.eq(p.value),
                     sum_wr.addr.eq(delay(m, self.sum_block, 1, name="sum_at")),
                     sum_wr.en.eq(delay(m, self.sum_en, 1, name="sum_en")),
                     sum_wr.data.eq(add.o)]
        with m.If(self.sum_read):
            m.d.sync += total.eq(sum_rd.data)

    def _judge(self, m, running, block, max_wr) -> None:
        """When a block's maximum is final, phi takes its place in the table, or it was missed.

        running, block: in cycles 4 and 1 of the last key, then until the next one's. max_wr: taken
        in cycle 5.
        """
        ended = delay(m, self.w_en & self.w_end, self.MISSED_LATENCY - 1, name="ended", reset=True)
        used = delay(m, self.w_used, self.MISSED_LATENCY - 1, name="ended_used")
        apart, good = reg(signed(Config.SCORE_BITS + 2), "apart"), Signal()
        m.d.sync += apart.eq((self.phi << SCORE_FRACTION) - running)
        units = apart >> SCORE_FRACTION         # of log2; negative where phi is exceeded
        with m.Switch(self.window):
            for code, size in enumerate(WINDOWS):
                with m.Case(code):
                    m.d.comb += good.eq((units >= 0) & (units < size))
        with m.If(ended & good):
            m.d.comb += [max_wr.en.eq(1), max_wr.data.eq(self.phi << SCORE_FRACTION),
                         max_wr.addr.eq(block)]
        m.d.sync += self.missed.eq(ended & used & ~good & (self.window != 0))

    def _probability(self, pipe: Pipe, scores, peak) -> Timed:
        """2**(score - maximum), the exponent to 8 bits below the point; the 2 that the maximum gets
        beforehand rounds it.

        scores: read port, the address comes in cycle 0. peak: what stands for the maximum, in cycle
        1.
        """
        bits = Config.SCORE_BITS
        score = pipe.read(scores, pipe.at(0, self.r_addr)).reg("s", signed(bits))
        peak = (pipe.at(1, peak, name="maximum") + 2).reg("peak", signed(bits + 1))
        x8 = ((peak - score) >> 2).reg("x8", bits - 1)
        pipe.m.submodules.exp2 = exp2 = memory.Memory(shape=16, depth=256,
                                                      init=EXP2_TABLE.tolist())
        t = pipe.read(exp2.read_port(), x8[:8]).reg("t", 16)
        # Halved by eights, then by ones.
        whole = mux(x8[8:] > 17, 17, x8[8:]).reg("whole", 5).until(t.cycle)
        eighths = mix(lambda t, whole: (t << 1) >> Cat(C(0, 3), whole[3:]), t, whole).reg(
            "eighths", 17)
        halves = (eighths >> whole[:3]).reg("halves", 17)
        p = mux(score == MASKED, 0, (halves + 1) >> 1)
        if self.config.gemm:
            upper = mix(lambda score: score[bits - 16:] ^ 1 << 15, score)
            p = mux(pipe.at(0, self.raw, name="raw"), upper, p)
        return p.reg("p_reg", 16)
