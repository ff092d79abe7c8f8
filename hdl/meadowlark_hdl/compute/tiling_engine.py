"""TilingEngine: P lanes in a chain, fed with one beat a cycle."""
from amaranth import Const, Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..lib.collisions import IN_BLOCKS
from ..config import Config
from ..lib.pipe import Pipe, Timed, reg, struct
from ..signatures import ActWrite, Beat, Destination, ResultPort, RowScale, Weights
from ..sleep import nap, napping
from .lane import BEAT_CYCLE, Lane, LaneControl, lane_schedule, result_cycle, score_cycle
from .softcap import cap_cycles
from .softmax import SoftmaxUnit


def EngineControl(config: Config) -> data.StructLayout:
    """What the issue stage presents each cycle.

    lane: the lanes' fields. part: in SV, which of each ``sv_cycles`` values of the beat the column
    of the first one takes. to: of a row of results (lane.res_en). one (with ``config.gemm``): the
    beat is a 1 and zeros, whatever the tile says; ``part`` is in FILL which of the keys of a beat.
    """
    parts = max(config.sv_cycles, config.spilled_keys if config.gemm else 0)
    return data.StructLayout({"lane": LaneControl(config), "part": range(parts),
                              "to": Destination(config)} | ({"one": 1} if config.gemm else {}))


def or_levels(config: Config) -> int:
    """Register levels of the tree that gathers the lanes' results, four at a time."""
    return -(-ceil_log2(config.P) // 2)


def missed_cycle(config: Config) -> int:
    """Cycle in which all lanes have told whether they missed a unified maximum."""
    return score_cycle(config) + SoftmaxUnit.MISSED_LATENCY + config.P


def first_result(config: Config) -> int:
    """Cycle in which lane 0's result leaves the engine, counted from its control."""
    return result_cycle(config) + or_levels(config)


class TilingEngine(wiring.Component):
    """P token lanes x W multipliers, token-parallel and head-sequential.

    Queries, scores and probabilities of a head stay in the lanes; only attention output leaves.
    A beat enters lane 0 and is handed from lane to lane, one a cycle: no wide fan-out, and the
    lanes' results leave one a cycle in lane order, gathered by an OR tree.

    Source: MEADOW, arXiv:2503.11663, sections III and IV (TPHS, parallel and broadcasting PEs).
    Golden: :mod:`.tiling_engine_golden`, :mod:`.softmax_golden`.
    Timing: rigid. Control in cycle 0 takes the beat of cycle ``BEAT_CYCLE - 1``, lane k's result
    leaves in cycle ``RESULT_CYCLE + k``. Rows with results start at least P cycles apart; others
    back to back.

    Parameters
    ----------
    config : Config
    sleep : bool
        Lanes and attention without work stand still, see :mod:`..sleep`.

    Members
    -------
    control : In(EngineControl)
    lanes, attending : In(range(P + 1)), In(1)
        Lanes in use, QK or SV in execution: from 3 cycles before an instruction's first control
        until the next one's. Of interest only to ``sleep``.
    beat : In(Beat)                     Of the tile buffer.
    scale : In(RowScale)                Row scale of the row whose result control (res_en) was
                                        presented 2 cycles ago.
    result : Out(ResultPort)
    act : In(ActWrite)                  From the vector unit; lane k's memory is written k + 2
                                        cycles later.
    clear : In(1)                       Sets saturations to 0.
    saturations : Out(32)               Visible scores that were saturated.
    missed : Out(1)                     Only with ``config.unified``: a lane's maximum was not the
                                        unified one, ``missed_cycle`` cycles after the control of
                                        its last key.
    """

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        self.RESULT_CYCLE = first_result(config)
        super().__init__({
            "control": In(EngineControl(config)),
            "lanes": In(range(config.P + 1)), "attending": In(1),
            "beat": In(Beat(config)), "scale": In(RowScale()),
            "result": Out(ResultPort(config)), "act": In(ActWrite(config)),
            "clear": In(1), "saturations": Out(32),
        } | ({"missed": Out(1)} if config.unified else {}))

    def elaborate(self, platform):
        m = Module()
        config, pipe = self.config, Pipe(m)
        control = self.control
        fields = {name: pipe.at(0, control.lane[name], name=name) for name in lane_schedule(config)}
        results, saturated = self._lanes(pipe, fields)

        # No flush takes the count away: a run that was aborted has one as well.
        saturations = Signal(32, reset_less=True)
        m.d.sync += saturations.eq(saturations + saturated)
        with m.If(self.clear):
            m.d.sync += saturations.eq(0)
        m.d.comb += self.saturations.eq(saturations)

        self._rows(pipe, fields)
        m.d.comb += self.result.payload.add.eq(1)
        m.d.comb += self.result.payload.acc.eq(_gather(m, results).as_signed())
        return m

    def _lanes(self, pipe: Pipe, fields: dict[str, Timed]):
        """The chain of lanes: (result of each, saturated scores).

        The number of lanes that saturated the score of one key travels along them.
        """
        m, config, P = pipe.m, self.config, self.config.P
        # Into lane 0: the field stands in its register in cycle n, so it arrives in cycle n - 1.
        chain = Signal(LaneControl(config))
        for name, (_, cycle) in lane_schedule(config).items():
            m.d.comb += chain[name].eq(fields[name].at(cycle - 1))
        # What an instruction leaves in a lane arrives there in the order of the lanes, and so does
        # the first control of the next: the gates open and close in that order too.
        attention = nap(m, "attention", self.attending, sleep=self.sleep,
                        linger=P + 32 + cap_cycles(config))
        beat, act, results = self._beat(pipe, fields), self.act, []
        saturated = missed = Const(0, 1)
        for k in range(P):
            lane = Lane(config, index=k, attention=attention)
            in_use = pipe.at(0, self.lanes > k, name=f"in_use{k}").at(k)
            m.submodules[f"lane{k}"] = napping(m, lane, f"lane{k}", in_use, sleep=self.sleep)
            m.d.comb += [lane.c.eq(chain), lane.beat.eq(beat)]
            for name in act.signature.members:
                m.d.comb += getattr(lane.act, name).eq(getattr(act, name))
            chain, beat, act = lane.c_out, lane.beat_out, lane.act_out
            results.append(lane.result)
            counted = reg(range(k + 2), f"saturated{k}")
            m.d.sync += counted.eq(saturated + lane.saturated)
            saturated = counted
            if config.unified:
                some = reg(1, f"missed{k}")
                m.d.sync += some.eq(missed | lane.missed)
                missed = some
        if config.unified:
            m.d.comb += self.missed.eq(missed)
        return results, saturated

    def _beat(self, pipe: Pipe, fields: dict[str, Timed]):
        """What enters lane 0: in SV one value after the other stands in front of the column that
        has an accumulator.
        """
        m, config = pipe.m, self.config
        part = pipe.at(0, self.control.part, name="part").at(BEAT_CYCLE - 1)
        beat = Signal(Weights(config), name="beat_in")
        m.d.comb += [beat[i].eq(self.beat[i]) for i in range(config.W)]
        with m.Switch(part):
            for k in range(1, config.sv_cycles):
                with m.Case(k):
                    m.d.comb += [beat[i].eq(self.beat[i + k])
                                 for i in range(0, config.W, config.sv_cycles)]
        if config.gemm:
            with m.If(fields["fill"].at(BEAT_CYCLE - 1)):
                m.d.comb += [beat[i].eq(self.beat.as_value().word_select(
                    part * config.P + i, config.beat_bits).as_signed()) for i in range(config.P)]
            with m.If(pipe.at(0, self.control.one, name="one").at(BEAT_CYCLE - 1)):
                m.d.comb += [beat[i].eq(i == 0) for i in range(config.W)]
        return beat

    def _rows(self, pipe: Pipe, fields: dict[str, Timed]) -> None:
        """What belongs to the results of a row, and when they leave.

        Rows in flight wait for their results: written when their scale stands in its register,
        taken when lane 0's result leaves. Rows are ``row_cycles`` apart, 4 or
        more, and take at most 15 + 5 + 3 cycles, so 16 entries never fill; and where one goes
        stands until its scale is there.
        """
        m, control, P = pipe.m, self.control, self.config.P
        scale = pipe.at(2, self.scale, name="scale").reg("scale")
        to = reg(Destination(self.config), "to")
        with m.If(control.lane.res_en):
            m.d.sync += to.eq(control.to)
        row = struct(data.StructLayout({"to": Destination(self.config), "kind": 2,
                                        "scale": RowScale()}),
                     to=pipe.at(scale.cycle, to), kind=fields["res_kind"], scale=scale)
        m.submodules.rows = rows = memory.Memory(shape=row.value.shape(), depth=16, init=[],
                                                 attrs=IN_BLOCKS)
        wr, rd = rows.write_port(), rows.read_port()
        wp, rp = Signal(4), Signal(4)
        oldest = reg(row.value.shape(), "oldest")           # 3 cycles after the one before left
        m.d.sync += oldest.eq(rd.data)
        m.d.comb += [wr.addr.eq(wp), rd.addr.eq(rp), wr.data.eq(row.value),
                     wr.en.eq(fields["res_en"].at(row.cycle))]
        with m.If(wr.en):
            m.d.sync += wp.eq(wp + 1)
        # Not the same register as that of the lane which happens to be as late.
        head = fields["res_en"].until(self.RESULT_CYCLE - 2).near("head").value
        out = self.result.payload
        with m.If(head):
            m.d.sync += [rp.eq(rp + 1), out.to.eq(oldest.to), out.kind.eq(oldest.kind),
                         out.scale.eq(oldest.scale), out.lane.eq(0), self.result.valid.eq(1)]
        with m.Elif(out.lane == P - 1):
            m.d.sync += self.result.valid.eq(0)
        with m.Else():
            m.d.sync += out.lane.eq(out.lane + 1)


def _gather(m: Module, terms: list):
    """OR of the lanes, a register for each level of four."""
    level = 0
    while len(terms) > 1:
        merged = []
        for i in range(0, len(terms), 4):
            some = reg(len(terms[0]), f"result{level}_{i // 4}")
            value = terms[i]
            for term in terms[i + 1:i + 4]:
                value = value | term
            m.d.sync += some.eq(value)
            merged.append(some)
        terms, level = merged, level + 1
    return terms[0]
