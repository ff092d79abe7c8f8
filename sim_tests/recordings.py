"""A board to record, for the tests of timelines and waves, and commands that record it."""
from pathlib import Path

from meadowlark import cli
from meadowlark.run import targets
from meadowlark.run.prepare import Source
from meadowlark_boards import Board, LinkInfo, MemoryTiming
from meadowlark_hdl.config import Config
from random_model import random_model

#: Little to build and to wait for, with all that memory can wait for; the bus is narrower than a
#: chunk, words come every second cycle or so.
BOARD = Board(
    name="small", title="for this test", clock_mhz=100.0, link=LinkInfo(kind="queue"),
    config=Config(W=4, P=4, bus_bytes=2, act_words=128, scratch_bytes=1024, residual_values=1024,
                  score_depth=256, rope_pairs=128, tile_beats=64, tile_rows=16, fifo_words=128,
                  burst_words=16, prog_depth=256, context=128, topk=4, vector_products=8,
                  block_modes=False),
    memory=MemoryTiming(size_bytes=1 << 20, bytes_per_s=1.2e8, latency_ns=80, row_miss_ns=40,
                        page_bytes=512, banks=2, turnaround_ns=20, refresh_interval_ns=7800,
                        refresh_ns=100))


def small_model(folder: Path) -> Source:
    """A model for it, written into a folder."""
    return Source(str(random_model(folder, seed=5, layers=3)), BOARD)


def commands(target, source, monkeypatch, capsys, folder, noted):
    """command(*args) -> (status, stdout, stderr, asked), with the small board and an image for it.

    noted: of trace and waves, what ``asked`` has for each target that was opened.
    """
    source.image.save(folder / "m.mlk")
    asked = []

    def open_target(name, board, *, trace, waves, progress):
        asked.append(noted(trace, waves))
        return target
    monkeypatch.setattr(targets, "open_target", open_target)
    monkeypatch.setattr(target, "close", lambda: None)
    monkeypatch.chdir(folder)

    def run(*args):
        status = cli.main([*args, "-m", "m.mlk", "--board", "virtual"])
        return (status, *capsys.readouterr(), asked)
    return run


def refused_before_the_work(command, folder, name, args, said):
    """One sentence, before a target is opened or a file written."""
    status, out, err, asked = command(name, *args, *(["--ids", "5"] if name == "generate" else []))
    assert status == 2 and said in err and not out
    assert len(err.splitlines()) == 1 and asked == []
    assert [path.name for path in folder.iterdir()] == ["m.mlk"]
