"""ContextMatch equals its golden model, and takes the cycles that it says."""
import os

import cocotb
import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import recv, send, simulate, start
from draft_tables import write_tokens
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.token_memory import TokenMemory, TokenWrite
from meadowlark_hdl.draft.context_match import ContextMatch, Match
from meadowlark_hdl.draft.context_match_golden import LONGEST, match

CONFIG = Config(W=8, P=4, bus_bytes=2, context=128)


class WithTokens(wiring.Component):
    """The block and its memory, which the test writes."""

    def __init__(self, window: int):
        self.match = ContextMatch(CONFIG, window=window)
        members = self.match.signature.members
        super().__init__({"i": members["i"], "o": members["o"], "host": In(TokenWrite(CONFIG)),
                          "addr": Out(range(CONFIG.context))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.match, m.submodules.tokens = self.match, TokenMemory(CONFIG)
        tokens = m.submodules.tokens
        wiring.connect(m, wiring.flipped(self.host), tokens.host)
        wiring.connect(m, wiring.flipped(self.i), self.match.i)
        wiring.connect(m, self.match.o, wiring.flipped(self.o))
        m.d.comb += [tokens.addr.eq(self.match.addr), self.match.data.eq(tokens.data),
                     self.addr.eq(self.match.addr)]
        return m


def swept(tokens, window, found):
    """Tokens that the golden model looks at."""
    most = min(len(tokens) - 1, window)
    return len(tokens) - 1 - (found[0] - LONGEST) if found and found[1] == LONGEST else most


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def equals_the_golden_model(dut, stall):
    window = int(os.environ["WINDOW"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    seen = set()
    for k in range(60):
        # Ids that differ in one bit anywhere, few enough to come again.
        few = rng.permutation([0, *(1 << b for b in range(19))])[:int(rng.choice([1, 2, 3, 6]))]
        size = CONFIG.context if k == 0 else int(rng.integers(1, CONFIG.context + 1))
        text = rng.choice(few, size).tolist()
        if k % 3 == 0:                      # a copy far away: a match near the window's end
            copy = text[max(0, size - 1 - window):][:int(rng.integers(2, 6))]
            text[-len(copy):] = copy
        await write_tokens(dut, text)
        lengths = [size, *rng.integers(1, size + 1, 4).tolist(), *range(1, min(7, size + 1))]
        taken, given = [], []
        sender = cocotb.start_soon(send(dut, "i", lengths, stall, times=taken))
        got = await recv(dut, "o", len(lengths), stall, layout=Match(CONFIG), times=given)
        await sender
        for n, found in zip(lengths, got, strict=True):
            want = match(text[:n], window)
            seen.add(want[1] if want else 0)
            assert (found["length"], found["length"] and found["at"]) == (
                (want[1], want[0]) if want else (0, 0)), (text[:n], window)
        if not stall:
            for n, begin, end in zip(lengths, taken, given, strict=True):
                want = match(text[:n], window)
                assert end - begin == ContextMatch.LATENCY + swept(text[:n], window, want), n
            assert all(b - a == 1 for a, b in zip(given, taken[1:]))
    assert seen == {n for n in (0, 2, 3, 4) if n <= window}


@pytest.mark.parametrize("window", [1, 4, 50])
def test_context_match(window, seed):
    simulate(WithTokens(window), __name__, seed=seed, window=window)


def test_windows_that_cannot_be():
    with pytest.raises(ValueError, match="^window must be at least 1, not 0$"):
        ContextMatch(CONFIG, window=0)
    assert ContextMatch(CONFIG).window == CONFIG.context
