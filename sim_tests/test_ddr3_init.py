"""Ddr3Init against a model of LiteDRAM's control registers, its injector and a DDR3 chip."""
import random

import cocotb
import pytest
from bench import cycles, simulate, start
from cocotb.triggers import First, ReadOnly, RisingEdge
from meadowlark_hdl.memory.ddr3_init import (CAS, CS, RAS, RDDATA, WE, WRDATA, Ddr3Init,
                                             LiteDramCore, patterns)
from meadowlark_hdl.memory.ddr3_init_golden import choose

MHZ = 75.0
#: Registers and sequence as litedram_gen 2024.12 makes them of an MT41K256M16 at 75 MHz; two
#: phases of 64 bits, the word with the highest bits first.
NAMES = {"ddrctrl_init_done": (0x0, 1), "ddrctrl_init_error": (0x4, 1),
         "ddrphy_dly_sel": (0x800, 1), "ddrphy_rdly_dq_rst": (0x804, 1),
         "ddrphy_rdly_dq_inc": (0x808, 1), "ddrphy_rdly_dq_bitslip_rst": (0x80C, 1),
         "ddrphy_rdly_dq_bitslip": (0x810, 1), "ddrphy_burstdet_clr": (0x814, 1),
         "ddrphy_burstdet_seen": (0x818, 1), "sdram_dfii_control": (0x1000, 1)}
for phase in (0, 1):
    for name, at, words in (("command", 4, 1), ("command_issue", 8, 1), ("address", 12, 1),
                            ("baddress", 16, 1), ("wrdata", 20, 2), ("rddata", 28, 2)):
        NAMES[f"sdram_dfii_pi{phase}_{name}"] = (0x1000 + 0x20 * phase + at, words)
MODE = RAS | CAS | WE | CS
SEQUENCE = (("control", 0, 0, 0xC, 50000), ("control", 0, 0, 0xE, 10000),
            ("command", 0x200, 2, MODE, 0), ("command", 0, 3, MODE, 0), ("command", 6, 1, MODE, 0),
            ("command", 0x320, 0, MODE, 200), ("command", 0x400, 0, WE | CS, 200))
CORE = LiteDramCore(registers=NAMES, sequence=SEQUENCE, read_phase=0, write_phase=1, modules=2,
                    delays=8, bitslips=4, native_bytes=16, address_bits=25)


class Chip:
    """Registers, byte lanes with settings, and a chip that wants its commands in order.

    works: [lane][bitslip][delay], does the lane sample right there? strobe: the same of the
    detection of its edges.
    """

    def __init__(self, works, strobe):
        self.works, self.strobe = works, strobe
        self.slip, self.delay, self.selected, self.paused = [0, 0], [0, 0], 0, []
        self.store: dict = {}
        self.by_address = {at + 4 * k: (name, k) for name, (at, words) in NAMES.items()
                           for k in range(words)}
        self.done = self.failed = False
        self.control, self.control_since = 1, 0
        self.log: list = []                     # (cycle, command, bank, address) of the chip
        self.row = None
        self.memory = [0, 0]                    # of each phase, 64 bits
        self.tests = self.accesses = 0

    def value(self, name, words):
        return sum(self.store.get((name, k), 0) << 32 * (words - 1 - k) for k in range(words))

    def write(self, now, address, value):
        name, word = self.by_address[address]
        self.store[name, word] = value
        short = name.removeprefix("sdram_dfii_").removeprefix("ddrphy_")
        if short == "control":
            assert not (value & 2 and not value & 8), "CKE without RESET_N"
            if value & 8 and not self.control & 8:
                assert now - self.control_since >= 200e-6 * MHZ * 1e6, "reset was too short"
            if value & 2 and not self.control & 2:
                assert now - self.control_since >= 500e-6 * MHZ * 1e6, "CKE too soon after reset"
            self.control, self.control_since = value, now
        elif short == "dly_sel":
            if value == 3 and self.selected == 0:
                self.paused.append(now)
            self.selected = value
        elif short.startswith("rdly"):
            assert self.selected, f"{short} and no lane is selected"
            for k in range(2):
                if self.selected >> k & 1:
                    what = self.slip if "bitslip" in short else self.delay
                    what[k] = 0 if short.endswith("rst") else \
                        (what[k] + 1) % (4 if "bitslip" in short else 8)
        elif short == "burstdet_clr":
            self.seen = 0
        elif short.endswith("command_issue"):
            self.command(now, int(short[2]))
        elif name == "ddrctrl_init_done" and value:
            self.done = True
        elif name == "ddrctrl_init_error" and value:
            self.failed = True

    def command(self, now, phase):
        pi = f"sdram_dfii_pi{phase}_"
        code = self.value(pi + "command", 1)
        bank, address = self.value(pi + "baddress", 1), self.value(pi + "address", 1)
        assert self.control == 0xE, "commands need CKE, and software in control"
        assert not self.log or now - self.log[-1][0] >= 8, "commands too close"
        assert not self.selected, "a command while lanes are paused"
        self.log.append((now, code, bank, address))
        if code == RAS | CS:
            assert self.row is None
            self.row = address
        elif code == RAS | WE | CS:
            self.row = None
        elif code == CAS | WE | CS | WRDATA:
            assert phase == CORE.write_phase and self.row is not None
            self.memory = [self.value(f"sdram_dfii_pi{p}_wrdata", 2) for p in (0, 1)]
        elif code == CAS | CS | RDDATA:
            assert phase == CORE.read_phase and self.row is not None
            self.tests += 1
            for p in (0, 1):
                word = self.memory[p]
                for k in range(2):
                    if not self.works[k][self.slip[k]][self.delay[k]]:
                        # One bit of the lane, in one of the four beats.
                        word ^= 1 << 16 * random.randrange(4) + 8 * k + random.randrange(8)
                for k in range(2):
                    self.store[f"sdram_dfii_pi{p}_rddata", k] = word >> 32 * (1 - k) & 0xFFFF_FFFF
            self.seen = sum(self.strobe[k][self.slip[k]][self.delay[k]] << k for k in range(2))

    def read(self, address):
        name, word = self.by_address[address]
        return self.seen if name == "ddrphy_burstdet_seen" else self.store.get((name, word), 0)


async def serve(dut, chip, stall):
    """The control port; answers a cycle later, or when it likes."""
    clock, asked = RisingEdge(dut.clk), RisingEdge(dut.bus__cyc)
    while True:
        if not dut.bus__cyc.value:
            await asked
        await ReadOnly()
        address, value = 4 * int(dut.bus__adr.value), int(dut.bus__dat_w.value)
        write = bool(dut.bus__we.value)
        assert dut.bus__stb.value and int(dut.bus__sel.value) == 15
        await clock
        while random.random() < stall:
            await clock
        chip.accesses += 1
        if write:
            chip.write(cycles(dut), address, value)
        else:
            dut.bus__dat_r.value = chip.read(address)
        dut.bus__ack.value = 1
        await ReadOnly()
        assert dut.bus__cyc.value and 4 * int(dut.bus__adr.value) == address
        await clock
        dut.bus__ack.value = 0
        await ReadOnly()
        assert not dut.bus__cyc.value
        await clock


def window(kind):
    """[bitslip][delay] of a lane."""
    works = [[False] * 8 for _ in range(4)]
    if kind == "random":
        for row in works:
            row[:] = [random.random() < 0.6 for _ in row]
    elif kind == "all":
        works = [[True] * 8 for _ in range(4)]
    elif kind == "typical":
        slip, first = random.randrange(4), random.randrange(6)
        for k in range(first, min(first + random.randrange(1, 6), 8)):
            works[slip][k] = True
    elif kind == "one":
        works[random.randrange(4)][random.randrange(8)] = True
    return works


async def run(dut, works, strobe, stall):
    await start(dut)
    begun = cycles(dut)
    chip = Chip(works, strobe)
    cocotb.start_soon(serve(dut, chip, stall))
    await First(RisingEdge(dut.done), RisingEdge(dut.failed))
    return chip, cycles(dut) - begun


@cocotb.test(timeout_time=60, timeout_unit="ms")
@cocotb.parametrize(kind=["typical", "random", "one", "all"], stall=[0.0, 0.5])
async def finds_the_middle(dut, kind, stall):
    works = [window(kind), window(kind)]
    strobe = [window("all"), window("all")]
    if kind == "random":                        # what reads right may still not see the strobe
        strobe = [[[random.random() < 0.8 for _ in row] for row in lane] for lane in works]
        works[0][1][2] = strobe[0][1][2] = works[1][3][7] = strobe[1][3][7] = True
    chip, took = await run(dut, works, strobe, stall)
    want = [choose([[a and b for a, b in zip(*rows)] for rows in zip(*lane)])
            for lane in zip(works, strobe)]
    assert dut.done.value and not dut.failed.value and chip.done and not chip.failed
    assert list(zip(chip.slip, chip.delay)) == want
    assert [(int(dut.bitslips.value) >> 2 * k & 3, int(dut.delays.value) >> 3 * k & 7)
            for k in range(2)] == want
    assert chip.control == 1                                # the controller has the chip
    assert chip.tests == 3 * (4 * 8 + 1)
    # Mode registers 2, 3, 1, 0 and the calibration, as the generator said, then the tests.
    assert [(code, bank, address) for _, code, bank, address in chip.log[:5]] == \
        [(value, bank, address) for kind, address, bank, value, _ in SEQUENCE if kind == "command"]
    # All lanes are paused together after each change, to be in step again; for those of all lanes
    # before it as well.
    assert len(chip.paused) == 2 * (1 + 31 + 3) + 2 + sum(map(sum, want))
    if not stall:
        waits = round(250 * MHZ) + 60000 + 4 * 15 + 2 * 200 - 15 \
            + 3 * 33 * 4 * 15 + 15 * (len(chip.paused) - 35)
        assert took <= waits + 6 * chip.accesses + 400, (took, waits, chip.accesses)


@cocotb.test(timeout_time=60, timeout_unit="ms")
@cocotb.parametrize(lane=[0, 1])
async def a_lane_that_never_reads_fails(dut, lane):
    works = [window("all"), window("all")]
    works[lane] = window("none")
    chip, _ = await run(dut, works, [window("all")] * 2, 0.0)
    assert dut.failed.value and not dut.done.value and chip.failed and chip.done
    assert chip.control == 0xE


def test_choose():
    no = [False] * 4
    assert choose([no, no]) is None
    assert choose([no, [False, True, False, True]]) == (1, 1)
    assert choose([[True, False, True, True], [True, True, True, False]]) == (1, 1)
    assert choose([[True, True, False, False], [False, True, True, True]]) == (1, 2)
    assert choose([[True] * 4]) == (0, 1)


def test_patterns_move_every_line():
    words = patterns(12)
    for bit in range(32):
        assert len({w >> bit & 1 for w in words}) == 2


def test_ddr3_init(seed, sim):
    simulate(Ddr3Init(CORE, clock_mhz=MHZ), __name__, seed=seed, sim=sim)


def test_registers_out_of_reach():
    far = LiteDramCore(**{**vars(CORE), "registers": {**NAMES, "ddrphy_dly_sel": (0x12000, 1)}})
    with pytest.raises(ValueError, match="^register ddrphy_dly_sel is at 0x12000; 64 KiB can be"):
        Ddr3Init(far, clock_mhz=MHZ)
