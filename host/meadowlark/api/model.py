"""A model by name, compiled for boards and run on them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..threads import one_thread
from .chip import Chip

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.cycles import Prediction
    from ..compile.image import Image
    from ..compile.parts import Part
    from ..run.evaluate import Perplexity
    from ..run.prepare import Source

#: Gets a sentence and, where it is known, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the cycle model says of a prompt and what is generated behind it, without running it.

    model: its name. prompt, generate: tokens. position: of the first one. board, clock_mhz: its
    name, and its core's clock. prediction: cycles, bytes and products of all of it, and by
    instruction. subjects: what each instruction works on.
    """
    model: str
    prompt: int
    generate: int
    position: int
    board: str
    clock_mhz: float
    prediction: Prediction
    subjects: Sequence[str] = field(repr=False)

    @property
    def whole(self) -> Part:
        """All of it, and what bounds it: see :class:`meadowlark.compile.parts.Part`."""
        from ..compile.parts import whole
        return whole(self.prediction)

    @property
    def operators(self) -> list[Part]:
        """By operator, most cycles first."""
        from ..compile.parts import operators
        return operators(self.prediction)

    @property
    def layers(self) -> list[Part]:
        """By layer, in the order of the program."""
        from ..compile.parts import layers
        return layers(self.prediction, self.subjects)

    @property
    def first_token_s(self) -> float:
        """From the start to the first token, in seconds."""
        return self.prediction.prefill_cycles / self.clock_mhz / 1e6

    @property
    def prompt_tokens_per_s(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt / self.first_token_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, behind the first one; 0 where there are none."""
        passes = max(self.generate - 1, 0)
        return passes * self.clock_mhz * 1e6 / self.prediction.decode_cycles if passes else 0.0


def forecast_of(image: Image, board: Board, *, prompt: int, generate: int, position: int = 0,
                exact: bool = False) -> Forecast:
    """What the cycle model says of an image on a board; see :meth:`LoadedModel.predict`."""
    from ..compile.cycles import predict
    from ..compile.disassemble import subjects
    from ..compile.forecast import forecast
    found = (predict if exact else forecast)(image, board, prompt=prompt, generate=generate,
                                             start_pos=position)
    return Forecast(model=image.name, prompt=prompt, generate=generate, position=position,
                    board=board.name, clock_mhz=board.clock_mhz, prediction=found,
                    subjects=subjects(image))


def load(name: str | Path = "stories", *, context: int | None = None, weights: str = "auto",
         packing: str = "auto", bits: float | None = None, target_ppl: float | None = None,
         draft: str = "auto", fuse_ffn: str = "none", drop_attention: str = "",
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
    weights, packing, bits, target_ppl, draft, fuse_ffn, drop_attention
        As the options of ``meadowlark compile``.
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
    from ..models.registry import find_model
    from ..models.fusion import check_fusion, layers_of
    from ..quant.budget import check_budget
    if packing not in PACKINGS:
        raise UserError(f"there is no packing {packing!r}; give one of {', '.join(PACKINGS)}")
    if weights not in ("auto", "int8"):
        raise UserError(f"there are no weights {weights!r}; give auto or int8")
    check_budget(bits, target_ppl)
    check_fusion(fuse_ffn)
    layers_of(drop_attention)
    if not is_image(str(name)):
        find_model(name, progress)
    return LoadedModel(str(name), dict(context=context, weights=weights, packing=packing,
                                       bits=bits, target_ppl=target_ppl, draft=draft,
                                       fuse_ffn=fuse_ffn, drop_attention=drop_attention,
                                       progress=progress, warn=warn))


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
        from meadowlark_boards import get_board

        from ..run.prepare import made_for
        if board is None:
            board = made_for(self.name) or "virtual"
        if not isinstance(board, str):
            return board
        try:
            return get_board(board)
        except ValueError as error:
            raise UserError(str(error)) from error

    def on(self, target: str = "sim", *, board: str | Board | None = None) -> Chip:
        """Something that runs the model, with it loaded.

        Parameters
        ----------
        target : str
            "sim" (the gateware, simulated), "pins" (the whole chip, down to its pins), "golden"
            (the bit-exact model of it), or the port of a board.
        board : str or Board, optional
            What is simulated; a board at a port says itself what it is. By default the one an
            image was compiled for, or ``virtual``.

        Raises
        ------
        UserError
            There is no such target or board, nothing answers there, or the model does not fit.
        """
        from ..run.targets import SIMULATED, open_target
        which = self._board(board) if target in SIMULATED or board is not None else None
        runner = open_target(target, which, progress=self._options["progress"])
        try:
            source = self._source(runner.board)
            with one_thread():
                runner.load(source)
            return Chip(runner, source)
        except BaseException:
            runner.close()
            raise

    def compile(self, board: str | Board | None = None, path: str | Path | None = None) -> Image:
        """The image for a board, written to a file if a path is given.

        Raises
        ------
        UserError
            The model does not fit the board, or the file cannot be written.
        """
        with one_thread():
            image = self._source(self._board(board)).image
        if path is not None:
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

    def perplexity(self, text: str | None = None, *, board: str | Board | None = None,
                   max_tokens: int | None = None, context: int | None = None) -> Perplexity:
        """Perplexity of the board's arithmetic beside that of float32.

        Parameters
        ----------
        text : str, optional
            Texts, one a line; by default the packaged stories that the model has not seen.
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
        source, tell = self._source(self._board(board)), self._options["progress"]
        source.check_reads(images=False)
        with one_thread():
            return perplexity(
                source.model, source.quantised, validation_text() if text is None else
                text.splitlines(), max_tokens, context=context,
                progress=tell and (lambda n: tell("predicting", n, max_tokens or 0)))
