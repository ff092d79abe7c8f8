#!/usr/bin/env python3
"""Pack the matrices of a checkpoint in each way and print the sizes, beside the entropy.

`scripts/packing.py smollm2`; `scripts/packing.py FOLDER --scale tensor`. Weights become int8 here,
with a scale per row or per tensor, largest magnitude 127. MEADOW's C = 2 and 4 are also counted
where the uniques are more than a decoder's table holds, table included: the published scheme.
"""
from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
from meadowlark.compile.packing import Packer, Segment
from meadowlark.models.registry import load_model
from meadowlark_hdl.weights.meadow_golden import PACKETS, packet_widths, reindexed

#: Chunks of a tile; their number does not change the size.
TILE = 480


def matrices(name: str):
    """(name, float32[rows, columns]) of every matrix, tied ones once."""
    if Path(name).is_dir():
        from safetensors.numpy import load_file
        for path in sorted(Path(name).glob("*.safetensors")):
            for key, value in load_file(path).items():
                if value.ndim == 2 and min(value.shape) > 1:
                    yield key, value.astype(np.float32)
        return
    model = load_model(name)
    yield from ((key, value) for key, value in model.weights.items() if value.ndim == 2)


def int8(weights: np.ndarray, scale: str) -> np.ndarray:
    """Codes, the largest of a row or of the tensor 127."""
    most = np.abs(weights).max(axis=1 if scale == "row" else None, keepdims=True)
    return np.rint(weights / np.where(most > 0, most, 1) * 127).astype(np.int8)


def published(plain: np.ndarray, C: int) -> float:
    """Bits a weight of MEADOW's packing whatever the size of its table; widths as needed, 4 mode
    bits, the best packet length."""
    symbols, ids = reindexed(plain, C)
    ids = ids.reshape(-1, 1)
    best = min(int((packet_widths(ids, N) * np.minimum(
        N, len(ids) - N * np.arange(-(-len(ids) // N)))[:, None]).sum())
        + 4 * -(-len(ids) // N) for N in PACKETS)
    return (best + 8 * symbols.size) / plain.size


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("model")
@click.option("--scale", type=click.Choice(("row", "tensor")), default="row", show_default=True)
@click.option("-w", "W", default=16, show_default=True, help="Weights per beat.")
@click.option("--least", default=0, show_default=True, help="Leave out smaller matrices.")
@click.option("--meadow/--no-meadow", default=True, help="Try MEADOW's packing too.")
@click.option("--json", "as_json", is_flag=True)
def main(model, scale, W, least, meadow, as_json) -> None:
    packers = {mode: Packer(mode) for mode in ("entropy", *(["meadow"] if meadow else []))}
    found, seconds = [], 0.0
    for name, weights in matrices(model):
        codes = int8(weights, scale).ravel()
        codes = np.concatenate([codes, np.zeros(-codes.size % (4 * W), np.int8)])
        if codes.size < least:
            continue
        plain = codes.view(np.uint8).reshape(-1, W)
        tiles = [min(TILE, len(plain) - at) for at in range(0, len(plain), TILE)]
        row: dict = {"name": name, "weights": codes.size}
        for mode, packer in packers.items():
            began = time.process_time()
            packed = packer.pack([Segment(plain, tiles)])
            seconds += time.process_time() - began
            row |= {"bound": packed.entropy, mode: 8 * packed.bytes / codes.size,
                    f"{mode}_how": packed.how if packed.mode != "raw" else "raw"}
        if meadow:
            row |= {f"C{C}": published(plain, C) for C in (1, 2)}
        found.append(row)
    weights = sum(r["weights"] for r in found)
    every: dict = {"name": "all", "weights": weights} | {
        key: sum(r[key] * r["weights"] for r in found) / weights
        for key in found[0] if isinstance(found[0][key], float)}
    if as_json:
        print(json.dumps({"tensors": found, "all": every, "seconds": seconds}))
        return
    keys = [key for key in found[0] if key not in ("name", "weights")]
    print(f"{'matrix':44} {'weights':>10}", *(f"{key:>11}" for key in keys))
    for r in [*found, every]:
        print(f"{r['name']:44} {r['weights']:10,}",
              *(f"{r.get(k, ''):11.3f}" if isinstance(r.get(k), float) else f"{r.get(k, ''):>11}"
                for k in keys))
    worst = max(found, key=lambda r: r["entropy"] / max(r["bound"], 1e-9))
    print(f"entropy-coded over entropy, at worst: {worst['entropy'] / worst['bound']:.4f} "
          f"({worst['name']}); {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
