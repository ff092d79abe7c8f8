"""``meadowlark explore``."""
from __future__ import annotations

import click

from ..errors import UserError
from ..files import check_outputs
from .terminal import Progress, say, show


@click.command()
@click.option("-m", "--model", "models", multiple=True, default=("stories",), show_default=True,
              metavar="MODEL", help="Model by name or path; may be given several times.")
@click.option("--board", "boards", multiple=True, default=("virtual",), show_default=True,
              metavar="BOARD", help="Board to start from; may be given several times.")
@click.option("--set", "sizes", multiple=True, metavar="SIZE=N,N",
              help="Values of a size of the core, such as P=4,8; may be given several times.")
@click.option("--bandwidth", default="", metavar="N,N",
              help="Bandwidths of the memory in MB/s. By default the board's own.")
@click.option("--bits", type=float, default=8.0, show_default=True, metavar="B",
              help="Bits per weight where the core reads entropy-coded ones.")
@click.option("-p", "--n-prompt", "prompt", type=click.IntRange(min=1), default=128,
              show_default=True, metavar="N", help="Tokens of the prompt.")
@click.option("-n", "--n-gen", "generate", type=click.IntRange(min=2), default=32,
              show_default=True, metavar="N", help="Tokens to generate.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Processes that predict points side by side.")
@click.option("-o", "--output", required=True, metavar="FILE",
              help="CSV file, a line for each point as soon as it is known. Points that it has are "
                   "not computed again.")
def explore(models: tuple[str, ...], boards: tuple[str, ...], sizes: tuple[str, ...],
            bandwidth: str, bits: float, prompt: int, generate: int, jobs: int,
            output: str) -> int:
    """Predict all combinations of models and cores.

    Shapes are enough, and nothing is run. What does not fit says by how much.
    """
    from ..api import explore as exploring
    from ..api.model import board_named
    check_outputs(output, inputs=[*models])
    if not 1 <= bits <= 8:
        raise UserError(f"--bits must be from 1 to 8, not {bits:g}")
    values: dict[str, list[int]] = {}
    for text in sizes:
        name, _, rest = text.partition("=")
        values[name] = [int(n) for n in _numbers(text, rest, "--set", "P=4,8")]
    exploring.check_sizes([*values])
    mbytes = _numbers(bandwidth, bandwidth, "--bandwidth", "267,533") if bandwidth else []
    if any(n <= 0 for n in mbytes):
        raise UserError(f"--bandwidth {bandwidth!r} has one that is not above 0")
    with Progress() as progress:
        space = exploring.Space(
            models=exploring.outlines(models, progress),
            boards=[board_named(name) for name in boards], sizes=values, mbytes=mbytes,
            prompt=prompt, generate=generate, bits=bits)
        found = exploring.sweep(space, output, progress, jobs)
    best = exploring.pareto(found)
    columns = ["model", "board", *values, "mbytes_per_s", "multipliers", "prefill_tokens_per_s",
               "decode_tokens_per_s"]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in best)]
    show("\n".join("| " + " | ".join(line) + " |" for line in lines))
    say(f"{output}: {len(found):,} points, {sum(not row['why_not'] for row in found):,} of them "
        f"fit; {len(best):,} are beaten by none")
    return 0


def _numbers(text: str, numbers: str, option: str, example: str) -> list[float]:
    """What stands between commas, each once."""
    try:
        return [*dict.fromkeys(float(n) if option == "--bandwidth" else int(n)
                               for n in numbers.split(","))]
    except ValueError:
        raise UserError(f"{option} {text!r} has no numbers; give some such as {example}") from None
