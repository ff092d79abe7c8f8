"""``meadowlark classify``."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs
from .options import Asked, board_option, json_option, model_options, target_option
from .recordings import waves_option
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from ..api import Classified, Waves


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
              help="Classes of each image to show, the likeliest ones.")
@click.option("--check", is_flag=True,
              help="Compare class and logits of every image with the golden model; status 1 if one "
                   "differs.")
@model_options(default=None)
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("sim", "pins", "golden")
@waves_option
@json_option
def classify(files: Sequence[str], top: int, check: bool, asked: Asked, board: str, target: str,
             waves: Waves | None, json_to: str | None) -> int:
    """Say what is on images: PNG or JPEG.

    What becomes of an image before the model sees it, preprocessor_config.json says. On a board
    the chip tells the class and a CRC of all logits. Probabilities are then those of the golden
    model, if that CRC is theirs, too.
    """
    if check and target == "golden":
        raise UserError("--check compares a board with the golden model, which --target golden "
                        "is; leave one of them out")
    check_outputs(json_to, *(waves.files if waves else ()), inputs=[asked.name, *files])
    with Progress() as progress, asked.on(target, board, progress, waves=waves) as chip:
        found = chip.classification(*files, check=check)
        name, which = chip.image.name, chip.board
    speed, verdict = found.speed, found.check
    result: dict[str, Any] = {
        "model": name, "board": which.name, "target": target,
        "images": [one.as_dict() for one in found.images], "labels": list(found.labels), **speed,
        "clock_mhz": which.clock_mhz}
    if verdict is not None:
        result |= {"bit_exact": verdict.bit_exact, "first_difference": verdict.first_difference}
    write_json(result, json_to)
    if json_to != "-":
        show(_table(found.images, found.labels, top))
    if speed:
        say(f"{speed['cycles_per_image']:,.0f} cycles per image ({speed['images_per_s']:,.0f} "
            f"images/s at {which.clock_mhz:g} MHz), MAC utilisation "
            f"{speed['mac_utilisation']:.3f}")
    if waves:
        say(waves.told())
    tell_saturated({"score_saturations": sum(
        one.counters.get("score_saturations", 0) for one in found.images)})
    if verdict is None:
        return 0
    if not verdict.bit_exact:
        say(f"NOT bit-exact: {verdict.first_difference.replace('token', 'image', 1)}")
        return DIFFERENT
    if check:
        say(f"bit-exact with the golden model over {verdict.tokens} images")
    return 0


def _table(found: Sequence[Classified], labels: Sequence[str], top: int) -> str:
    """A line an image: its name, then classes and their probabilities, likeliest first."""
    wide = max((len(one.file) for one in found), default=0)
    lines = []
    for one in found:
        p = one.probabilities
        # The chip's own class first: of two that are equally likely it is the first as well.
        best = sorted(range(len(p)), key=lambda k: (k != one.token, -p[k]))[:top]
        lines.append(f"{one.file:{wide}}  " + "  ".join(f"{labels[k]} {p[k]:.1%}" for k in best))
    return "\n".join(lines)
