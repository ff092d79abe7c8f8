"""Instruction encoding, the listing, and the pages made from the tables."""
import random
import subprocess
import sys
from pathlib import Path

import pytest
from meadowlark.compile.disassemble import line
from meadowlark_hdl.isa import (FIELDS, INSTRUCTION_BITS, INSTRUCTION_BYTES, MODEL_REGS, NO_WINDOW,
                                Epi, Header, Instruction, Mode, Op, Src, decode, encode)

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
    for name, enum in (("op", Op), ("src", Src), ("epi", Epi), ("mode", Mode),
                       ("header", Header)):
        assert max(enum) < 1 << widths[name]
    for table in (FIELDS, MODEL_REGS):
        assert len({f.name for f in table}) == len(table)


def test_listing_names_what_counts():
    assert line(Instruction(Op.END)) == "END"
    assert line(Instruction(Op.END, last=1)) == "END if-more"
    assert line(Instruction(
        Op.LINEAR, src=Src.STREAM, header=Header.SCALE, epi=Epi.SWIGLU, tiles=3, rows=32,
        last_rows=8, row_beats=16, chunks=528, last_chunks=132, x=5, y=80, shift=7)) == (
        "LINEAR SWIGLU stream [3 x 32x16, last 8 int8+scale, 528 chunks] x 5 y 80 shift 7")
    assert line(Instruction(Op.QK, src=Src.KV, heads=1, lanes=3, addr=256, rows=128, row_beats=4,
                            chunks=512, x=9, shift=6, back=NO_WINDOW)) == (
        "QK heads 3 kv @0x100 [128x4 int8, 512 chunks] x 9 shift 6")
    assert line(Instruction(Op.SV, src=Src.KV, rows=128, row_beats=1, chunks=128, back=7, ahead=1,
                            )).endswith("[128x1 int8, 128 chunks] y 0 mant 0 shift 0 back 7 ahead")
    assert line(Instruction(Op.STORE, addr=16, row_beats=4, x=2)) == (
        "STORE @0x10 [4 chunks a token] x 2")


def test_pages_are_current():
    subprocess.run([sys.executable, ROOT / "scripts" / "gen_docs.py", "--check"], check=True)
