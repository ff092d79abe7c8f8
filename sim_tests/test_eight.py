"""Eight clients against one, in cycles of the chip: the golden model says what each pass draws, and
the cycle model how long it takes. ``EIGHT=32`` counts them in RTL as well, so many tokens of each,
and compares tokens and logits with those of each alone on the golden model."""
import os

import pytest
from meadowlark.compile.cycles import Machine
from meadowlark_boards import get_board
from meadowlark_hdl.control.sequencer_golden import Place, batch_pass, decode_pass, prompt_passes

import meadowlark as ml

PROMPTS = [f"Once upon a time there was a {what}" for what in (
    "dog", "cat", "boy", "girl", "bird", "tree", "fish", "bear")]
TOKENS = 32


class Clock:
    """Runs of a golden target, and the cycle of each event."""

    def __init__(self, chip):
        self.image, self.config, self.target = chip.image, chip.board.config, chip.target
        self.machine, self.regs = Machine(chip.image, chip.board), chip.image.model_regs
        self.longest = 0            # pass that several share

    @property
    def now(self):
        return self.machine.now

    def run(self, real, tokens, sampling, *, start_pos, max_new, **how):
        for p in prompt_passes(self.config, self.regs, start_pos, len(tokens), max_new > 0):
            self.machine.run(p)
        for k, event in enumerate(real(tokens, sampling, start_pos=start_pos, max_new=max_new,
                                       **how)):
            if k:
                self.machine.run(decode_pass(self.config, self.regs,
                                             start_pos + len(tokens) + k - 1))
            yield event

    def run_together(self, real, tokens, places, samplings, **how):
        placed = [Place(self.image.base(cache), position) for cache, position in places]
        for k, event in enumerate(real(tokens, places, samplings, **how)):
            if k % len(tokens) == 0:
                self.longest = max(self.longest, self.machine.run(batch_pass(
                    self.config, self.regs, placed, k // len(tokens)), len(tokens) - 1))
            yield event


@pytest.fixture
def chip():
    with ml.load("stories").on("golden", board=get_board("ulx3s_85f")) as chip:
        yield chip


def test_eight_against_one(chip, monkeypatch):
    """Together they get four times the tokens a second; one that joins seven others has its first
    token one pass and one chunk later than alone, at most."""
    def work(prompts, joins=()):
        """(cycles in all, from beginning to first token of the last one, the clock)."""
        clock, first = Clock(chip), {}
        with monkeypatch.context() as patch, chip.together(draft="off", parallel=8) as together:
            for name in ("run", "run_together"):
                real, timed = getattr(chip.target, name), getattr(clock, name)
                patch.setattr(chip.target, name, lambda *args, real=real, timed=timed, **how: timed(
                    real, *args, **how))
            options = dict(max_tokens=TOKENS, ignore_eos=True)
            texts = [together.begin(prompt, **options) for prompt in prompts]
            if joins:
                while any(text.tokens < 5 for text in texts):
                    assert together.step()
            began = clock.now
            texts += [together.begin(prompt, lambda step: first.setdefault("at", clock.now),
                                     **options) for prompt in joins]
            while together.step():
                pass
        assert [len(text.done.tokens) for text in texts] == len(texts) * [TOKENS]
        return clock.now, first.get("at", began) - began, clock
    alone, first, _ = work([], PROMPTS[-1:])
    eight, _, _ = work(PROMPTS)
    _, later, clock = work(PROMPTS[:-1], PROMPTS[-1:])
    print(f"one: {alone} cycles, first token {first}; eight: {eight}; joining seven: {later}, "
          f"longest shared pass {clock.longest}")
    assert 8 * alone >= 4 * eight
    # Its own prompt is one chunk; another's could be under way.
    assert later <= first + clock.longest + first


def alone(chip, prompt, count):
    """(token, CRC of its logits) of a text with nobody beside it."""
    with chip.together(draft="off") as together:
        text = together.begin(prompt, max_tokens=count, ignore_eos=True)
        while together.step():
            pass
    return [(event.token, event.crc) for event in text.run.events]


@pytest.mark.skipif(not os.environ.get("EIGHT"), reason="minutes; a part of `make long`")
def test_eight_against_one_counted(chip):
    """The same on the simulated chip, by its counter; each text is that of the golden model."""
    count, spent = int(os.environ["EIGHT"]), []
    wanted = [alone(chip, prompt, count) for prompt in PROMPTS]
    with ml.load("stories").on("sim", board=get_board("ulx3s_85f")) as chip:
        def counted(real):
            def run(*args, **how):
                yield from real(*args, **how)
                spent[-1] += chip.target.counters()["cycles"]
            return run
        for name in ("run", "run_together"):
            setattr(chip.target, name, counted(getattr(chip.target, name)))
        for prompts in (PROMPTS[:1], PROMPTS):
            spent.append(0)
            with chip.together(draft="off", parallel=8) as together:
                texts = [together.begin(prompt, max_tokens=count, ignore_eos=True)
                         for prompt in prompts]
                while together.step():
                    pass
            assert [[(event.token, event.crc) for event in text.run.events]
                    for text in texts] == wanted[:len(prompts)]
    print(f"one: {spent[0]} cycles; eight: {spent[1]}; {8 * spent[0] / spent[1]:.2f}x")
    assert count < TOKENS or 8 * spent[0] >= 4 * spent[1]
