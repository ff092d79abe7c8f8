"""A lane of the array: one activation memory, W multipliers, dot and broadcast accumulators."""
from amaranth import Array, Cat, DomainRenamer, Module, Mux, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from ..lib.fanout import near
from ..signatures import ActWrite, Weights
from ..lib.pipe import reg
from ..tech.cells import GatedAdder, ProductPair
from ..tech.generic import technology_of
from .softmax import SoftmaxUnit, write_latency


def lane_schedule(config: Config) -> dict[str, tuple[object, int]]:
    """Control fields of a lane: name -> (shape, cycle).

    The cycle is when the field stands in lane 0's register, counted from the cycle in which the
    issue stage presents it; lane k sees everything k cycles later. Beats stand there in cycle
    :data:`BEAT_CYCLE`.
    """
    tree = ceil_log2(config.W)
    scored = 14 + tree + write_latency(config)
    block, slice_ = range(Config.SUM_BLOCKS), range(config.acc_slots)
    return {
        "shift": (6, 1),                             # constant during an instruction
        "s_addr": (range(config.score_depth), 1),    # score to read
        "m_block": (block, 2),
        "x_addr": (range(config.act_words), 7),      # activation word to read
        "sel_p": (1, 9),                             # multiply by the probability instead
        "sum_en": (1, 8), "sum_keep": (1, 8), "sum_read": (1, 8), "sum_block": (block, 8),
        "dot_keep": (1, 13 + tree),                   # add to what is there
        "acc_addr": (slice_, 10),                    # slice to read; to drain: DRAIN_LATER
        "acc_keep": (1, 10),                         # add to what is there; not in dot mode
        "acc_to": (slice_, 13), "acc_en": (1, 13),    # slice to write
        "dr_en": (1, 14), "dr_sel": (range(config.sv_columns), 14),
        "res_en": (1, 14 + tree), "res_kind": (2, 14 + tree),
        "sc_en": (1, scored), "sc_addr": (range(config.score_depth), scored),
        "sc_from": (range(config.P), scored),        # the first lane that sees the key,
        "sc_until": (range(config.P), scored),       # and the last one, or one beyond all
        "sc_first": (1, scored), "sc_block": (block, scored),
        "sc_last": (range(config.P), scored),        # last lane with a query
    } | ({
        "raw": (1, 1),                               # scores are probabilities, or shall leave
        "fill": (1, 9),                              # multiply by 4 what is for this lane
        "sc_keep": (1, scored),                      # the score as it is, and the maximum
    } if config.gemm else {}) | ({
        "phi": (signed(8), 1), "window": (2, 1),     # constant from a QK to the end of its SVs
        "assumed": (1, 2),                           # the maximum is phi, whatever it is
        "sc_end": (1, scored),                       # the block's last key
    } if config.unified else {}) | ({
        "own_part": (1, 10),                         # of the beat the part of this lane of a pair
        "sc_paired": (1, scored),                    # of a pair's scores the first lane's count
    } if config.lane_pairs else {}) | ({
        "score_cap": (Config.CAP_BITS, 1),           # as shift
    } if config.softcap else {})


BEAT_CYCLE = 10         #: cycle in which the beat stands in lane 0's register
DRAIN_LATER = 3         #: cycles after the rest of a drain's control to present its ``acc_addr``

#: What all accumulators of a lane hear at once; on a chip every two have their own registers.
COLUMN_CONTROL = ("sel_p", "acc_en", "acc_keep", "acc_addr", "acc_to", "dr_en", "dr_sel")
#: What the sums of the probabilities hear, from registers beside them.
SUM_CONTROL = ("sum_en", "sum_keep", "sum_read", "sum_block")


def result_cycle(config: Config) -> int:
    """Cycle in which lane 0 presents a row's result."""
    return lane_schedule(config)["res_en"][1] + 1


def score_cycle(config: Config) -> int:
    """Cycle in which lane 0 has a score to be written."""
    return lane_schedule(config)["sc_en"][1]


def LaneControl(config: Config) -> data.StructLayout:
    """The control fields that travel from lane to lane."""
    return data.StructLayout({name: shape for name, (shape, _) in lane_schedule(config).items()})


class Lane(wiring.Component):
    """One token lane.

    Dot mode (LINEAR, QK): ``acc = sum(beat * x)`` over the beats of a row by an adder tree.
    Broadcast mode (SV): the ``sv_columns`` accumulators of a slice, one for every ``sv_cycles``
    columns, take ``beat * p``, p a probability of this lane's SoftmaxUnit; 16 slices in LUTRAM.
    With ``config.lane_pairs`` ``sv_cycles`` neighbouring lanes may be for one query head: they take
    the same queries, and in SV each takes the part of the beat that is its place among them.
    The first adders of both are those of :class:`.ProductPair`.
    Source: parallel and broadcasting PEs of MEADOW, arXiv:2503.11663, section IV, on the same
    multipliers.
    Golden: :mod:`.tiling_engine_golden`.
    Timing: rigid, a beat a cycle; a field of ``c`` acts in the cycle that :func:`lane_schedule`
    gives, and leaves on ``c_out``, like beat and act write, one cycle after it came.

    Parameters
    ----------
    config : Config
    index : int
        Number of the lane, 0..P-1.
    attention : str
        Clock domain of what only QK and SV use.

    Members
    -------
    c, c_out : LaneControl        Control chain.
    beat, beat_out : Weights      Weight chain.
    act, act_out : ActWrite       Write chain of the activation memories.
    result : Out(signed(45))      0 except in the cycle of a result: lanes are OR-ed together.
    saturated : Out(1)            A score of this lane was, see :class:`.SoftmaxUnit`.
    missed : Out(1)               Only with ``config.unified``, likewise.
    """

    def __init__(self, config: Config, *, index: int, attention: str = "sync"):
        self.config, self.index, self.attention = config, index, attention
        if index not in range(config.P):
            raise ValueError(f"index must be in 0..{config.P - 1}, not {index!r}")
        # Which of the lanes of a head it is, and which head's.
        self.head, self.part = divmod(index, config.sv_cycles) if config.lane_pairs else (index, 0)
        super().__init__({
            "c": In(LaneControl(config)), "c_out": Out(LaneControl(config)),
            "beat": In(Weights(config)), "beat_out": Out(Weights(config)),
            "act": In(ActWrite(config)), "act_out": Out(ActWrite(config)),
            "result": Out(signed(Config.ACC_BITS)),
            "saturated": Out(1),
        } | ({"missed": Out(1)} if config.unified else {}))

    def elaborate(self, platform):
        m = Module()
        config, W = self.config, self.config.W
        c = near(m, self.c, name="c")
        beat = reg(Weights(config), "beat_reg")
        m.d.sync += beat.eq(self.beat)
        m.d.comb += [self.c_out.eq(c), self.beat_out.eq(beat)]
        with_sum = range(0, W, config.sv_cycles)    # columns with an accumulator
        control = {i: c for i in with_sum}          # what they hear
        if technology_of(platform).far_wires:
            for k in range(0, config.sv_columns, 2):
                two = near(m, self._part(COLUMN_CONTROL), name=f"columns_{k // 2}")
                control |= {i: two for i in with_sum[k:k + 2]}
        softmax = SoftmaxUnit(config)
        m.submodules.softmax = DomainRenamer(self.attention)(softmax)

        # One operand register: the activation or, in the columns of SV, the probability.
        found = self._activations(m, c.x_addr)
        x = [reg(signed(18), f"x{i}") for i in range(W)]
        for i in range(W):
            m.d.sync += x[i].eq(found[i])
        for i in with_sum:
            with m.If(control[i].sel_p):
                m.d.sync += x[i].eq(softmax.p)
        if config.gemm:
            with m.If(c.fill):
                m.d.sync += [x[i].eq(4 * (i == self.index)) for i in range(W)]
        pairs, taken = [], [beat[i] for i in range(W)]
        if self.part:
            for i in with_sum:
                taken[i] = Mux(c.own_part, beat[i + self.part], beat[i])
        for i in range(0, W, 2):
            m.submodules[f"pair{i // 2}"] = pair = ProductPair()
            m.d.comb += [pair.a0.eq(x[i]), pair.b0.eq(taken[i]),
                         pair.a1.eq(x[i + 1]), pair.b1.eq(taken[i + 1])]
            pairs.append(pair)
        acc = self._dot(m, pairs, c.dot_keep)
        drained = self._drain(m, c, {
            i: (self._accumulate(m, i, pairs[i // 2], heard), heard)
            for i, heard in control.items()})
        self._scores(m, c, softmax, acc)

        result = reg(signed(Config.ACC_BITS), "result_reg")
        m.d.sync += result.eq(0)
        with m.If(c.res_en):
            with m.Switch(c.res_kind):
                with m.Case(0):
                    m.d.sync += result.eq(acc)
                with m.Case(1):
                    m.d.sync += result.eq(softmax.total)
                with m.Default():
                    m.d.sync += result.eq(drained)
        m.d.comb += self.result.eq(result)
        return m

    def _part(self, names) -> data.View:
        """These fields of the control."""
        layout = data.StructLayout({name: lane_schedule(self.config)[name][0] for name in names})
        return data.View(layout, Cat(self.c[name] for name in names))

    def _activations(self, m: Module, address) -> list:
        """The activation memory, written from the chain, and the values of a word, 3 cycles later.
        """
        config, W = self.config, self.config.W
        act = reg(data.StructLayout({
            "valid": 1, "lane": range(config.P), "mask": W, "addr": range(config.act_words),
            "data": data.ArrayLayout(signed(Config.X_BITS), 4),
            **({"paired": 1} if config.lane_pairs else {})}), "act_reg")
        for name in act.shape().members:
            m.d.sync += act[name].eq(getattr(self.act, name))
            m.d.comb += getattr(self.act_out, name).eq(act[name])
        m.submodules.acts = acts = memory.Memory(
            shape=data.ArrayLayout(signed(Config.X_BITS), W), depth=config.act_words, init=[],
            attrs=NO_RW_CHECK)          # an instruction never reads what it writes
        wr, rd = acts.write_port(granularity=1), acts.read_port()
        # Registers of the memory's own on both sides: it is spread over many block RAMs.
        here, words, mask = (reg(like.shape(), name) for like, name in (
            (wr.addr, "act_addr"), (act.data, "act_data"), (act.mask, "act_mask")))
        found = [reg(signed(Config.X_BITS), f"found{i}") for i in range(W)]
        # Whether something is for this lane is known as soon as it stands in the lane's register, a
        # bit for each four columns.
        m.d.sync += [here.eq(act.addr), words.eq(act.data)]

        def is_mine():
            alone = self.act.lane == self.index
            return Mux(self.act.paired, self.act.lane == self.head, alone) \
                if config.lane_pairs else alone
        for i in range(0, W, 4):
            mine = near(m, self.act.valid & is_mine(), name=f"act_mine_{i // 4}")
            m.d.sync += mask[i:i + 4].eq(act.mask[i:i + 4] & mine.replicate(4))
        m.d.comb += [rd.addr.eq(address), wr.addr.eq(here), wr.en.eq(mask)]
        for i in range(W):
            m.d.comb += wr.data[i].eq(words[i % 4])
            m.d.sync += found[i].eq(rd.data[i])
        return found

    def _dot(self, m: Module, pairs: list, keep):
        """Adder tree, a register a level, then the accumulator."""
        level, width = 0, self.config.weight_bits + Config.X_BITS + 1
        terms = [reg(signed(width), f"sum{level}_{i}") for i in range(len(pairs))]
        m.d.sync += [term.eq(pair.r) for term, pair in zip(terms, pairs, strict=True)]
        while len(terms) > 1:
            level, width = level + 1, width + 1
            sums = [reg(signed(width), f"sum{level}_{i}") for i in range(len(terms) // 2)]
            for i, s in enumerate(sums):
                m.d.sync += s.eq(terms[2 * i] + terms[2 * i + 1])
            terms = sums
        acc = reg(signed(Config.ACC_BITS), "acc")
        m.submodules.accumulate = accumulate = GatedAdder(Config.ACC_BITS)
        m.d.comb += [accumulate.a.eq(acc), accumulate.keep.eq(keep),
                     accumulate.b.eq(terms[0])]
        m.d.sync += acc.eq(accumulate.o)
        return acc

    def _accumulate(self, m: Module, i: int, pair: ProductPair, heard):
        """The slices of column i and the one that is read, a register; heard: the control.

        Read in cycle 10, added in the pair, written in cycle 13; the LUTRAM shows the new value in
        cycle 14, ACC_TURN cycles later.
        """
        base, broadcast = reg(signed(Config.PV_BITS), f"base{i}"), reg(1, f"broadcast{i}")
        m.submodules[f"pv{i}"] = pv = memory.Memory(
            shape=signed(Config.PV_BITS), depth=self.config.acc_slots, init=[])
        pv_wr, pv_rd = pv.write_port(domain=self.attention), pv.read_port(domain="comb")
        m.d[self.attention] += base.eq(pv_rd.data)
        m.d.sync += broadcast.eq(heard.sel_p)
        m.d.comb += [pv_rd.addr.eq(heard.acc_addr), pv_wr.addr.eq(heard.acc_to),
                     pv_wr.en.eq(heard.acc_en), pv_wr.data.eq(pair.r), pair.c.eq(base),
                     pair.keep.eq(heard.acc_keep), pair.broadcast.eq(broadcast)]
        return base

    def _drain(self, m: Module, c, columns: dict):
        """One value of a slice: four columns a step, in cycles 14 and 15; it stays until the next.

        columns: value and control of each.
        """
        values, heard = zip(*columns.values(), strict=True)
        groups = []
        for i in range(0, len(values), 4):
            some = reg(signed(Config.PV_BITS), f"group{i // 4}")
            with m.If(heard[i].dr_en):
                m.d[self.attention] += some.eq(Array(values[i:i + 4])[heard[i].dr_sel[:2]])
            groups.append(some)
        if len(groups) == 1:
            return groups[0]
        drained, group = reg(signed(Config.PV_BITS), "drained"), reg(range(len(groups)), "group")
        with m.If(c.dr_en):
            m.d[self.attention] += group.eq(c.dr_sel[2:])
        m.d[self.attention] += drained.eq(Array(groups)[group])
        return drained

    def _scores(self, m: Module, c, softmax: SoftmaxUnit, acc) -> None:
        """What the softmax hears: its tables' control from registers beside it."""
        masked, used = reg(1, "masked"), reg(1, "used")
        block = reg(softmax.block.shape(), "block")
        sums = near(m, self._part(SUM_CONTROL), name="sums")
        has_query = self.c.sc_last >= self.index
        if self.part:
            has_query &= ~self.c.sc_paired
        m.d.sync += [masked.eq((self.c.sc_from > self.index) | (self.c.sc_until < self.index)),
                     used.eq(has_query),
                     block.eq(Mux(self.c.sc_en, self.c.sc_block, self.c.m_block))]
        if self.config.gemm:
            m.d.comb += [softmax.raw.eq(c.raw), softmax.w_keep.eq(c.sc_keep)]
        if self.config.unified:
            m.d.comb += [softmax.phi.eq(c.phi), softmax.window.eq(c.window),
                         softmax.assumed.eq(c.assumed), softmax.w_end.eq(c.sc_end),
                         self.missed.eq(softmax.missed)]
        if self.config.softcap:
            m.d.comb += softmax.cap.eq(c.score_cap)
        m.d.comb += [
            softmax.acc.eq(acc), softmax.shift.eq(c.shift),
            softmax.w_en.eq(c.sc_en), softmax.w_addr.eq(c.sc_addr),
            softmax.w_first.eq(c.sc_first), softmax.w_masked.eq(masked),
            softmax.w_used.eq(used), self.saturated.eq(softmax.saturated),
            softmax.r_addr.eq(c.s_addr), softmax.block.eq(block),
            *(getattr(softmax, name).eq(sums[name]) for name in SUM_CONTROL),
        ]
