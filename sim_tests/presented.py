"""What Issue or one of its walkers presents, against its golden model."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from amaranth import Shape
from meadowlark_hdl.compute.lane import DRAIN_LATER
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Lots, Pass, Place, subgroups
from meadowlark_hdl.isa import NO_WINDOW, Fn, Instruction, Op, Pair, Sink
from meadowlark_hdl.issue.issue_golden import ENABLES, Presented
from meadowlark_hdl.issue.walker import presentable


def a_pass(P: int, n: int, pos0: int = 3, sub_heads: int = 1, sub_blocks: int = 1) -> Pass:
    return Pass(pos0, n, -(-n // P), pos0 + n, sub_heads, sub_blocks, True, n == 1)


def a_batch(rng, P: int, n: int) -> Pass:
    """So many tokens, each somewhere."""
    places = tuple(Place(int(rng.integers(1 << 27)), int(rng.integers(60))) for _ in range(n))
    return replace(a_pass(P, n, 0), batch=places)


def first_block(i: Instruction, p: Pass, model: dict[str, int], P: int) -> dict[str, int]:
    """Where its blocks begin, as Dispatch finds it."""
    block = p.nb - 1 if i["last"] else 0
    return {"block": block, "words": block * model.get("block_words", 0), "tokens": block * P}


def packed_lots(lots: Lots) -> dict[str, int]:
    """Fields of LotsLayout."""
    return {"heads": len(lots.heads), "blocks": len(lots.blocks), "first": lots.keys.start,
            "keys": len(lots.keys), "begin": lots.begin, "again": lots.again}


def repeated(c: Config, p: Pass, i: Instruction, svs: int = 1, *, less: int = 0,
             ) -> list[tuple[Instruction, Lots | None]]:
    """An instruction as Fetch queues it: a QK or SV as a QK and so many SVs, a power of two, that
    share the beats of a row; once for each subgroup. less: words of a key fewer than of its query,
    where it has several and no window.
    """
    if i["op"] not in (Op.QK, Op.SV):
        return [(i, None)]
    if i["back"] != NO_WINDOW or i["row_beats"] == 1:
        less = 0
    qk, sv = (Instruction(**dict(i) | fields) for fields in (
        {"op": Op.QK, "row_beats": i["row_beats"] - less},
        {"op": Op.SV, "fn": 0, "row_beats": i["row_beats"] // svs}))
    return [(each, lots) for lots in subgroups(c, p, i) for each in (qk, *[sv] * svs)]


def of_heads(model: dict[str, int], c: Config, i: Instruction) -> dict[str, int]:
    """A model whose heads are as long as the keys of an instruction; for LINEAR as short as can be,
    or twice that."""
    beats = 1 + i["x"] % 2 if i["op"] == Op.LINEAR else i["row_beats"]
    return model | {"head_log2": (beats * c.W).bit_length() - 1}


def random_work(rng, c: Config, *ops: Op, several: bool = False) -> tuple[Pass, Instruction]:
    """A pass, and an instruction of one of these operators. several: three blocks; lots are of more
    than one head at once, but not of all blocks, and a head has more than one beat."""
    heads, sliding = bool(rng.integers(2)), bool(several or rng.integers(2))
    p = a_pass(c.P, int(rng.integers(1, 3 * c.P + 1)), int(rng.integers(60)),
               *(map(int, rng.integers(1, 4, 2))))
    lanes = int(rng.choice([1, rng.integers(1, c.P + 1)]))      # that have tokens, of heads
    decode = (a_batch(rng, c.P, lanes) if rng.random() < 0.5 else
              a_pass(c.P, lanes, p.pos0, p.sub_heads, p.sub_blocks))
    p = decode if heads else p
    op = Op(rng.choice(ops))
    rows, row_beats = int(rng.integers(2, c.tile_rows + 1)), 1 << int(rng.integers(3))
    back = int(rng.choice([NO_WINDOW, rng.integers(80)]))
    if several:
        heads, p = False, a_pass(c.P, 3 * c.P, p.pos0, 2, int(rng.integers(1, 3)))
        row_beats = min(max(row_beats, 2), c.acc_slots // (2 * c.sv_cycles))
    elif sliding:                       # blocks whose first keys are in one tile, or are not
        heads, p = False, a_pass(c.P, int(rng.integers(c.P + 1, 3 * c.P + 1)), p.pos0,
                                 p.sub_heads, 3)
        row_beats = 1 << int(rng.integers(2))
    elif rng.random() < 0.5:            # keys of several blocks just fill a tile, or just do not
        heads, p = False, a_pass(c.P, c.tile_rows + int(rng.integers(2)), 0)
        rows = c.tile_rows
    if sliding:
        back, rows = int(rng.choice([NO_WINDOW, 0, *rng.integers(2 * c.P, size=4)])), c.tile_rows
    if op == Op.LINEAR:
        if rng.integers(2):             # whole words of a diagonal
            rows = max(c.W, rows // c.W * c.W) if c.W <= c.tile_rows else rows
        row_beats = int(rng.integers(1, c.tile_beats // rows + 1))
    sink, wide = Sink(rng.integers(1, 6)), int(rng.integers(2))
    diagonal = int(op == Op.LINEAR and rng.random() < 0.4)
    if diagonal:
        row_beats = 1
    if op == Op.LINEAR:
        heads = bool(not several and rng.integers(2))
        if heads:
            p, sink = decode, Sink.ACT
        pair, fn = rng.choice([(Pair.NONE, Fn.NONE), (Pair.NONE, Fn.RELU), (Pair.ROPE, Fn.NONE),
                               (Pair.GLU, Fn.TANH)][:3 if heads else 4])
        if c.softcap and sink == Sink.LOGIT:
            pair, fn = Pair.NONE, rng.choice([Fn.NONE, Fn.TANH])
        what = {"sink": sink, "pair": int(pair), "fn": int(fn), "stats": int(rng.integers(2))}
    else:
        what = {"sink": Sink.ACT}
        if c.softcap:                   # of the QK
            what["fn"] = int(rng.choice([Fn.NONE, Fn.TANH]))
    what["mant"] = int(rng.integers(1 << 15, 1 << 16))
    i = Instruction(op, **what, wide=wide, y=int(rng.integers(1 << 14)), heads=heads,
                    lanes=int(rng.integers(1, c.P + 1)),
                    last=int(not several and (op == Op.LINEAR or not sliding) and rng.integers(2)),
                    tiles=int(rng.integers(1, 4)) if not diagonal or rows % c.W == 0 else 1,
                    diagonal=diagonal, rows=rows, last_rows=int(rng.integers(1, rows + 1)),
                    row_beats=row_beats, x=int(rng.integers(8)), shift=int(rng.integers(64)),
                    addr=int(rng.integers(1 << 20)), back=back, ahead=int(rng.random() < 0.2),
                    group=1 if heads else int(rng.integers(1 + several, 5)))
    if heads and c.lane_pairs:
        i["add"] = int(rng.integers(2))
    if p.ctx > rows:                    # lots of several tiles have slices of their own
        most = max(c.acc_slots // (row_beats * c.sv_cycles), 1)
        sub_heads = min(p.sub_heads, most)
        p = replace(p, sub_heads=sub_heads, sub_blocks=min(p.sub_blocks, most // sub_heads))
    return p, i


def tiles_of(i: Instruction, lots: Lots | None) -> int:
    """Tiles that it takes."""
    return i["tiles"] if lots is None else -(-len(lots.keys) // i["rows"])


def check(config: Config, trace: Sequence[Presented], wanted: Iterable[Presented]) -> None:
    """Each cycle with an enable is the next one that is wanted; there are no others.

    Rows of SV come beside its keys: each in its own order, and :func:`check_turns`.

    trace: fields as they are, cycle by cycle; ``tile`` may be known modulo 2 only.
    """
    wanted = list(wanted)
    if any("acc_en" in want for want in wanted):
        check_turns(config, trace)
    rows = {"sum_read", "dr_en", "res_en"} if any("sum_read" in want for want in wanted) else set()
    for enables in (rows, set(ENABLES) - rows):
        _check(config, trace, [want for want in wanted if enables & want.keys()], enables)


def _check(config: Config, trace: Sequence[Presented], wanted: Iterable[Presented],
           enables: set[str]) -> None:
    width = {name: Shape.cast(shape).width for name, shape in presentable(config).items()}
    width["tile"] = 1
    expected = iter(wanted)
    for t, found in enumerate(trace):
        if not any(found.get(name, 0) for name in enables):
            continue
        want = next(expected)
        if "dr_en" in want:
            found = found | {"acc_addr": trace[t + DRAIN_LATER]["acc_addr"]}
        for name in enables:
            assert found.get(name, 0) == want.get(name, 0), (t, name, found, want)
        for name, value in want.items():
            assert (found.get(name, 0) - value) % (1 << width[name]) == 0, (t, name, found, want)
    assert next(expected, None) is None


def check_turns(config: Config, trace: Sequence[Presented]) -> None:
    """A slice begins anew when all its values were drained, and is drained when it has all; so are
    the sums. Nobody takes another's cycle."""
    values, sums = Counter(), Counter()             # that are to be drained, of a slice
    for t, found in enumerate(trace):
        drains = t >= DRAIN_LATER and trace[t - DRAIN_LATER].get("dr_en")
        assert found.get("acc_en", 0) + bool(drains) + found.get("sum_read", 0) <= 1, t
        if found.get("acc_en"):
            assert values[found["acc_to"]] == config.sv_columns * found["acc_keep"], (t, found)
            values[found["acc_to"]] = config.sv_columns
        if found.get("sum_en"):
            assert sums[found["sum_block"]] == found["sum_keep"], (t, found)
            sums[found["sum_block"]] = 1
        if found.get("sum_read"):
            assert sums[found["sum_block"]] == 1, (t, found)
            sums[found["sum_block"]] = 0
        if drains:
            assert values[found["acc_addr"]] > 0, (t, found)
            values[found["acc_addr"]] -= 1
    assert not any(values.values()) and not any(sums.values())
