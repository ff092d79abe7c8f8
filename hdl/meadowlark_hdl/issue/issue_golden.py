"""Golden model of Issue: what an instruction presents, in the order of time.

:mod:`meadowlark_hdl.isa_golden` says what an instruction computes; this says by which beats. Each
is held against the other, and Issue against this.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import accumulate

from ..config import Config
from ..control.sequencer_golden import Lots, Pass
from ..isa import Instruction, Kind, Op, Pair, Sink, cap_of

#: What is presented in a cycle: fields of the control by name, as :func:`.walker.presentable` has
#: them, and ``tile``: number of the tile, for this instruction, that ``beat`` and ``tile_row`` are
#: of. Enables that are left out are 0; other fields that are left out count for nothing.
Presented = dict[str, int]
#: Fields that say that others count.
ENABLES = ("array_active", "res_en", "sc_en", "sum_en", "sum_read", "acc_en", "dr_en")


def beats(config: Config, model: Mapping[str, int], p: Pass, i: Instruction,
          lots: Lots | None = None) -> Iterator[Presented]:
    """Cycles of LINEAR, QK, SPILL and SV in which something is presented. lots: of all but LINEAR.

    In SV rows of results (``res_en``) come beside the keys of later lots: their order is that of
    the lots' last keys, and they stand here as late as may be, where their slices begin anew.
    ``acc_addr`` of a drained element (``dr_en``) comes DRAIN_LATER cycles after the rest of it.
    """
    if lots is not None:
        return _keys(config, model, p, i, lots)
    return _linear(config, model, p, i)


def fill(config: Config, rows: int, i: Instruction) -> Iterator[Presented]:
    """Cycles of FILL: so many scores, as they come in its tiles."""
    for score in range(rows):
        pair, part = divmod(score, config.spilled_keys)
        tile, beat = divmod(pair, i["chunks"] // 2)
        yield {"array_active": 1, "tile": tile, "beat": beat, "part": part, "fill": 1, "sc_en": 1,
               "sc_addr": score, "sc_keep": 1, "sc_until": (1 << (config.P - 1).bit_length()) - 1}


def values(config: Config, p: Pass, i: Instruction) -> Iterator[Presented]:
    """Values of EMBED, one by one: ``value`` of ``tile`` as a result's element, lane and block. Of
    ROPE pairs: ``value`` of ``tile`` and the next one go to ``addr``."""
    count, per_tile = 0, i["row_beats"] * config.W
    for token in range(p.n):
        block, lane = divmod(token, config.P)
        for value in range(0, per_tile, 2 if i["op"] == Op.ROPE else 1):
            yield ({"tile": token, "value": value, "addr": count} if i["op"] == Op.ROPE else
                   {"tile": token, "value": value, "element": i["y"] + value, "lane": lane,
                    "block": block})
            count += 1


def _linear(config: Config, model: Mapping[str, int], p: Pass, i: Instruction,
            ) -> Iterator[Presented]:
    for tile in range(i["tiles"]):
        rows = i["last_rows" if tile == i["tiles"] - 1 else "rows"]
        for block in range(p.nb - 1 if i["last"] else 0, p.nb):
            for row in range(rows):
                for beat in range(i["row_beats"]):
                    presented = _dot(model, i, block, tile, row, beat)
                    if i["diagonal"]:
                        presented["x_addr"] += (tile * i["rows"] + row) // config.W
                    if beat == i["row_beats"] - 1:
                        presented |= {"res_en": 1, "res_kind": Kind.ROW, "tile_row": row,
                                      **destination(model, i, block, tile * i["rows"] + row),
                                      **_paired(config, "paired", i)}
                        if config.softcap:
                            presented["cap"] = cap_of(i)
                    yield presented


def destination(model: Mapping[str, int], i: Instruction, block: int, row: int) -> Presented:
    """Where a row of LINEAR goes."""
    head, in_head = divmod(row, 1 << model["head_log2"])
    return {name: i[name] for name in ("sink", "pair", "wide", "stats", "heads")} | {
        "fn": 0 if cap_of(i) else i["fn"],
        "by": i["shift"] if i["pair"] or i["fn"] else 0, "to_lane": head if i["heads"] else 0,
        "element": (i["y"] << (i["pair"] == Pair.GLU)) + (in_head if i["heads"] else row),
        "angle": in_head // 2, "block": block}


def _paired(config: Config, name: str, i: Instruction) -> Presented:
    """A field that says whether heads have several lanes, of a core where they may."""
    return {name: i["add"] & i["heads"]} if config.lane_pairs else {}


def _dot(model: Mapping[str, int], i: Instruction, block: int, tile: int, row: int, beat: int,
         ) -> Presented:
    """A beat of a row (or key) times the word of the block that belongs to it."""
    return {"array_active": 1, "tile": tile, "beat": row * i["row_beats"] + beat,
            "x_addr": block * model["block_words"] + i["x"] + beat, "dot_keep": int(beat > 0)}


def _keys(config: Config, model: Mapping[str, int], p: Pass, i: Instruction, lots: Lots,
          ) -> Iterator[Presented]:
    slices, head_values = i["row_beats"] * config.sv_cycles, 1 << model["head_log2"]
    top = (1 << (config.P - 1).bit_length()) - 1        # no lane is beyond
    every = [(head, block) for head in lots.heads for block in lots.blocks]
    summed: deque[tuple[int, int, int]] = deque()       # lots that have seen their last key
    sight = [lots.keys if i["heads"] else p.sees(config, i, block) for _, block in every]
    # Where the scores of each begin: one behind the other, or ctx of them apart.
    begins = [0, *accumulate(keys.stop if config.gemm else p.ctx for keys in sight)]
    for tile, base in enumerate(lots.keys[::i["rows"]]):
        end = min(base + i["rows"], lots.keys.stop)
        for lot, (head, block) in enumerate(every):
            position = p.pos0 + block * config.P
            sees = sight[lot]
            slot = lot * slices % config.acc_slots
            keys = range(max(base, sees.start), min(end, sees.stop))
            while keys and any(slot == other for other, _, _ in summed):
                yield from _drain(config, i, head_values, *summed.popleft())
            for key in keys:
                score = begins[lot] + key
                if i["op"] == Op.SPILL:
                    yield {"array_active": 1, "one": 1, "part": 0, "sel_p": 1, "s_addr": score,
                           "m_block": lot, "raw": 1 - i["beside"], "dot_keep": 0, "res_en": 1,
                           "res_kind": Kind.ROW, "sink": Sink.NONE}
                    continue
                if i["op"] == Op.SV:
                    yield from _products(config, i, lot, tile, key > sees.start, key - base, score,
                                         slot)
                    continue
                for beat in range(i["row_beats"]):
                    presented = _dot(model, i, block, tile, key - base, beat)
                    presented["x_addr"] += head * (head_values // config.W)
                    presented |= {"shift": i["shift"]} | (
                        {"own_part": 0} if config.lane_pairs else {})
                    if config.softcap:
                        presented["score_cap"] = cap_of(i)
                    if beat == i["row_beats"] - 1:
                        presented |= {
                            "sc_en": 1, "sc_addr": score, "sc_block": lot,
                            "sc_first": int(key == sees.start),
                            "sc_from": 0 if i["heads"] or i["ahead"] else max(key - position, 0),
                            "sc_until": top if i["heads"] else min(key - position + i["back"], top),
                            "sc_last": (i["lanes"] if i["heads"] else min(
                                config.P, p.ctx - position)) - 1,
                            **_paired(config, "sc_paired", i)}
                        if config.unified:
                            presented["sc_end"] = int(key == sees.stop - 1)
                    yield presented
            if i["op"] == Op.SV and base < sees.stop <= end:
                summed.append((slot, head, block))
    for each in summed:
        yield from _drain(config, i, head_values, *each)


def _products(config: Config, i: Instruction, lot: int, tile: int, keep: bool, row: int,
              score: int, slot: int) -> Iterator[Presented]:
    """A key's values times its probability. keep: add to what is there."""
    parts = 1 if i["add"] else config.sv_cycles
    for beat in range(i["row_beats"]):
        for part in range(parts):
            at = slot + beat * parts + part
            presented = {"array_active": 1, "tile": tile, "beat": row * i["row_beats"] + beat,
                         "part": part, "sel_p": 1, "s_addr": score, "m_block": lot, "acc_en": 1,
                         "acc_keep": int(keep), "acc_addr": at, "acc_to": at,
                         **_paired(config, "own_part", i)}
            if beat == part == 0:
                presented |= {"sum_en": 1, "sum_keep": int(keep), "sum_block": slot // 2}
            yield presented


def _drain(config: Config, i: Instruction, head_values: int, slot: int, head: int, block: int,
           ) -> Iterator[Presented]:
    """A lot's sums of probabilities, then its elements; head_values: results of a head. If lanes
    are heads, ``head`` is the token, whose lane takes the place of the block."""
    elements, parts = i["row_beats"] * config.W, config.sv_cycles
    if i["heads"]:
        head, block = 0, head
    yield {"sum_read": 1, "sum_block": slot // 2, "res_en": 1, "res_kind": Kind.SUM, "sink": 0,
           "block": block, "element": i["mant"], "by": i["shift"]}
    for element in range(0, elements, parts if i["add"] else 1):
        beat, value = divmod(element, config.W)
        column, part = divmod(value, parts)
        yield {"dr_en": 1, "dr_sel": column, "res_en": 1, "res_kind": Kind.DRAIN,
               "sink": Sink.ACT, "pair": 0, "fn": 0, "wide": i["wide"], "by": 0,
               "heads": i["heads"], "block": block,
               **({"to_lane": i["lanes"] - 1} if i["heads"] else {}),
               "element": i["y"] + head * head_values + element,
               "acc_addr": slot + (beat if i["add"] else beat * parts + part),
               **_paired(config, "paired", i)}
