"""Facts of images, boards and models, and what there is of them here."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..quant.shapes import Shapes


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of something.

    facts: by name, as ``meadowlark info --json`` has them. told: the same for people, if they are
    told it in other words. warnings: what its user may not expect. tensors: of an image, and how
    they are packed. graph: operators of a model. drawing: makes a picture, SVG.
    """
    facts: Mapping[str, Any]
    told: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    tensors: Sequence[dict] = ()
    graph: str | None = None
    drawing: Callable[[], str] | None = None

    @property
    def packing(self) -> str:
        """Of the tensors, a table in Markdown."""
        from ..compile.packing_report import table
        return table(tuple(self.tensors))


def here() -> Facts:
    """Boards, models, families of models and tools, and what to do about those that are missing."""
    from meadowlark_boards import BOARDS

    from ..models.families import families
    from ..models.families.known import missing
    from ..models.registry import NAMES, find_model
    titles = {board.name: board.title for board in BOARDS.values()}
    models = {name: _remedy(lambda name=name: find_model(name)) for name in NAMES}
    tools = {name: _remedy(check) for name, check in _tools().items()}
    kinds = {name: ", ".join(family.classes) for name, family in families().items()}
    needs = missing()
    told = {kind: {name: f"no: {remedy}" if remedy else "installed"
                   for name, remedy in found.items()}
            for kind, found in (("models", models), ("tools", tools))}
    return Facts(
        facts={"boards": titles, "models": {name: not remedy for name, remedy in models.items()},
               "families": kinds, "missing": needs,
               "tools": {name: not remedy for name, remedy in tools.items()}},
        told={"boards": titles} | told | {
            "families": kinds | {name: f"no: needs {what}" for name, what in needs.items()}})


def facts_of(what: str) -> Facts:
    """Facts of an image file, a board or a model, by name or path.

    Raises
    ------
    UserError
        It is none of these, or damaged.

    >>> from meadowlark.api.facts import facts_of
    >>> facts_of("stories").facts["layers"], facts_of("ulx3s_85f").facts["clock_mhz"] > 10
    (6, True)
    """
    from meadowlark_boards import BOARDS

    from ..compile import packing_report
    from ..compile.image import Image, is_image
    from ..models.registry import NAMES
    from .model import board_named
    if what in BOARDS or what.endswith(".py"):
        return Facts(facts=_of_board(board_named(what)))
    if is_image(what):
        image = Image.load(what)
        return Facts(facts=of_image(image), tensors=image.tensors,
                     drawing=partial(packing_report.svg, image.tensors, image.name))
    if what in NAMES or Path(what).exists():
        return _of_model(what)
    raise UserError(f"{what!r} is neither an image nor a model; the boards are "
                    f"{', '.join(BOARDS)}, the models by name {', '.join(NAMES)}")


def _of_model(name: str) -> Facts:
    from meadowlark_boards import BOARDS

    from ..compile.layout import Shape
    from ..models.drawing import svg
    from ..models.registry import load_model
    from ..quant.shapes import Shapes
    m = load_model(name, outline=True)
    shapes = Shapes.of_model(m)
    shape = asdict(Shape.of(shapes.plan, m.context))
    del shape["head_pad"]           # a board's
    facts = {"model": m.name, "family": m.family, "parameters": m.parameters, **shape,
             "bos_id": m.bos_id, "stop_ids": list(m.stop_ids),
             "chat_template": m.chat is not None}
    boards = {board.name: _fits(shapes, board) for board in BOARDS.values()}
    return Facts(
        facts=facts | {"boards": boards}, warnings=m.warnings, graph=str(m.graph),
        told=facts | {"boards": {name: _verdict(**found) for name, found in boards.items()}},
        drawing=partial(svg, m.graph, m.name))


def _remedy(check: Callable[[], object]) -> str:
    """What to do about something that is not installed; "" if it is."""
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _tools() -> dict[str, Callable[[], object]]:
    """What other commands need: simulation the first two, build, flash."""
    from ..chip.build import loader_tool
    from ..chip.ecp5 import check_tools
    from ..sim.build import compiler, verilator_root
    return {"Verilator": verilator_root, "C++ compiler": compiler, "synthesis": check_tools,
            "openFPGALoader": loader_tool}


def _fits(shapes: Shapes, board: Board) -> dict[str, Any]:
    """fits: whether the model fits the board with these options. reasons: why not without."""
    from ..compile import limits
    options = limits.options_for(shapes, board, None, 8.0)
    return {"fits": options is not None, "options": options or "",
            "reasons": list(map(str, limits.fits(shapes, board)))}


def _verdict(fits: bool, options: str, reasons: list[str]) -> str:
    """One line of it."""
    if not fits:
        return f"no: {'; '.join(reasons)}"
    return f"yes, with {options}" if options else "yes"


def _of_board(board: Board) -> dict[str, Any]:
    return {"board": board.name, "title": board.title, "clock_mhz": board.clock_mhz,
            "bandwidth_bytes_per_s": board.bandwidth, "config": board.config.as_dict(),
            "memory": asdict(board.memory), "link": asdict(board.link)}


def of_image(image: Image) -> dict[str, Any]:
    """Of an image that is read."""
    return {"image": image.name, "board": image.board, "parameters": image.parameters,
            "bytes": image.size, "bits_per_weight": round(image.bits_per_weight, 3),
            "bytes_per_token": image.bytes_per_token(1),
            "bytes_per_token_full_context": image.bytes_per_token(image.context),
            "context": image.context, "instructions": len(image.instructions),
            "shape": image.shape, "needs": image.needs, "model_regs": image.model_regs,
            "draft": None if image.draft is None else
            image.draft | {"bytes": image.draft_bytes},
            "bos_id": image.bos_id, "stop_ids": list(image.stop_ids),
            "chat_template": image.chat is not None}
