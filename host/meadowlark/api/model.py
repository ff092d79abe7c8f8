"""A model by name, compiled for boards and run on them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..threads import one_thread
from .chip import Chip
from .forecast import Forecast, forecast_of

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..progress import Progress
    from ..run.evaluate import Perplexity
    from ..run.prepare import Source
    from ..run.timeline import Timeline
    from ..run.waves import Waves
    from .drafts import Drafts


def load(name: str | Path = "stories", *, context: int | None = None, weights: str = "auto",
         packing: str = "auto", bits: float | None = None, target_ppl: float | None = None,
         draft: str = "auto", fuse_ffn: str = "none", drop_attention: str = "",
         all_tokens: bool = False, maximum: str = "exact", lanes: str = "auto",
         progress: Progress | None = None,
         warn: Callable[[str], None] | None = None) -> LoadedModel:
    """A model by name.

    Parameters
    ----------
    name : str or Path
        A name that ``meadowlark info`` lists, a Hugging Face folder, ``hf:owner/name``, a GGUF
        file, a checkpoint of llama2.c, or an image file.
    context : int, optional
        Tokens the KV cache holds; by default as many as model and board allow.
    weights, packing, bits, target_ppl, draft
        As the options of ``meadowlark compile``.
    fuse_ffn, drop_attention, all_tokens, maximum, lanes
        Likewise.
    progress : callable, optional
        Told what takes long.
    warn : callable, optional
        Gets each sentence about the model that its user may not expect.

    Raises
    ------
    UserError
        There is no such model, or an option is out of its range.
    """
    from ..compile.image import is_image
    from ..compile.packing import PACKINGS
    from ..compile.pairs import LANES
    from ..models.registry import find_model
    from ..models.fusion import check_fusion, layers_of
    from ..quant.budget import check_budget
    from ..quant.maximum import MAXIMA
    if packing not in PACKINGS:
        raise UserError(f"there is no packing {packing!r}; give one of {', '.join(PACKINGS)}")
    if weights not in ("auto", "int8"):
        raise UserError(f"there are no weights {weights!r}; give auto or int8")
    if maximum not in MAXIMA:
        raise UserError(f"there is no maximum {maximum!r}; give one of {', '.join(MAXIMA)}")
    if lanes not in LANES:
        raise UserError(f"there are no lanes {lanes!r}; give one of {', '.join(LANES)}")
    check_budget(bits, target_ppl)
    check_fusion(fuse_ffn)
    layers_of(drop_attention)
    if not is_image(str(name)):
        find_model(name, progress)
    return LoadedModel(str(name), dict(context=context, weights=weights, packing=packing,
                                       bits=bits, target_ppl=target_ppl, draft=draft,
                                       fuse_ffn=fuse_ffn, drop_attention=drop_attention,
                                       all_tokens=all_tokens, maximum=maximum, lanes=lanes,
                                       progress=progress, warn=warn))


def board_named(board: str | Board) -> Board:
    """A board by name, or by a file that ends in .py; :class:`UserError` if there is none."""
    from meadowlark_boards import get_board
    if not isinstance(board, str):
        return board
    try:
        return get_board(board)
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass
class LoadedModel:
    """A model, ready to be compiled for boards and to run; see :func:`load`."""
    name: str
    _options: dict[str, Any] = field(repr=False)
    _sources: dict[str, tuple[Board, Source]] = field(default_factory=dict, repr=False)

    def _source(self, board: Board) -> Source:
        """The model for a board; each is made once."""
        from ..run.prepare import Source
        known = self._sources.get(board.name)
        if known is None or known[0] != board:
            known = self._sources[board.name] = board, Source(self.name, board, **self._options)
        return known[1]

    def _board(self, board: str | Board | None) -> Board:
        """A board; by default that of an image, or the one that is only simulated."""
        from ..run.prepare import made_for
        return board_named(made_for(self.name) or "virtual" if board is None else board)

    def image_for(self, board: str | Board | None = None) -> tuple[Board, Image]:
        """A board and the image for it; of an image file, that.

        Raises
        ------
        UserError
            The model does not fit the board.
        """
        which = self._board(board)
        with one_thread():
            return which, self._source(which).image

    @cached_property
    def drafts(self) -> Drafts:
        """What the model says, and tables of drafts made from that."""
        from .drafts import Drafts
        return Drafts(self.name, self._options["progress"] or (lambda text, done, total: None))

    def on(self, target: str = "sim", *, board: str | Board | None = None,
           trace: Timeline | None = None, waves: Waves | None = None, load: bool = True) -> Chip:
        """Something that runs the model, with it loaded.

        Parameters
        ----------
        target : str
            "sim" (the gateware, simulated), "pins" (the whole chip, down to its pins), "golden"
            (the bit-exact model of it), or the port of a board.
        board : str or Board, optional
            What is simulated; a board at a port says itself what it is. By default the one an
            image was compiled for, or ``virtual``.
        trace, waves : Timeline, Waves, optional
            Record what the units of "sim" do in each run, and its signals in the first one.
        load : bool
            Load the model at once; else that is done for the first run, when its prompt is known
            to be sound.

        Raises
        ------
        UserError
            There is no such target or board, nothing answers there, or the model does not fit.
        """
        from ..run.targets import SIMULATED, open_target
        recorders = [one for one in (trace, waves) if one is not None]
        if recorders and target != "sim":
            raise UserError(f"only what \"sim\" simulates is recorded, not {target}")
        which = self._board(board) if target in SIMULATED or board is not None else None
        runner = open_target(target, which, trace=trace is not None, waves=waves is not None,
                             progress=self._options["progress"])
        try:
            chip = Chip(runner, self._source(runner.board), recorders)
            if load:
                chip.load()
            return chip
        except BaseException:
            runner.close()
            raise

    def compile(self, board: str | Board | None = None, path: str | Path | None = None, *,
                fence: str | None = None, attention: str = "tphs") -> Image:
        """The image for a board, written to a file if a path is given.

        fence: "operators" or "layers", before which the memory side does not run ahead, to measure
        what running ahead brings, on a board with a core for that: see
        :mod:`meadowlark.compile.fences`.
        attention: "gemm" for scores that go to memory and come back, which a board with a core for
        that can, to measure what this costs: see :mod:`meadowlark.compile.gemm`.

        Raises
        ------
        UserError
            The model is an image, or does not fit the board, or the file cannot be written.
        """
        if attention not in ("tphs", "gemm"):
            raise UserError(f"attention is one of tphs and gemm, not {attention!r}")
        which = self._board(board)
        source = self._source(which)
        with one_thread():
            _ = source.outline      # an image has none, and says so
            image = source.image
        if fence is not None:
            from ..compile.fences import fenced
            image = fenced(image, fence, which.config)
        if attention == "gemm":
            from ..compile.gemm import spilled
            image = spilled(image, which.config)
        if path is not None:
            source.tell("writing the image")
            image.save(path)
        return image

    def predict(self, *, board: str | Board | None = None, prompt: int = 128, generate: int = 32,
                position: int = 0, exact: bool = False) -> Forecast:
        """How long a board takes, from the cycle model: seconds on the computer, nothing is run.

        Parameters
        ----------
        board : str or Board, optional
            As :meth:`on`; with the memory and at the clock it states.
        prompt : int, 1..
            Tokens of the prompt.
        generate : int, 0..
            Tokens behind it.
        position : int, 0..
            Tokens before the prompt whose keys and values are there already.
        exact : bool
            Quantise and compile the model, and go through each layer of each pass. By default
            shapes are enough: layers, tiles and passes that repeat are gone through a few times
            (:data:`meadowlark.compile.forecast.ERROR`), and weights that the board reads packed
            take the bits that were asked for, or their entropy.

        Raises
        ------
        UserError
            The tokens do not fit the context, or the model does not fit the board.

        >>> import meadowlark as ml
        >>> found = ml.load("stories").predict(board="ulx3s_85f", generate=2)
        >>> found.tokens_per_s > 100, found.whole.bound, found.layers[1].name
        (True, 'multipliers', 'layer 0')
        """
        which = self._board(board)
        source = self._source(which)
        source.check_reads(images=False)
        with one_thread():
            image = source.image if exact else source.sketch
        return forecast_of(image, which, prompt=prompt, generate=generate, position=position,
                           exact=exact)

    def perplexity(self, text: str | Sequence[str] | None = None, *,
                   board: str | Board | None = None, max_tokens: int | None = None,
                   context: int | None = None) -> Perplexity:
        """Perplexity of the board's arithmetic beside that of float32.

        Parameters
        ----------
        text : str or sequence of str, optional
            Texts, one a line, or lines; by default the packaged stories that the model has not
            seen.
        board : str or Board, optional
            Whose arithmetic it is: not every one reads blocks of GGUF files.
        max_tokens : int, optional
            Most tokens to predict.
        context : int, optional
            Tokens of a window; by default as many as the model allows.

        Raises
        ------
        UserError
            The text has no tokens to predict, or the model is an image.
        """
        from ..run.evaluate import perplexity, validation_text
        source = self._source(self._board(board))
        source.check_reads(images=False)
        lines = validation_text() if text is None else \
            text.splitlines() if isinstance(text, str) else text
        with one_thread():
            quantised = source.quantised        # before the whole model, which it may not need
            return perplexity(source.model, quantised, lines, max_tokens, context=context,
                              progress=lambda n: source.tell("predicting", n, max_tokens or 0))
