"""Makes a LiteDRAM core: ``python -m meadowlark.chip.litedram_core FACTS.json FOLDER``.

A program of its own, because LiteX keeps state in its modules and says a lot. Writes
``litedram_core.v`` and ``litedram_core.json``, which ``meadowlark.chip.litedram`` reads. With
``"sim"`` among the facts, the chip and LiteDRAM's ECP5DDRPHY, whose cells no open simulator knows,
become LiteDRAM's model of a DDR3 chip behind a PHY with the same phases and latencies, the same
control registers, and byte lanes that read right in some settings only.
"""
# Where Migen is installed: its modules make `comb` and `sync` while they run.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import litedram.gen as gen
import litedram.modules as modules
import litedram.phy as phys
from litedram.init import get_sdram_phy_init_sequence
from litex.soc.integration.builder import Builder

#: What stands for a command or a control value in LiteDRAM's sequences (dfii.py).
NAMES = {"DFII_COMMAND_CS": 1, "DFII_COMMAND_WE": 2, "DFII_COMMAND_CAS": 4, "DFII_COMMAND_RAS": 8,
         "DFII_CONTROL_SEL": 1, "DFII_CONTROL_CKE": 2, "DFII_CONTROL_ODT": 4,
         "DFII_CONTROL_RESET_N": 8}


def _chip(facts: dict[str, Any]) -> type:
    """LiteDRAM's class of the chip with the datasheet's times."""
    base = getattr(modules, facts["module"])
    ns = facts["ns"]
    timings = modules._SpeedgradeTimings(
        tRP=ns["rp"], tRCD=ns["rcd"], tWR=ns["wr"], tRFC=(None, ns["rfc"]), tFAW=(None, ns["faw"]),
        tRAS=ns["ras"])
    return type(facts["module"], (base,), {
        "speedgrade_timings": {"default": timings},
        **({"nrows": facts["sim_rows"]} if facts.get("sim") else {})})


def _simulated(chip: type, windows: list[list[int]]) -> None:
    """Put models in place of PHY and clocks. windows: bitslip, first and last delay of each byte
    lane in which it reads right."""
    from litedram.phy.model import SDRAMPHYModel
    from litex.soc.interconnect.csr import CSR, AutoCSR, CSRStatus, CSRStorage
    from migen import ClockDomain, If, Module, Signal
    real = phys.ECP5DDRPHY

    class Phy(Module, AutoCSR):
        def __init__(self, pads, sys_clk_freq, cmd_delay=0):
            # Its settings are wanted; not being a submodule, it is not made.
            self.settings = settings = real(pads, sys_clk_freq=sys_clk_freq).settings
            self._dly_sel = CSRStorage(2)
            for name in ("rdly_dq_rst", "rdly_dq_inc", "rdly_dq_bitslip_rst", "rdly_dq_bitslip",
                         "burstdet_clr"):
                setattr(self, f"_{name}", CSR(name=name))
            self._burstdet_seen = CSRStatus(2)
            # Its check of the chip's times counts whole picoseconds a cycle: rounded up here, or
            # four cycles would be short of four cycles.
            period_ps = math.ceil(1e12 / (2 * sys_clk_freq))
            self.submodules.model = model = SDRAMPHYModel(
                chip(sys_clk_freq, rate="1:2"), settings, clk_freq=1e12 / (2 * period_ps),
                verbosity=1)
            self.dfi = dfi = type(model.dfi)(
                len(model.dfi.p0.address), len(model.dfi.p0.bank), 1, settings.dfi_databits, 2)
            self.comb += dfi.connect(model.dfi)
            # The model marks the first phase only, the PHY all.
            self.comb += dfi.p1.rddata_valid.eq(model.dfi.p0.rddata_valid)
            self.init = Module()
            self.init.stop, self.init.reset = Signal(), Signal()
            for lane, (slip_ok, first, last) in enumerate(windows):
                slip, delay, ok = Signal(2), Signal(3), Signal()
                selected = self._dly_sel.storage[lane]
                self.sync += [
                    If(selected & self._rdly_dq_inc.re, delay.eq(delay + 1)),
                    If(selected & self._rdly_dq_rst.re, delay.eq(0)),
                    If(selected & self._rdly_dq_bitslip.re, slip.eq(slip + 1)),
                    If(selected & self._rdly_dq_bitslip_rst.re, slip.eq(0))]
                self.comb += [ok.eq((slip == slip_ok) & (delay >= first) & (delay <= last)),
                              self._burstdet_seen.status[lane].eq(ok)]
                for phase in (0, 1):
                    ours = getattr(dfi, f"p{phase}").rddata
                    theirs = getattr(model.dfi, f"p{phase}").rddata
                    for beat in range(4):
                        bits = slice(16 * beat + 8 * lane, 16 * beat + 8 * lane + 8)
                        self.comb += If(~ok, ours[bits].eq(~theirs[bits]))

    class Clocks(gen.LiteXModule):
        def __init__(self, platform, core_config):
            self.rst, self.stop, self.reset = Signal(), Signal(), Signal()
            self.cd_sys = ClockDomain()
            self.comb += [self.cd_sys.clk.eq(platform.request("clk")),
                          self.cd_sys.rst.eq(platform.request("rst")),
                          platform.request("pll_locked").eq(1)]
    phys.ECP5DDRPHY = Phy
    gen.LiteDRAMECP5DDRPHYCRG = Clocks


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    chip = _chip(facts)
    if facts.get("sim"):
        _simulated(chip, facts["windows"])
    config = {
        "cpu": None, "memtype": "DDR3", "sdram_module": chip, "sdram_module_nb": 2,
        "sdram_rank_nb": 1, "sdram_phy": phys.ECP5DDRPHY, "csr_base": 0,
        "input_clk_freq": 1e6 * facts["input_mhz"], "sys_clk_freq": 1e6 * facts["clock_mhz"],
        "init_clk_freq": 25e6, "user_ports": {"0": {"type": "native"}}, **facts["controller"]}
    platform = gen.LatticePlatform(facts["device"], io=[], toolchain="trellis")
    soc = gen.LiteDRAMCore(platform, config)
    builder = Builder(soc, output_dir=str(folder), gateware_dir=str(folder),
                      software_dir=str(folder / "software"), compile_gateware=False,
                      compile_software=False, csr_json=str(folder / "csr.json"))
    builder.build(build_name="litedram_core", regular_comb=False)

    settings = soc.sdram.controller.settings
    sequence, _ = get_sdram_phy_init_sequence(settings.phy, settings.timing)
    steps = []
    for _, address, bank, command, cycles in sequence:
        kind = "control" if "DFII_CONTROL" in command else "command"
        steps.append([kind, address, bank, sum(NAMES[x] for x in command.split("|")), cycles])
    port = soc.sdram.crossbar.masters[0]
    registers = json.loads((folder / "csr.json").read_text())["csr_registers"]
    (folder / "litedram_core.json").write_text(json.dumps({
        "registers": {name: [r["addr"], r["size"]] for name, r in registers.items()},
        "sequence": steps, "read_phase": settings.phy.rdphase, "write_phase": settings.phy.wrphase,
        "modules": 2, "delays": settings.phy.delays, "bitslips": settings.phy.bitslips,
        "native_bytes": port.data_width // 8, "address_bits": port.address_width}, indent=1))


if __name__ == "__main__":
    main()
