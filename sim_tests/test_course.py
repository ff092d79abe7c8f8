"""The course of a pass, slice by slice: the cycle model's own time and words, and none twice."""
import numpy as np
import pytest
from meadowlark import UserError
from meadowlark.compile.course import _spread, course
from meadowlark.compile.cycles import Machine
from meadowlark.compile.disassemble import subjects
from meadowlark.compile.parts import layer_names
from meadowlark.compile.sketch import sketch
from meadowlark_boards import get_board
from meadowlark_hdl.control.sequencer_golden import Place, batch_pass, decode_pass
from random_model import outlined

SHAPE = dict(layers=3, hidden=96, ffn=256, heads=6, kv_heads=2, head_dim=16, vocab=300)


@pytest.mark.parametrize("board", ["virtual", "ulx3s_85f"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_it_is_the_machines(board, sequences, seed):
    """Cycles, what each operator spends and all words are those of a run without a watch."""
    rng, board = np.random.default_rng(seed), get_board(board)
    image = sketch(outlined(**SHAPE), board)
    places = [(k, int(rng.integers(1, image.context - 1))) for k in range(sequences)]
    machine, regs = Machine(image, board), image.model_regs
    for before in (1, 0):
        machine.by_pc, words = {}, machine.memory.words
        cycles = machine.run(
            decode_pass(board.config, regs, places[0][1] - before) if sequences == 1 else
            batch_pass(board.config, regs, [Place(image.base(cache), position - before)
                                            for cache, position in places]), sequences - 1)
    words = machine.memory.words - words
    found = course(image, board, places)
    assert found.cycles == cycles
    assert sum(one.spent.cycles for one in found.slices) \
        == sum(spent.cycles for spent in machine.by_pc.values())
    assert sum(one.spent.words for one in found.slices) \
        == sum(spent.words for spent in machine.by_pc.values())
    for one, behind in zip(found.slices, found.slices[1:]):
        assert one.begin + one.spent.cycles == behind.begin
        assert one.operator != behind.operator
    assert 0 <= found.slices[0].begin
    last = found.slices[-1]
    assert last.begin + last.spent.cycles <= cycles
    assert all(0 <= share <= 1 for share in found.bus)
    # The bus runs ahead of the pass, by what the FIFO and the tile buffer hold at most.
    ahead = (board.config.fifo_words + 4 * board.config.tile_beats * board.config.bus_per_chunk)
    moved = sum(found.bus) / len(found.bus) * cycles / machine.memory.word
    assert abs(moved - words) <= ahead + words / 100
    assert layer_names(subjects(image))[last.pc] == "head"


def test_parts_of_the_bus():
    """A stretch is shared out among what it touches."""
    assert list(_spread(0.5, 3.25)) == [(0, 0.5), (1, 1.0), (2, 1.0), (3, 0.25)]
    assert list(_spread(2, 2)) == [] and list(_spread(-0.5, 0.5)) == [(-1, 0.5), (0, 0.5)]
    board = get_board("ulx3s_85f")
    image = sketch(outlined(**SHAPE), board)
    coarse, fine = (course(image, board, [(0, 50)], parts=n).bus for n in (10, 100))
    assert np.mean(coarse) == pytest.approx(np.mean(fine))


def test_another_board():
    image = sketch(outlined(**SHAPE), get_board("ulx3s_85f"))
    with pytest.raises(UserError, match="compile"):
        course(image, get_board("virtual"), [(0, 5)])
