"""From what people name to what runs: model, integers, image. Slow steps are kept in the cache.

Calibration takes seconds for the packaged model and minutes for large ones, and depends on nothing
but the files of the model and this program: its result is kept under a hash of both.
"""
from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from meadowlark_hdl.weights.modes import Packing

from ..compile.image import Image, board_of, is_image
from ..errors import UserError
from ..progress import Progress

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..draft.table import DraftTable
    from ..models.checkpoint import Model
    from ..models.pictures import Pictures
    from ..quant.quantise import QuantModel
    from ..text.chat import Conversation
    from ..text.tokenizer import Tokenizer


def check_text(text: str, what: str) -> None:
    """Raise :class:`UserError` unless it is text; what: a name for it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} is not valid UTF-8; check the terminal's encoding") from None


def made_for(name: str) -> Board | None:
    """The board that an image was compiled for; None: it is no image, or the board is not one of
    ours."""
    from meadowlark_boards import BOARDS
    return BOARDS.get(board_of(name)) if is_image(name) else None


@dataclass
class Source:
    """A model by path or name, in every form it is needed in, each made once and when asked for.

    Parameters
    ----------
    name : str
        An image file, or what :func:`meadowlark.models.registry.load_model` takes.
    board : Board
    context : int, optional
        See :func:`meadowlark.compile.compiler.compile_model`.
    weights : str
        See :func:`meadowlark.quant.quantise.quantise`.
    packing : str
        See :func:`meadowlark.compile.compiler.compile_model`.
    all_tokens : bool
        See :func:`meadowlark.compile.compiler.compile_model`.
    lanes : str
        See :func:`meadowlark.compile.compiler.compile_model`.
    bits, target_ppl : float, optional
        Bits a weight, or per cent of perplexity, that int8 weights may cost (then all are int8);
        see :mod:`meadowlark.quant.budget`.
    draft : str
        Table of drafts for the image: a file, "none", or "auto", the one that comes with the model.
    fuse_ffn, drop_attention : str
        FFNs to fuse and layers to take the attention from, before all else: see
        :func:`meadowlark.models.fusion.groups` and :func:`meadowlark.models.fusion.layers_of`.
    maximum : str
        Of rows of scores: one of :data:`meadowlark.quant.maximum.MAXIMA`.
    progress : callable, optional
    warn : callable, optional
        Gets each sentence of :attr:`meadowlark.models.checkpoint.Model.warnings`, and one where
        the board's memory has no room for the table that comes with the model.
    """
    name: str
    board: Board
    context: int | None = None
    weights: str = "auto"
    packing: str = "auto"
    all_tokens: bool = False
    lanes: str = "auto"
    bits: float | None = None
    target_ppl: float | None = None
    draft: str = "auto"
    fuse_ffn: str = "none"
    drop_attention: str = ""
    maximum: str = "exact"
    progress: Progress | None = None
    warn: Callable[[str], None] | None = None

    @property
    def is_image(self) -> bool:
        """The name is that of an image file."""
        return is_image(self.name)

    def tell(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is being done, to ``progress``."""
        if self.progress:
            self.progress(text, done, total)

    @cached_property
    def _stored(self) -> Model:
        """The checkpoint as its files have it."""
        if self.is_image:
            image = self.image      # says so if it is no image at all
            raise UserError(f"{self.name} is an image of {image.name} and holds no checkpoint; "
                            "give the model itself")
        from ..models.registry import load_model
        self.tell("reading the model")
        return load_model(self.name, progress=self.tell)

    @cached_property
    def model(self) -> Model:
        """The checkpoint in float32, fused as asked."""
        return self._altered(self._stored)

    def _altered(self, model: Model) -> Model:
        """A model as options change it, see :mod:`meadowlark.models.fusion`."""
        from ..models.fusion import altered
        from ..quant.own_text import own_text
        return altered(model, fuse_ffn=self.fuse_ffn, drop_attention=self.drop_attention,
                       whole=lambda: self._stored, texts=lambda on: own_text(
                           on, progress=lambda n: self.tell("writing a text, tokens:", n)))

    @cached_property
    def outline(self) -> Model:
        """The checkpoint without the values of its weights; read at once."""
        if self.is_image:
            return self.model       # says why not
        from ..models.registry import load_model
        model = load_model(self.name, outline=True, progress=self.tell)
        if self.warn is not None:
            for sentence in model.warnings:
                self.warn(sentence)
        return self._altered(model)

    @property
    def pictures(self) -> Pictures | None:
        """What an encoder of images is shown; None: the model reads text."""
        if not self.is_image:
            return self.outline.pictures
        return None if self.image.vision is None else self.image.vision.pictures

    def check_reads(self, *, images: bool) -> None:
        """Raise a :class:`UserError` unless the model reads images, or text."""
        if images and self.pictures is None:
            raise UserError(f"{self.name} reads text, not images; give an encoder of images, such "
                            "as a Hugging Face folder of ViTForImageClassification")
        if not images and self.pictures is not None:
            raise UserError(f"{self.name} reads images, not text; use meadowlark classify")

    def check_fits(self) -> None:
        """Raise a :class:`UserError` unless the model fits the board: from its shapes, and only
        where entropy decides about the memory, from its weights."""
        free = self.bits is self.target_ppl is None
        if not (free or self.board.config.packing & Packing.ENTROPY):
            raise UserError(f"--bits and --target-ppl save nothing on the board {self.board.name}: "
                            "it reads no entropy-coded weights; leave them out, or take another "
                            "--board")
        from ..compile import limits
        from ..quant.shapes import Shapes
        shapes = Shapes.of_model(self.outline, self.weights if free else "int8")
        ask: dict = dict(context=self.context, bits=self.bits or 8.0)
        least = limits.least_bits(self.board, self.packing)
        limits.check(shapes, self.board, **ask, least=self.bits or least)
        if free and least < 8 and limits.fits(shapes, self.board, **ask):
            needs = limits.need(shapes, self.board)
            limits.check(shapes, self.board, **ask,
                         least=limits.entropy_bits(self._suited(self.model), needs))

    def _suited(self, model: Model) -> Model:
        """A model as it is rewritten for the board."""
        from ..compile.limits import most_ffn
        from ..models.rewrite import suited
        return suited(model, most_ffn(model.hidden, self.board))

    @cached_property
    def quantised(self) -> QuantModel:
        """The integer model, for the context asked for at least."""
        if self.maximum == "exact":
            return self._exact
        from ..compile.compiler import check_unified
        from ..quant.maximum import PRODUCTS, TOKENS, WINDOW_OF, unified
        from ..quant.quantise import calibration_tokens
        check_unified(self._exact, self.board, self.lanes)

        def make() -> QuantModel:
            most = min(TOKENS, PRODUCTS // self.model.parameters)
            return unified(self._exact, calibration_tokens(self.model, max_tokens=most),
                           window=WINDOW_OF[self.maximum], progress=lambda n: self.tell(
                               "calibrating maxima, tokens:", n))
        return self._kept(self.maximum, make)

    @cached_property
    def _exact(self) -> QuantModel:
        """The integer model with exact maxima."""
        return self._kept("", self._quantise)

    def _kept(self, maximum: str, make: Callable[[], QuantModel]) -> QuantModel:
        """An integer model of the cache, or made and kept there. maximum: of which kind, if not
        exact."""
        from .. import cache
        from ..quant import integers
        from ..quant.plan import plan
        # A missing or damaged one is an error before anything else.
        outline, head_pad = self._suited(self.outline), self.board.config.W
        weights = self._weights
        budget = "" if self.bits is self.target_ppl is None else f"{self.bits} {self.target_ppl}"
        how = f"{weights}{budget}{maximum} {plan(outline.graph, head_pad=head_pad).head_pad}"
        name = f"integers-{_digest(self.name, f'{how} {outline.graph}')}.safetensors"
        if kept := cache.find(name):
            try:
                return integers.load(kept.read_bytes(), outline, "int8" if budget else weights)
            except (OSError, ValueError):
                pass                # make it again
        made = make()
        cache.keep(name, integers.dump(made))
        return made

    def _quantise(self) -> QuantModel:
        """The checkpoint in integers."""
        from ..quant.quantise import quantise
        model, head_pad = self._suited(self.model), self.board.config.W
        if not self.bits is self.target_ppl is None:
            from ..quant.budget import choose
            from ..quant.equalise import equalise
            from ..quant.own_text import own_text
            texts = own_text(model, progress=lambda n: self.tell("writing a text, tokens:", n))
            model = equalise(
                model, texts, progress=lambda n: self.tell("evening out columns, tokens:", n))
            rounded, ranges = choose(model, texts, bits=self.bits, target_ppl=self.target_ppl,
                                     progress=self.tell)
            return quantise(model, ranges, weights="int8", rounded=rounded, head_pad=head_pad)
        return quantise(model, weights=self._weights, head_pad=head_pad,
                        progress=lambda n: self.tell("calibrating, tokens:", n))

    @property
    def _weights(self) -> str:
        """As asked, if the board can."""
        return self.weights if self.board.config.block_modes else "int8"

    @cached_property
    def table(self) -> DraftTable | None:
        """The table of drafts that is to go into the image.

        Raises
        ------
        UserError
            A file that is none, or for another vocabulary; or the board drafts nothing.
        """
        from ..draft.table import DraftTable, packaged
        path = packaged(self.name) if self.draft == "auto" else self.draft
        if path is None or self.draft == "none":
            return None
        if not self.board.config.drafts:
            if self.draft == "auto":
                return None
            raise UserError(f"the board {self.board.name} drafts nothing, so it has no use for "
                            f"the table {path}; leave --draft out, or take another --board")
        table = DraftTable.load(path)
        table.check_for(self.outline, str(path))
        return table

    @cached_property
    def image(self) -> Image:
        """The image for the board."""
        if self.is_image:
            for what, option, free in (("context", "--ctx", self.context is None),
                                       ("weights", "--weights", self.weights == "auto"),
                                       ("packing", "--packing", self.packing == "auto"),
                                       ("last layer", "--all-tokens", not self.all_tokens),
                                       ("lanes", "--lanes", self.lanes == "auto"),
                                       ("grid", "--bits and --target-ppl",
                                        self.bits is self.target_ppl is None),
                                       ("table of drafts", "--draft", self.draft == "auto"),
                                       ("FFN fusion", "--fuse-ffn", self.fuse_ffn == "none"),
                                       ("attention", "--drop-attention",
                                        not self.drop_attention),
                                       ("maximum", "--maximum", self.maximum == "exact")):
                if not free:
                    raise UserError(f"the {what} of {self.name} was fixed when it was compiled; "
                                    f"leave {option} out or compile again with {option}")
            image = Image.load(self.name)
            image.check_board(self.board)
            return image
        from ..compile.compiler import compile_model
        self.check_fits()
        table, qm = self.table, self.quantised
        self.tell("compiling")
        image = compile_model(qm, self.board, context=self.context, packing=self.packing,
                              all_tokens=self.all_tokens, draft=table, lanes=self.lanes)
        if table is not None and image.draft is None:
            sentence = (f"the memory of the board {self.board.name} has no room for {table.size:,} "
                        "bytes of drafts beside the model")
            if self.draft != "auto":
                raise UserError(f"{sentence}; give a smaller table, a shorter --ctx, or leave "
                                "--draft out")
            if self.warn is not None:
                self.warn(f"{sentence}, so it drafts from its context alone; a shorter --ctx "
                          "makes room")
        return image

    @cached_property
    def bits_per_code(self) -> float:
        """What a byte of int8 codes takes in memory, 1..8, as far as it is known before they are
        quantised: as :attr:`bits` asks, or the entropy of those of the checkpoint; 8 where the
        board reads no entropy-coded weights, and of blocks."""
        from ..compile import limits
        from ..quant.shapes import Shapes
        if self.bits is not None:
            return min(self.bits, 8.0)
        if not self.board.config.packing & Packing.ENTROPY or self.packing not in (
                "auto", Packing.ENTROPY.label):
            return 8.0
        needs = limits.need(Shapes.of_model(self.outline, self.weights), self.board, self.context)
        bits = limits.entropy_bits(self._suited(self.model), needs)
        return 8.0 if bits <= limits.LEAST_BITS else min(bits, 8.0)

    @cached_property
    def sketch(self) -> Image:
        """The image with zeros for weights, from shapes alone: there at once, see
        :mod:`meadowlark.compile.sketch`. Of an image file, that image."""
        if self.is_image:
            return self.image
        from ..compile.sketch import sketch
        if self.target_ppl is not None:
            raise UserError("what --target-ppl saves is only known when the model is quantised; "
                            "give --bits, or ask for an exact prediction")
        self.check_fits()
        return sketch(self.outline, self.board, context=self.context, packing=self.packing,
                      weights=self.weights if self.bits is None else "int8",
                      bits=self.bits_per_code, all_tokens=self.all_tokens, draft=self.table,
                      lanes=self.lanes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the image, or of the checkpoint."""
        from ..text.tokenizer import Tokenizer
        if not self.is_image:
            return self.outline.tokenizer
        return Tokenizer(self.image.tokenizer, f"the tokenizer in {self.name}")

    @property
    def has_template(self) -> bool:
        """It came with a chat template."""
        return (self.image if self.is_image else self.outline).chat is not None

    def conversation(self, system: str = "") -> Conversation:
        """A conversation with the model, nothing said yet.

        system: a message in front of it, such as how to answer; "" is none.

        Raises
        ------
        UserError
            It came without a chat template, or with one that refuses a first question.
        """
        from ..text.chat import Conversation
        check_text(system, "the system message")
        model = self.image if self.is_image else self.outline
        if model.chat is None:
            what = f"the image {self.name}" if self.is_image else f"the model {self.outline.name}"
            raise UserError(f"{what} came without a chat template; use `generate` without --chat")
        talk = Conversation(model.chat, self.tokenizer, system=system, bos=model.bos_id,
                            stop_ids=model.stop_ids)
        talk.ask("Hello")
        return talk

    def prompt(self, text: str, *, chat: bool = False, system: str = "") -> list[int]:
        """Text -> ids, with the model's bos in front.

        Parameters
        ----------
        text : str
        chat : bool
            The text is what a user says: the model's chat template makes the prompt, bos and all.
        system : str
            See :meth:`conversation`.

        Raises
        ------
        UserError
            It is not text or does not fit the context; it is empty, and a question, or the model
            has no bos to begin with; the model has no template.
        """
        check_text(text, "the prompt")
        if chat:
            if not text.strip():
                raise UserError("the question is empty; give at least one word")
            return self.fitting(self.conversation(system).ask(text))
        return self.fitting(self.tokenizer.opened(text, self.image.bos_id))

    def given(self, ids: list[int]) -> list[int]:
        """Ids of a prompt as they are, or a :class:`UserError`: the model does not know one, or the
        context does not hold so many."""
        if max(ids) >= self.image.shape["vocab"]:
            raise UserError(f"there is no token {max(ids)}: {self.name} knows "
                            f"{self.image.shape['vocab']}, from 0 on; give other ids")
        return self.fitting(ids, "the prompt", "give fewer ids")

    def fitting(self, ids: list[int], what: str = "the prompt",
                remedy: str = "shorten the prompt") -> list[int]:
        """The ids, or a :class:`UserError`: there are none, the context does not hold so many, or
        the model does not know one. what, remedy: parts of that sentence."""
        context, vocab = self.image.context, self.image.shape["vocab"]
        if not ids:
            raise UserError(f"{what} is empty, and {self.name} has no bos to begin a text with; "
                            "give at least one word")
        if len(ids) > context:
            raise UserError(f"{what} has {len(ids)} tokens and the context holds {context}; "
                            f"{remedy}")
        if max(ids) >= vocab:
            raise UserError(f"the tokenizer of {self.name} gives token {max(ids)} and its model "
                            f"knows {vocab}; get it again")
        return ids


def _digest(name: str, how: str) -> str:
    """Of a model's files, and of how and with what code they are quantised."""
    import meadowlark_hdl

    from .. import cache
    from ..models.registry import find_model, model_files
    packages = Path(__file__).parents[1], Path(meadowlark_hdl.__file__).parent
    versions = map(importlib.metadata.version, ("numpy", "tokenizers", "gguf", "safetensors"))
    return cache.digest(how, *versions, *(file for package in packages
                                          for file in cache.source_files(package)),
                        *model_files(find_model(name)))
