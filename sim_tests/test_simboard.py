"""The simulated board around a small stand-in core: data, timing, counters, cache."""
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from meadowlark.errors import UserError
from meadowlark.sim import SimBoard, SimulationError
from meadowlark.sim import build as building
from meadowlark_boards import BOARDS, Board, LinkInfo, MemoryTiming, get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.signatures import LogitPort, MemoryPort

COPY, READ, LOGITS = range(3)


class StandIn(wiring.Component):
    """Ten bytes a command: op, source, destination (3 bytes each, in bursts), count (2 bytes), and
    1 to write every other byte only.

    Copies bursts one by one, reads bursts as fast as commands are taken, or sends logits to the
    tap. One byte comes back: the exclusive or of the low bytes read (READ), else the op.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__({"mem": Out(MemoryPort(config)), "rx": In(stream.Signature(8)),
                          "tx": Out(stream.Signature(8)), "tap": Out(LogitPort())})

    def elaborate(self, platform):
        m = Module()
        mem, n = self.mem, self.config.burst_words
        command = Signal(80)
        op, source, target, count = (command[0:8], command[8:32], command[32:56], command[56:72])
        byte, at, word, xor = Signal(4), Signal(16), Signal(32), Signal(8)
        held = Signal(8 * self.config.bus_bytes * n)
        bits = 8 * self.config.bus_bytes
        m.d.comb += [mem.r_cmd.p.len.eq(n - 1), mem.w_cmd.p.len.eq(n - 1),
                     mem.w_data.p.strb.eq(Mux(command[72], 0x5555, 0xFFFF)),
                     mem.w_data.p.data.eq(held[:bits]),
                     mem.r_cmd.p.addr.eq((source + at) * n), mem.w_cmd.p.addr.eq((target + at) * n),
                     self.tap.row.eq(word), self.tap.value.eq(-3 * word - at)]
        with m.FSM():
            with m.State("COMMAND"):
                m.d.comb += self.rx.ready.eq(mem.ready)
                with m.If(self.rx.valid & self.rx.ready):
                    m.d.sync += [command.eq(Cat(command[8:], self.rx.payload)), byte.eq(byte + 1)]
                    with m.If(byte == 9):
                        m.d.sync += [byte.eq(0), at.eq(0), word.eq(0), xor.eq(0)]
                        m.next = "START"
            with m.State("START"):
                with m.Switch(op):
                    with m.Case(COPY):
                        m.next = "COPY"
                    with m.Case(READ):
                        m.next = "READ"
                    with m.Default():
                        m.next = "LOGITS"
            with m.State("COPY"):
                m.d.comb += mem.r_cmd.valid.eq(1)
                with m.If(mem.r_cmd.ready):
                    m.next = "FILL"
            with m.State("FILL"):
                m.d.comb += mem.r_data.ready.eq(1)
                with m.If(mem.r_data.valid):
                    m.d.sync += [held.eq(Cat(held[bits:], mem.r_data.payload)), word.eq(word + 1)]
                    with m.If(word == n - 1):
                        m.d.sync += word.eq(0)
                        m.next = "TO"
            with m.State("TO"):
                m.d.comb += mem.w_cmd.valid.eq(1)
                with m.If(mem.w_cmd.ready):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += mem.w_data.valid.eq(1)
                with m.If(mem.w_data.ready):
                    m.d.sync += [held.eq(held >> bits), word.eq(word + 1)]
                    with m.If(word == n - 1):
                        m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(mem.w_done):
                    m.d.sync += [at.eq(at + 1), word.eq(0)]
                    m.next = "COPY"
                    with m.If(at == count - 1):
                        m.next = "REPLY"
            with m.State("READ"):
                m.d.comb += [mem.r_cmd.valid.eq(at != count), mem.r_data.ready.eq(1)]
                with m.If(mem.r_cmd.valid & mem.r_cmd.ready):
                    m.d.sync += at.eq(at + 1)
                with m.If(mem.r_data.valid):
                    m.d.sync += [xor.eq(xor ^ mem.r_data.payload[:8]), word.eq(word + 1)]
                    with m.If(word == count * n - 1):
                        m.next = "REPLY"
            with m.State("LOGITS"):
                m.d.comb += self.tap.valid.eq(1)
                m.d.sync += word.eq(word + 1)
                with m.If(word == source[:16] - 1):
                    m.d.sync += [word.eq(0), at.eq(at + 1)]
                    with m.If(at == count - 1):
                        m.next = "REPLY"
            with m.State("REPLY"):
                m.d.comb += [self.tx.valid.eq(1), self.tx.payload.eq(command[0:8] ^ xor)]
                with m.If(self.tx.ready):
                    m.next = "COMMAND"
        return m


def command(op: int, source: int, target: int, count: int, sparse: int = 0) -> bytes:
    return (bytes([op]) + source.to_bytes(3, "little") + target.to_bytes(3, "little")
            + count.to_bytes(2, "little") + bytes([sparse]))


def small(bus_bytes: int, **memory) -> Board:
    timing = {"size_bytes": 1 << 20, "bytes_per_s": bus_bytes * 1e8, "latency_ns": 50,
              "page_bytes": 1024, **memory}
    return Board(name="small", title="stand-in", clock_mhz=100.0, link=LinkInfo(kind="queue"),
                 config=Config(W=16, P=4, bus_bytes=bus_bytes, burst_words=16, fifo_words=64),
                 memory=MemoryTiming(**timing))


def simboard(bus_bytes: int, **memory) -> SimBoard:
    board = small(bus_bytes, **memory)
    return SimBoard(board, verilog=building.to_verilog(StandIn(board.config)))


def ask(sim: SimBoard, raw: bytes, cycles: int = 100_000) -> bytes:
    sim.push(raw)
    sim.run(cycles, until_bytes=1)
    return sim.pop()


@pytest.mark.parametrize("bus_bytes", [1, 2, 8, 16])
def test_copies_memory_over_every_bus_width(bus_bytes, seed):
    rng = np.random.default_rng(seed)
    with simboard(bus_bytes) as sim:
        sim.memory[:] = rng.integers(0, 256, len(sim.memory), np.uint8)
        before, size = sim.memory.copy(), 16 * bus_bytes
        assert ask(sim, command(COPY, 7, 400, 9)) == bytes([COPY])
        want = before.copy()
        want[400 * size:409 * size] = before[7 * size:16 * size]
        np.testing.assert_array_equal(sim.memory, want)
        c = sim.counters()
        assert (c["read_words"], c["write_words"]) == (9 * 16, 9 * 16)
        assert (c["read_bursts"], c["write_bursts"], c["rx_bytes"], c["tx_bytes"]) == (9, 9, 10, 1)
        if bus_bytes > 1:
            assert ask(sim, command(COPY, 30, 600, 2, sparse=1)) == bytes([COPY])
            want[600 * size:602 * size:2] = before[30 * size:32 * size:2]
            np.testing.assert_array_equal(sim.memory, want)


def test_streams_one_word_a_cycle_and_returns_the_data(seed):
    with simboard(2, latency_ns=200) as sim:
        sim.memory[:] = np.random.default_rng(seed).integers(0, 256, len(sim.memory), np.uint8)
        low = sim.memory[32 * 100:32 * 356:2]
        sim.run(50)
        start = sim.counters()["cycles"]
        assert ask(sim, command(READ, 100, 0, 256)) == bytes([READ ^ np.bitwise_xor.reduce(low)])
        # 10 bytes in, a state, the words in a row from the command's own cycle, latency, reply.
        assert sim.counters()["cycles"] - start == 10 + 1 + 256 * 16 + 20 + 1
        assert sim.counters()["read_words"] == 256 * 16


@pytest.mark.parametrize("memory, cause, cycles", [
    # Every 100 cycles from cycle 100: 7 groups within 640 words and what they take themselves.
    ({"refresh_interval_ns": 1000, "refresh_ns": 100}, "idle_refresh", 70),
    # 640 words x 2 bytes in pages of 64 bytes and one bank: the first row of the first burst;
    # contiguous bursts open the others beforehand.
    ({"row_miss_ns": 80, "page_bytes": 64}, "idle_row", 8),
])
def test_counts_idle_cycles_by_cause(memory, cause, cycles):
    with simboard(2, **memory) as sim:
        sim.run(30)
        assert ask(sim, command(READ, 0, 0, 40)) == bytes([READ])
        c = sim.counters()
        assert c[cause] == cycles
        moved = c["read_words"] + c["write_words"]
        assert c["cycles"] == moved + sum(v for k, v in c.items() if k.startswith("idle_"))


def test_turning_the_bus_and_changing_rows_cost_their_cycles():
    counted = {}
    for name, memory in {"free": {}, "turn": {"turnaround_ns": 90},
                         "row": {"row_miss_ns": 110}}.items():
        with simboard(2, **memory) as sim:
            assert ask(sim, command(COPY, 0, 4096, 20)) == bytes([COPY])
            counted[name] = sim.counters()
    assert counted["free"]["idle_turnaround"] == counted["free"]["idle_row"] == 0
    # The stand-in's own way between a burst and the next hides part of each gap, never adds to it.
    for name, cause, most in ("turn", "idle_turnaround", 39 * 9), ("row", "idle_row", 40 * 11):
        assert 0 < counted[name][cause] <= most
        assert (counted[name]["cycles"] - counted["free"]["cycles"]) == counted[name][cause]


@pytest.mark.parametrize("bytes_per_s, word, cycles", [
    (150e6, (4, 3), 4096 * 4 / 3), (250e6, (4, 5), 4096), (400 / 3 * 1e6, (3, 2), 4096 * 1.5)])
def test_a_memory_with_a_clock_of_its_own(bytes_per_s, word, cycles, seed):
    """A stream takes what memory, or the core's port of 2 bytes at 100 MHz, allows; latency is in
    ns whatever the clock is."""
    board = small(2, bytes_per_s=bytes_per_s, latency_ns=203)
    ticks = board.memory.ticks(board.clock_mhz, 2)
    assert Fraction(ticks.word, ticks.core) == Fraction(*word)
    assert 203 <= ticks.latency * 10 / ticks.core < 203 + 10 / ticks.core
    with simboard(2, bytes_per_s=bytes_per_s, latency_ns=203) as sim:
        sim.memory[:] = np.random.default_rng(seed).integers(0, 256, len(sim.memory), np.uint8)
        low = sim.memory[32 * 100:32 * 356:2]
        sim.run(50)
        start = sim.counters()["cycles"]
        assert ask(sim, command(READ, 100, 0, 256)) == bytes([READ ^ np.bitwise_xor.reduce(low)])
        c = sim.counters()
        assert cycles + 32 <= c["cycles"] - start <= cycles + 36
        assert c["read_words"] == 4096


def test_times_are_the_same_cycles_where_memory_has_the_clock():
    for board in BOARDS.values():
        ticks = board.memory.ticks(board.clock_mhz, board.config.bus_bytes)
        if board.chip.follows_core or board.link.kind != "uart":
            assert ticks.core == ticks.word == 1, board.name
        quick = board.at(2 * board.clock_mhz)
        again = quick.memory.ticks(quick.clock_mhz, quick.config.bus_bytes)
        assert (again == ticks) is board.chip.follows_core


def test_taps_logits_pass_by_pass():
    with simboard(2) as sim:
        sim.push(command(LOGITS, 1000, 0, 3))
        sim.run(16 + 10 + 1 + 1500)     # in the middle of the second pass
        first = sim.take_logits(1000)
        sim.run(10_000, until_bytes=1)
        passes = first + sim.take_logits(1000)
        assert len(first) == 1 and len(passes) == 3
        for at, logits in enumerate(passes):
            np.testing.assert_array_equal(logits, -3 * np.arange(1000) - at)
        assert sim.counters()["logits"] == 3000


def test_reset_keeps_memory_and_forgets_the_rest():
    with simboard(2) as sim:
        sim.memory[5] = 77
        sim.push(command(COPY, 0, 100, 50))
        sim.run(200)
        sim.reset()
        assert sim.counters()["cycles"] == 0 and sim.waiting == 0 and sim.memory[5] == 77
        assert ask(sim, command(LOGITS, 10, 0, 1)) == bytes([LOGITS])


def test_a_burst_beyond_the_memory_is_an_error():
    with simboard(2) as sim:
        sim.push(command(READ, (1 << 20) // 32 - 1, 0, 2))
        with pytest.raises(SimulationError, match="0x100000 in cycle"):
            sim.run(1000)


def test_run_refuses_negative_cycles():
    with simboard(2) as sim, pytest.raises(ValueError, match="-1"):
        sim.run(-1)


def test_a_build_is_kept_and_two_processes_may_ask_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_build_in", fake_build := FakeBuild())
    config = small(2).config
    first = building.build("module core; endmodule", config)
    assert first.read_text() == "built" and fake_build.count == 1
    assert building.build("module core; endmodule", config) == first and fake_build.count == 1
    for damage in ("", "buil", "build"):
        first.write_text(damage)
        assert building.build("module core; endmodule", config).read_text() == "built"
    fake_build.count = 1
    assert building.build("module core; wire x; endmodule", config) != first
    assert fake_build.count == 2
    assert [p.suffix for p in tmp_path.iterdir()] == [".so", ".so"]      # nothing else stays


class FakeBuild:
    count = 0

    def __call__(self, work, *rest):
        self.count += 1
        (work / "sim.so").write_text("built")
        return work / "sim.so"


def test_without_a_compiler_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(building.shutil, "which", lambda name: None)

    def absent(name):
        raise building.importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(building.importlib.metadata, "version", absent)
    building.compiler.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install .meadowlark.zig"):
            building.compiler()
    finally:
        building.compiler.cache_clear()


def test_verilog_that_does_not_translate_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="Verilator failed with status"):
        building.build("module core(", small(2).config)


@pytest.mark.parametrize("name", BOARDS)
def test_boards_hold_their_envelope(name):
    board = get_board(name)
    # Hidden, FFN: SmolLM2's; on the small chips those of models of 15 M parameters.
    hidden, ffn = (288, 768) if name in ("ulx3s_45f", "ulx3s_25f") else (576, 1536)
    assert board.name == name and board.config.context >= 1024
    assert board.config.score_depth >= board.config.context
    assert board.config.residual_values >= board.config.P * hidden
    assert board.config.rope_pairs >= board.config.P * 32
    assert board.config.tile_beats >= 2 * ffn // board.config.W
    assert board.config.act_words * board.config.W >= hidden + ffn


def test_an_unknown_board_is_told_the_names():
    with pytest.raises(ValueError, match="no board named 'arty'; there are: virtual, ecpix5_85f"):
        get_board("arty")


def test_board_data_is_checked():
    with pytest.raises(ValueError, match="page_bytes must be a power of two, not 1000"):
        MemoryTiming(size_bytes=1 << 20, bytes_per_s=1e9, latency_ns=5, page_bytes=1000)
    with pytest.raises(ValueError, match="refresh_ns .* not 200"):
        MemoryTiming(size_bytes=1 << 20, bytes_per_s=1e9, latency_ns=5, refresh_interval_ns=100,
                     refresh_ns=200)
    for name in ("bytes_per_s", "latency_ns"):
        with pytest.raises(ValueError, match=f"^{name} must be positive, not 0$"):
            MemoryTiming(**{"size_bytes": 1 << 20, "bytes_per_s": 1e9, "latency_ns": 5, name: 0})
    with pytest.raises(ValueError, match="^row_miss_ns must not be negative, not -1$"):
        MemoryTiming(size_bytes=1 << 20, bytes_per_s=1e9, latency_ns=5, row_miss_ns=-1)
    with pytest.raises(ValueError, match="^ahead_words must be at least 1, not 0$"):
        MemoryTiming(size_bytes=1 << 20, bytes_per_s=1e9, latency_ns=5, ahead_words=0)
    with pytest.raises(ValueError, match="kind must be uart, axi or queue, not 'usb'"):
        LinkInfo(kind="usb")


def test_boards_import_nothing_of_the_host():
    code = ("import sys, meadowlark_boards; "
            "sys.exit(any(x == 'amaranth' or x.startswith(('meadowlark.', 'amaranth.')) "
            "for x in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
