"""The transport through registers: a window in Python, a file that is mapped, a PYNQ that is not
one. On simulated gateware it runs in test_axi_top.py."""
import random
import struct
import sys
import types

import numpy as np
import pytest
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard, invented
from meadowlark.link.ports import open_transport
from meadowlark.link.registers import WINDOW_BYTES, RegisterTransport, open_registers
from meadowlark.link.transport import TransportError
from meadowlark.run.targets import open_target
from meadowlark_boards import get_board
from meadowlark_hdl.link.axi_lite_table import (CONTROL_MEMORY, WINDOW_ADDRESS, WINDOW_MAGIC,
                                                WINDOW_VERSION)

AT = WINDOW_ADDRESS
BASE = 0x8_1234_5000


class FakeWindow:
    """The registers in front of a board without a core, in a time of its own."""

    def __init__(self, board=None):
        self.board, self.time, self.closed = board or FakeBoard(), 0.0, 0
        self.words = dict.fromkeys(AT.values(), 0) | {
            AT["id"]: WINDOW_MAGIC, AT["version"]: WINDOW_VERSION}
        self.stores, self.loads = [], 0

    def load(self, address):
        if address != AT["data"]:
            return self.words[address]
        self.loads += 1
        got = self.board.read(3, 0.0)
        return int.from_bytes(got, "little") | len(got) << 24

    def store(self, address, value):
        assert 0 <= value < 1 << 32
        if address == AT["data"]:
            self.board.write(struct.pack("<I", value))
            return
        self.stores.append((address, value))
        if address in (AT["base_low"], AT["base_high"]):
            assert not self.words[AT["control"]] & CONTROL_MEMORY
        self.words[address] = value

    def store_byte(self, address, value):
        assert address == AT["data"]
        self.board.write(bytes([value]))

    def close(self):
        self.closed += 1

    def now(self):
        return self.time

    def pause(self, seconds):
        self.time += seconds
        self.stores.append(("pause", seconds))
        self.board._silence += seconds

    def transport(self, memory=BASE):
        return RegisterTransport(self, memory, now=self.now, pause=self.pause)


def test_the_driver_over_registers(seed):
    rng = random.Random(seed)
    window = FakeWindow(FakeBoard(seed=seed))
    with Driver(window.transport()) as driver:
        data = rng.randbytes(5002)
        driver.write_memory(1000, data)
        assert driver.verify_memory(1000, data) == [] and driver.read_memory(1000, 5002) == data
        prompt = [rng.randrange(1000) for _ in range(7)]
        got = [event.token for event in driver.run(prompt, max_new=20)]
    history = list(prompt)
    for _ in range(20):
        history.append(invented(history)[0])
    assert got == history[7:] and window.closed == 1


class Echo:
    """Gives back what is written."""
    _silence = 0.0

    def __init__(self):
        self.held = bytearray()

    def write(self, data):
        self.held += data

    def read(self, max, timeout):
        data = bytes(self.held[:max])
        del self.held[:max]
        return data


def test_bytes_in_order_whatever_is_asked_for(seed):
    rng = random.Random(seed)
    transport = FakeWindow(Echo()).transport()
    sent, got = bytearray(), bytearray()
    for _ in range(300):
        piece = rng.randbytes(rng.randrange(12))
        transport.write(piece)
        sent += piece
        while len(got) < len(sent) and rng.random() < 0.8:
            most = rng.randint(1, 9)
            more = transport.read(most, 1.0)
            assert 1 <= len(more) <= most
            got += more
    while len(got) < len(sent):
        got += transport.read(100, 1.0)
    assert got == sent and transport.read(5, 0.0) == b""


def test_silence_lasts_as_long_as_was_asked():
    window = FakeWindow(Echo())
    transport, before = window.transport(), window.time
    assert transport.read(10, 0.05) == b""
    assert 0.05 <= window.time - before < 0.051


def test_where_the_memory_is():
    window = FakeWindow()
    low, high = BASE & 0xFFFFFFFF, BASE >> 32
    fresh = [(AT["base_low"], low), (AT["base_high"], high), (AT["control"], CONTROL_MEMORY)]
    window.transport()
    assert window.stores == [*fresh, (AT["drop"], 0)]
    window.stores.clear()
    window.words[AT["control"]] |= 2            # somebody wants interrupts
    window.transport()                          # a run may be under way
    assert window.stores == [(AT["drop"], 0)]
    window.stores.clear()
    window.transport(0x7000_0000)
    assert window.stores[0] == (AT["control"], 2) and window.stores[1][0] == "pause"
    assert window.stores[2:] == [(AT["base_low"], 0x7000_0000), (AT["base_high"], 0),
                                 (AT["control"], 3), (AT["drop"], 0)]


def test_what_is_not_a_window():
    window = FakeWindow()
    window.words[AT["id"]] = 0xFFFFFFFF
    with pytest.raises(TransportError, match="^there is no Meadowlark in this window .its first "
                                             "word is 0xffffffff.; load the bitstream"):
        window.transport()
    window.words |= {AT["id"]: WINDOW_MAGIC, AT["version"]: 9}
    with pytest.raises(TransportError, match="^the window has version 9, this program is for 1;"):
        window.transport()
    for memory in (100, 1 << 40, -4096):
        with pytest.raises(ValueError, match="^the memory must begin at a multiple of 4096 below"):
            FakeWindow().transport(memory)
    assert not window.stores


@pytest.mark.parametrize("target", [
    "uio:", "uio:/dev/uio0", "uio:uio0@0x1000", "uio:/dev/uio0@here", "mem:0x1000", "mem:@0x1000",
    "mem:x@0x1000", "pynq:"])
def test_no_such_form(target):
    with pytest.raises(ValueError):
        open_transport(target)
    with pytest.raises(UserError, match=f"^there is no target {target!r}; give golden, sim"):
        open_target(target, get_board("kv260"))


def test_no_such_device(tmp_path):
    with pytest.raises(UserError, match=r"^cannot map the registers in /dev/uio77 \(No such file or"
                                        r" directory\); check that the bitstream"):
        open_target("uio:/dev/uio77@0x1000", get_board("kv260"))
    short = tmp_path / "short"
    short.write_bytes(bytes(12))
    with pytest.raises(TransportError, match="^cannot map the registers in "):
        open_registers(f"uio:{short}@0x1000")


def test_a_mapped_file(tmp_path):
    """What a UIO device is to this program."""
    path = tmp_path / "uio"
    path.write_bytes(struct.pack("<II", WINDOW_MAGIC, WINDOW_VERSION).ljust(WINDOW_BYTES, b"\0"))
    transport = open_transport(f"uio:{path}@{BASE:#x}")
    assert transport.read(10, 0.001) == b""
    transport.write(b"abcdef")
    transport.close()
    transport.close()

    def word(name):
        return struct.unpack_from("<I", path.read_bytes(), AT[name])[0]
    assert (word("base_low"), word("base_high")) == (BASE & 0xFFFFFFFF, BASE >> 32)
    # The last word, and on it two bytes, each by itself.
    assert word("control") == CONTROL_MEMORY and word("data").to_bytes(4, "little") == b"fbcd"


class FakePynq(types.ModuleType):
    """As much of PYNQ as is used."""

    def __init__(self, cells=("meadowlark",)):
        super().__init__("pynq")
        self.array = np.zeros(WINDOW_BYTES // 4, np.uint32)
        self.array[:3] = WINDOW_MAGIC, WINDOW_VERSION, 64
        self.cells, self.done = cells, []

    def Overlay(self, path):
        return types.SimpleNamespace(ip_dict={c: {"phys_addr": 0xA0000000} for c in self.cells})

    def MMIO(self, address, length):
        assert (address, length) == (0xA0000000, WINDOW_BYTES)
        return types.SimpleNamespace(
            array=self.array, read=lambda at: int(self.array[at // 4]),
            write=lambda at, value: self.done.append((at, value)))

    def allocate(self, shape, dtype):
        assert (shape, dtype) == ((65536,), "u1")
        return types.SimpleNamespace(device_address=BASE, flush=lambda: self.done.append("flush"),
                                     freebuffer=lambda: self.done.append("free"))


def test_pynq(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    bit = tmp_path / "kv260.bit"
    with pytest.raises(TransportError, match="^PYNQ is not installed: run this on the board"):
        open_transport(f"pynq:{bit}")
    fake = FakePynq()
    monkeypatch.setitem(sys.modules, "pynq", fake)
    with pytest.raises(TransportError, match=r"^there is no .*kv260\.bit: copy the \.bit and \.hw"):
        open_transport(f"pynq:{bit}")
    bit.touch()
    transport = open_transport(f"pynq:{bit}")
    assert fake.done == ["flush"] and fake.array[AT["base_high"] // 4] == BASE >> 32
    transport.write(b"wxyz")
    assert fake.array[AT["data"] // 4] == int.from_bytes(b"wxyz", "little")
    transport.close()
    assert fake.done == ["flush", (AT["control"], 0), "free"]
    monkeypatch.setitem(sys.modules, "pynq", FakePynq(cells=("dma", "gpio")))
    with pytest.raises(TransportError, match="holds no Meadowlark, only dma, gpio; check that its"):
        open_transport(f"pynq:{bit}")
    broken = FakePynq()
    broken.allocate = lambda **_: 1 / 0
    monkeypatch.setitem(sys.modules, "pynq", broken)
    with pytest.raises(TransportError, match="^PYNQ cannot reserve 0 MiB for the core: division"):
        open_transport(f"pynq:{bit}")
