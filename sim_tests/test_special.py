"""A core for one model: the same image in the same cycles, and no other image."""
from dataclasses import replace
from pathlib import Path

import pytest
from meadowlark.compile.image import Image
from meadowlark.compile.special import board_file, special
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.quant.sampling import sampling
from meadowlark.run.drafting import Drafting
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget, GoldenTarget, SimTarget, check
from meadowlark_boards import get_board, read_board
from meadowlark_hdl.isa import FIELDS, INSTRUCTION_BITS, INSTRUCTION_BYTES, MODEL_REGS, decode
from meadowlark_hdl.only import Only
from random_model import random_model

REGISTERS = {f.name: k for k, f in enumerate(MODEL_REGS)}


@pytest.fixture
def source(tmp_path, seed):
    # A core with soft caps has its scores later, and one for a model without them has none.
    board = get_board("virtual")
    board = replace(board, config=board.config.replace(softcap=False))
    return Source(str(random_model(tmp_path / "m", seed=seed, layers=2, heads=2, kv_heads=1)),
                  board)


def test_what_never_changes(source):
    """What is stored gives each instruction again, as far as its operator heeds it."""
    program, only = source.image.program, source.image.only
    assert 0 < len(only.free) < INSTRUCTION_BITS // 2
    for at in range(0, len(program), INSTRUCTION_BYTES):
        raw = program[at:at + INSTRUCTION_BYTES]
        word = int.from_bytes(raw, "little")
        bits = only.whole(word >> k & 1 for k in only.free)
        found, want = decode(sum(bit << k for k, bit in enumerate(bits)).to_bytes(
            INSTRUCTION_BYTES, "little")), decode(raw)
        for f in FIELDS:
            assert found[f.name] == want[f.name] or not f.of(want["op"], want["fn"]), f.name


def test_a_bit_for_itself():
    """Two instructions that differ in one bit; one that counts in neither."""
    low, high = 0x5, 0x105                      # LINEAR twice, op 4, and bit 8: header
    raw = b"".join((x ^ 1).to_bytes(INSTRUCTION_BYTES, "little") for x in (low, high))
    only = Only.of(raw, REGISTERS)
    assert only.free == (8,) and only.ones == 4
    assert only.whole("x")[:9] == [0, 0, 1, 0, 0, 0, 0, 0, "x"]
    other = Only.of(raw, REGISTERS | {"vocab": 1})
    assert only.crc != other.crc and only.crc == Only.of(raw, REGISTERS).crc != 0
    with pytest.raises(ValueError, match="is 0 or 1"):
        Only(1, 1, only.registers)
    with pytest.raises(ValueError, match="in their order"):
        Only(1, 0, only.registers[1:])


def test_same_image_same_cycles(source, seed):
    """The very image of the generic core: tokens, logits and all counters, with drafts too."""
    prompt, draw = source.prompt("Hello 12"), sampling(temperature=1.0, seed=seed)
    board, image, seen = source.board, source.image, []
    assert special(board, image).config.as_dict() != board.config.as_dict()
    for which in (board, special(board, image)):
        target = SimTarget(which)
        try:
            target.load(source)
            seen.append([])
            for drafts in (Drafting(most=0), Drafting(most=3)):
                ways = dict(max_new=12, stop_ids=(), drafts=drafts)
                events = list(target.generate(prompt, draw, **ways))
                golden = GoldenTarget(board)
                golden.load(source)
                found = check(events, golden.generate(prompt, draw, **ways))
                assert found.bit_exact and found.tokens == 12, found.first_difference
                seen[-1].append(target.counters())
        finally:
            target.close()
    assert seen[0] == seen[1]


def test_other_images_are_refused(source, tmp_path, seed):
    board = special(source.board, source.image)
    source.image.check_board(board)
    other = Source(source.name, source.board, context=16)
    with pytest.raises(UserError, match="has a core for one model, and this image is of another"):
        other.image.check_board(board)
    fake = FakeBoard(board.config, memory_bytes=board.memory.size_bytes,
                     next_token=lambda history: (5, 0))
    target = BoardTarget("fake", Driver(fake))
    assert target.driver.info.only == source.image.only.crc
    with pytest.raises(UserError, match="make one with `meadowlark build --for`"):
        target.load(other)
    target.load(source)
    assert Driver(FakeBoard(source.board.config)).info.only == 0


def test_board_file(source, tmp_path):
    """What is written describes the same board, and an image compiled for it is the same."""
    board = special(source.board, source.image)
    path = tmp_path / "virtual.py"
    path.write_text(board_file(board, "virtual"))
    assert read_board(str(path)) == board
    image = Source(source.name, board).image
    assert isinstance(image, Image) and image.only == source.image.only
    assert image.program == source.image.program and image.memory == source.image.memory


def test_build_for_a_model(source, tmp_path, monkeypatch, run):
    """The board's file is there before the tools begin; a model that is not there is a sentence."""
    seen = []

    def stop(board, folder, **ways):
        seen.append((board, folder))
        raise UserError("no tools today")
    monkeypatch.setattr("meadowlark.chip.build.build", stop)
    monkeypatch.chdir(tmp_path)
    model = Path(source.name)
    status, _, said = run("build", "--board", "ulx3s_85f", "--for", model, "--clock", "recorded")
    assert status == 2 and "no tools today" in said
    (board, folder), = seen
    assert folder.parent == Path("build") and folder.name.startswith("ulx3s_85f-")
    assert read_board(str(folder / "ulx3s_85f.py")) == board and board.config.only is not None
    status, _, said = run("build", "--for", tmp_path / "none")
    assert status == 2 and len(seen) == 1 and "none" in said
