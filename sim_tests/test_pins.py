"""The whole chip at its pins: SDRAM with its rules, UART, pad registers; tokens are bit-exact."""
import random
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.sampling import sampling
from meadowlark.run.prepare import Source
from meadowlark.run.targets import SimTarget, open_target
from meadowlark.sim import PinBoard, SimTransport, SimulationError, pins
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling, logits_crc
from meadowlark_hdl.memory.sdram_part import AS4C32M16SB_7
from random_model import random_model

ULX3S = get_board("ulx3s_85f")
#: A small core at another clock, with another chip and a quick UART: eight cycles a bit. One clock
#: for core and SDRAM, and two.
ONE = replace(
    ULX3S, name="small", clock_mhz=133.333,
    config=ULX3S.config.replace(W=8, P=4, bus_bytes=2, fifo_words=512, burst_words=128,
                                act_words=128, residual_values=1024, score_depth=256,
                                rope_pairs=512, tile_beats=64, prog_depth=256, context=128),
    memory=replace(ULX3S.memory, size_bytes=AS4C32M16SB_7.size_bytes),
    link=replace(ULX3S.link, baud=16_666_667),
    chip=replace(ULX3S.chip, part=AS4C32M16SB_7, clock_mhz=None, phase=1 / 2))
TWO = replace(
    ONE, clock_mhz=800 / 9, config=ONE.config.replace(bus_bytes=4, fifo_words=256, burst_words=64),
    link=replace(ULX3S.link, baud=11_111_111),
    chip=replace(ONE.chip, clock_mhz=400 / 3, phase=3 / 8))
CLOCKS = pytest.mark.parametrize("board", [ONE, TWO], ids=["one clock", "two clocks"])


@pytest.fixture(scope="module", params=[ONE, TWO], ids=["one clock", "two clocks"])
def target(request):
    with closing(SimTarget(request.param, pins=True)) as sim:
        yield sim


def test_tokens(target, tmp_path, seed):
    source = Source(str(random_model(tmp_path / "m", seed=seed, hidden=64, layers=2, heads=4,
                                     kv_heads=2, head_dim=16, ffn=96, vocab=200, context=96)),
                    target.sim.board)
    target.load(source)
    golden = GoldenModel(source.quantised, context=source.image.context)
    rng = np.random.default_rng(seed)
    for draw, length in ((Sampling(), 1), (Sampling(), 37), (sampling(temperature=0.9, seed=3), 9)):
        tokens = [0, *rng.integers(2, 200, length - 1).tolist()]
        # Left in the middle: what is on its way from memory may reach nobody.
        with closing(target.generate(tokens, draw, max_new=50, stop_ids=())) as events:
            for _ in zip(range(rng.integers(1, 4)), events):
                pass
        before = target.sim.counters()
        events = list(target.generate(tokens, draw, max_new=6, stop_ids=()))
        golden.forget()
        want = list(golden.generate(tokens, draw, max_new=6, stop_ids=()))
        assert [(e.token, e.crc) for e in events] == [(t, logits_crc(x)) for t, x in want]
        assert target.messages == 0
        after = target.sim.counters()
        core = target.counters()
        words = target.sim.board.config.bus_bytes // 2      # of the chip, in one of the core's
        assert after["read_words"] - before["read_words"] >= words * core["bus_read_words"] > 0
        assert after["write_words"] - before["write_words"] == words * core["bus_write_words"] > 0


def test_memory_through_the_uart(target, seed):
    rng = random.Random(seed)
    data, half = rng.randbytes(3000), target.sim.board.memory.size_bytes // 2
    step = target.sim.board.config.bus_bytes
    at = half + rng.randrange((half - 3000) // step) * step     # with the highest bit of a row
    done = []
    target.driver.write_memory(at, data, progress=lambda n, of: done.append(n))
    assert bytes(target.sim.memory[at:at + 3000]) == data and done[-1] == 3000
    assert target.driver.read_memory(at, 3000) == data
    assert target.driver.verify_memory(at, data) == []
    target.sim.memory[at + 77] ^= 1
    assert target.driver.verify_memory(at, data) == [0]


@CLOCKS
def test_a_broken_rule_stops_the_simulation(monkeypatch, board):
    """A chip with other needs than the controller was built for."""
    text = pins.pins_verilog(board)
    monkeypatch.setattr(pins, "pins_verilog", lambda *args: text)
    slower = replace(board.chip, part=replace(AS4C32M16SB_7, rcd_ns=40.0))
    with closing(PinBoard(replace(board, chip=slower))) as sim:
        with pytest.raises(SimulationError, match=r"READ after ACTIVATE: .* 40 ns are needed"):
            Driver(SimTransport(sim)).read_memory(0, 64)


@CLOCKS
def test_the_round_trip_at_the_pads(seed, board):
    """The chip's own pads read rightly within the range that the data sheet gives, not beyond."""
    data = random.Random(seed).randbytes(64)
    least, most = AS4C32M16SB_7.round_trip(board.chip.memory_mhz or board.clock_mhz,
                                           board.chip.phase)
    for ns, held in ((least - 0.05, False), (least + 0.05, True), (most - 0.05, True),
                     (most + 0.05, False)):
        with closing(PinBoard(board, round_trip=ns)) as sim:
            sim.memory[:64] = np.frombuffer(data, np.uint8)
            assert (Driver(SimTransport(sim)).read_memory(0, 64) == data) is held, ns


def test_boards_without_pins():
    with pytest.raises(UserError, match="^board virtual has no pins to simulate; give one with"):
        open_target("pins", get_board("virtual"))
