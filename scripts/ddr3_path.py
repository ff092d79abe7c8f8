#!/usr/bin/env python3
"""Build the chip of a board with DDR3 without its core: does all around it fit and keep time?

In the core's place stands a block that moves words between UART and memory, so that nothing of the
path is optimised away: LiteDRAM with its PHY and clocks, start-up, port, UART, all pins. Minutes,
where the whole chip takes hours. The bitstream is of no use. With ``--core`` the core is in it, as
small as ``--config`` makes it.
"""
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from meadowlark.chip.build import build, summary
from meadowlark.errors import UserError
from meadowlark_boards import Board, Ddr3Chip, get_board
from meadowlark_hdl.chips.ddr3_top import Ddr3Top
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.ddr3_init import LiteDramCore
from meadowlark_hdl.signatures import MemoryPort


class StandIn(wiring.Component):
    """Bytes of the UART become commands and words of the memory port; what is read, bytes."""

    def __init__(self, config: Config) -> None:
        super().__init__({"mem": Out(MemoryPort(config)), "rx": In(stream.Signature(8)),
                          "tx": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        mem, taken = self.mem, Signal(160)
        read = Signal.like(mem.r_data.payload)
        with m.If(self.rx.valid):
            m.d.sync += taken.eq(Cat(self.rx.payload, taken))
        for port, bit in ((mem.r_cmd, 1), (mem.w_cmd, 2), (mem.w_data, 3)):
            m.d.sync += port.valid.eq(taken[:8] == bit)
            m.d.sync += port.payload.eq(taken[8:])
        with m.If(mem.r_data.valid):
            m.d.sync += read.eq(mem.r_data.payload ^ read.rotate_left(1))
        m.d.comb += [self.rx.ready.eq(1), mem.r_data.ready.eq(1)]
        m.d.sync += [self.tx.valid.eq(mem.w_done | mem.ready),
                     self.tx.payload.eq(Cat(read[k::8].xor() for k in range(8)))]
        return m


class WithoutCore(Ddr3Chip):
    def top(self, board: Board, core: LiteDramCore | None = None) -> Ddr3Top:
        top = super().top(board, core)
        top.stand_in = StandIn(board.config)
        return top


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--board", "name", default="ecpix5_85f", show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--core", is_flag=True, help="With the core after all.")
@click.option("--config", "changes", multiple=True, metavar="NAME=VALUE",
              help="Another value of the board's Config; repeat for more.")
def main(name: str, seeds: int, core: bool, changes: tuple[str, ...]) -> None:
    try:
        board = get_board(name)
        if not isinstance(board.chip, Ddr3Chip):
            raise UserError(f"board {name} has no DDR3")
        values = {key: int(value) for key, _, value in (x.partition("=") for x in changes)}
        board = replace(board, config=board.config.replace(**values))
        directory = Path(__file__).resolve().parents[1] / "build" / "ddr3_path"
        if not core:
            board = replace(board, chip=WithoutCore(**vars(board.chip)))
        built = build(board, directory, seeds=seeds,
                      progress=lambda line: print(line[:100], file=sys.stderr))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(summary(built), indent=1))
    raise SystemExit(not built.meets_timing)


if __name__ == "__main__":
    main()
