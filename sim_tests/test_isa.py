"""Instruction encoding, the listing, and the pages made from the tables."""
import random
import subprocess
import sys
from pathlib import Path

import pytest
from meadowlark.compile.disassemble import line
from meadowlark_hdl.isa import (FIELDS, INSTRUCTION_BITS, INSTRUCTION_BYTES, MODEL_REGS, NO_WINDOW,
                                Fn, Header, Instruction, Mode, Op, Pair, Sink, Src, decode, encode,
                                fault)

ROOT = Path(__file__).resolve().parents[1]


def test_every_field_has_its_own_bits():
    seen = 0
    for f in FIELDS:
        raw = int.from_bytes(encode(Instruction(**{"op": 0, f.name: (1 << f.bits) - 1})), "little")
        assert raw.bit_count() == f.bits and not raw & seen
        seen |= raw
    assert seen < 1 << INSTRUCTION_BITS


def test_decode_inverts_encode(seed):
    rng = random.Random(seed)
    for _ in range(200):
        fields = {f.name: rng.choice((0, (1 << f.bits) - 1, rng.randrange(1 << f.bits)))
                  for f in FIELDS}
        i = Instruction(**fields)
        raw = encode(i)
        assert len(raw) == INSTRUCTION_BYTES and decode(raw) == i


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_too_large_values_are_refused(field):
    for value in (-1, 1 << field.bits):
        with pytest.raises(ValueError, match=f"^instruction field {field.name} holds "
                                             f"{field.bits} bits, not {value}$"):
            Instruction(**{"op": Op.END, field.name: value})
    with pytest.raises(ValueError, match="^no instruction field named 'speed'$"):
        Instruction(Op.END, speed=1)


def test_enums_and_names_fit():
    widths = {f.name: f.bits for f in FIELDS}
    for name, enum in (("op", Op), ("src", Src), ("sink", Sink), ("pair", Pair),
                       ("fn", Fn), ("mode", Mode), ("header", Header)):
        assert max(enum) < 1 << widths[name]
    for table in (FIELDS, MODEL_REGS):
        assert len({f.name for f in table}) == len(table)


def test_listing_names_what_counts():
    assert line(Instruction(Op.END)) == "END"
    assert line(Instruction(Op.END, last=1)) == "END if-more"
    assert line(Instruction(
        Op.LINEAR, src=Src.STREAM, header=Header.SCALE, sink=Sink.ACT, pair=Pair.GLU, fn=Fn.SILU,
        wide=1, tiles=3, rows=32, last_rows=8, row_beats=16, chunks=528, last_chunks=132, x=5,
        y=80, shift=7)) == (
        "LINEAR glu silu -> act16 stream [3 x 32x16, last 8 int8+scale, 528 chunks] "
        "x 5 y 80 shift 7")
    assert line(Instruction(Op.LINEAR, sink=Sink.SCRATCH, fn=Fn.GELU, shift=9)).endswith(
        "y 0 shift 9")
    assert line(Instruction(Op.LINEAR, sink=Sink.SCRATCH)).endswith("y 0")
    assert line(Instruction(Op.QK, src=Src.KV, heads=1, lanes=3, addr=256, rows=128, row_beats=4,
                            chunks=512, x=9, shift=6, back=NO_WINDOW)) == (
        "QK heads 3 kv @0x100 [128x4 int8, 512 chunks] x 9 shift 6")
    assert line(Instruction(Op.QK, src=Src.KV, fn=Fn.TANH, mant=70, shift=6)).endswith(
        "x 0 cap 70 shift 6 back 0")
    assert line(Instruction(Op.LINEAR, sink=Sink.LOGIT, fn=Fn.TANH, mant=70)).endswith(
        "x 0 cap 70")
    assert line(Instruction(Op.SV, src=Src.KV, rows=128, row_beats=1, chunks=128, back=7, ahead=1,
                            sink=Sink.ACT, wide=1)).endswith(
        "[128x1 int8, 128 chunks] y 0 mant 0 shift 0 back 7 ahead")
    assert line(Instruction(Op.STORE, addr=16, row_beats=4, x=2)) == (
        "STORE @0x10 [4 chunks a token] x 2")


@pytest.mark.parametrize("op, fields, words", [
    (Op.LINEAR, dict(sink=Sink.ACT), None), (Op.LINEAR, dict(sink=Sink.ACT, wide=1), None),
    (Op.LINEAR, dict(sink=Sink.ACT, pair=Pair.ROPE, wide=1), None),
    (Op.LINEAR, dict(sink=Sink.SCRATCH, pair=Pair.GLU, fn=Fn.SILU), None),
    (Op.LINEAR, dict(sink=Sink.RESIDUAL), None), (Op.EMBED, dict(sink=Sink.RESIDUAL), None),
    (Op.EMBED, dict(sink=Sink.RESIDUAL, add=1), None), (Op.EMBED, dict(sink=Sink.ACT), None),
    (Op.LINEAR, dict(sink=Sink.RESIDUAL, stats=1), None), (Op.END, {}, None),
    (Op.LINEAR, dict(sink=Sink.BESIDE, stats=1), None),
    (Op.NORM, dict(sink=Sink.ACT, beside=1), None),
    (Op.LINEAR, dict(sink=Sink.SCRATCH, diagonal=1, row_beats=1, pair=Pair.ROPE), None),
    (Op.LINEAR, {}, "LINEAR has no results for sink 0"),
    (12, dict(sink=Sink.ACT), "there is no operator 12"),
    (Op.LINEAR, dict(sink=6), "LINEAR has no results for sink 6"),
    (Op.NORM, dict(sink=Sink.SCRATCH), "NORM has no results for sink 2"),
    (Op.NORM, dict(sink=Sink.BESIDE), "NORM has no results for sink 5"),
    (Op.LINEAR, dict(sink=Sink.ACT, beside=1), "only a NORM reads beside the residual"),
    (Op.LINEAR, dict(sink=Sink.ACT, diagonal=1, row_beats=2), "only rows of a beat of LINEAR"),
    (Op.QK, dict(row_beats=5, back=100), "keys in a window have rows of a power of two"),
    (Op.QK, dict(row_beats=5, back=8191), None), (Op.QK, dict(row_beats=4, back=100), None),
    (Op.LINEAR, dict(sink=Sink.BESIDE, y=4), "residual and sampler take rows from the first on"),
    (Op.STORE, dict(sink=Sink.ACT), "STORE has no results for sink 1"),
    (Op.LINEAR, dict(sink=Sink.ACT, pair=3), "there is no pair 3"),
    (Op.LINEAR, dict(sink=Sink.ACT, fn=7), "there is no function 7"),
    (Op.SV, dict(sink=Sink.ACT, pair=Pair.ROPE), "SV pairs no rows and has no function"),
    (Op.LINEAR, dict(sink=Sink.LOGIT, pair=Pair.ROPE), "neither pair nor function"),
    (Op.LINEAR, dict(sink=Sink.ACT, fn=Fn.GELU), None),
    (Op.LINEAR, dict(sink=Sink.ACT, fn=Fn.TANH), None),
    (Op.LINEAR, dict(sink=Sink.LOGIT, fn=Fn.TANH, mant=1), None),
    (Op.QK, dict(row_beats=4, fn=Fn.TANH, mant=1), None),
    (Op.QK, dict(row_beats=4, mant=1), None),
    (Op.LINEAR, dict(sink=Sink.LOGIT, fn=Fn.TANH), "a soft cap is at least 1"),
    (Op.QK, dict(row_beats=4, fn=Fn.TANH), "a soft cap is at least 1"),
    (Op.QK, dict(row_beats=4, fn=Fn.GELU, mant=1), "neither pair nor function, but for a soft cap"),
    (Op.LINEAR, dict(sink=Sink.LOGIT, fn=Fn.SILU, mant=1), "neither pair nor function, but for"),
    (Op.LINEAR, dict(sink=Sink.RESIDUAL, fn=Fn.TANH, mant=1), "neither pair nor function"),
    (Op.SV, dict(sink=Sink.ACT, fn=Fn.TANH, mant=1), "SV pairs no rows and has no function"),
    (Op.LINEAR, dict(sink=Sink.ACT, pair=Pair.ROPE, fn=Fn.SILU), "rotated have no function"),
    (Op.LINEAR, dict(sink=Sink.ACT, pair=Pair.GLU), "a GLU has a function"),
    (Op.LINEAR, dict(sink=Sink.SCRATCH, wide=1), "only activations have 16 bits"),
    (Op.LINEAR, dict(sink=Sink.ACT, stats=1), "of the residual alone"),
    (Op.LINEAR, dict(sink=Sink.SCRATCH, heads=1), "scratch memory has no lanes"),
    (Op.LINEAR, dict(sink=Sink.LOGIT, heads=1),
     "residual and sampler have no lanes that are heads"),
    (Op.LINEAR, dict(sink=Sink.ACT, pair=Pair.GLU, fn=Fn.SILU, heads=1),
     "lanes that are heads have no GLU"),
    (Op.LINEAR, dict(sink=Sink.RESIDUAL, y=4),
     "residual and sampler take rows from the first on"),
    (Op.LINEAR, dict(sink=Sink.RESIDUAL, add=1), "only an EMBED to the residual can"),
    (Op.EMBED, dict(sink=Sink.ACT, add=1), "only an EMBED to the residual can be told to add")])
def test_results_that_cannot_be(op, fields, words):
    """Each in one sentence; what can be has none."""
    found = fault(Instruction(op, **fields))
    assert found is None if words is None else words in found


def test_pages_are_current():
    subprocess.run([sys.executable, ROOT / "scripts" / "gen_docs.py", "--check"], check=True)
