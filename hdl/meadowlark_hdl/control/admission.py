"""What is wrong with a run that is asked for."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..run_table import STOP_IDS
from ..signatures import ModelLayout, RunLayout
from .errors import Error
from .sequencer_golden import context_limit


class Admission(wiring.Component):
    """Refuses what the core cannot run.

    Timing: ``LATENCY`` cycles.

    Parameters
    ----------
    config : Config

    Members
    -------
    run, model : In(RunLayout()), In(ModelLayout)
    ready : In(1)       The memory is ready.
    error : Out(8)      :class:`.errors.Error`; NONE: the run can be.
    """

    LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"run": In(RunLayout()), "model": In(ModelLayout), "ready": In(1),
                          "error": Out(8)})

    def elaborate(self, platform):
        m = Module()
        config, run, model = self.config, self.run, self.model
        end, no_turns = Signal(14), Signal()
        drafts = run.draft_most != 0 if config.drafts else 0        # else they are none
        no_batch = (run.prompt > config.P) | (run.start_pos != 0) | (run.draft_most != 0)
        m.d.sync += [end.eq(run.start_pos + run.prompt), no_turns.eq(
            (run.batch & no_batch if config.batches else run.batch)
            | (run.draft_most >= config.P if config.drafts else 0))]
        wrong = {       # the first counts
            Error.NO_MODEL: model.blocks == 0,
            Error.NOT_READY: ~self.ready,
            Error.BAD_RUN: (run.prompt == 0) | (end > context_limit(config)) | no_turns,
            Error.BAD_MODEL: (model.head_log2 < config.W.bit_length() - 1)
            | (model.head_log2 > Config.MAX_HEAD_LOG2) | (model.group == 0),
            Error.BAD_SAMPLING: (run.top_k > config.topk) | (run.stop_count > STOP_IDS)
            | (run.batch | drafts) & (run.top_k != 0)}         # one sorted list
        error = Error.NONE
        for code, condition in reversed(wrong.items()):
            found = Signal(name=code.name.lower())
            m.d.sync += found.eq(condition)
            error = Mux(found, code, error)
        m.d.comb += self.error.eq(error)
        return m
