"""What a model runs on: the golden model, the simulated board, or a board at a port."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.sampler.sampler_golden import Sampling, logits_crc, sample

from ..compile.passes import prompt_regs
from ..errors import UserError
from ..progress import Progress

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.config import Config
    from meadowlark_hdl.isa_golden import GoldenCore

    from ..compile.image import Image
    from ..link.driver import BoardInfo, Driver, TokenEvent
    from ..quant.golden import GoldenModel
    from ..sim import SimBoard
    from .prepare import Source

#: Tokens between two signs of progress while a cache is computed.
CACHED_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """A generated token.

    crc: CRC-32 of the logits it was drawn from. logits: int32[vocab], or None where the target
    cannot be tapped.
    """
    token: int
    crc: int
    logits: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """most: drafts of a pass at most; 0: none. price: what a pass with drafts costs more than one
    without, in 1/256 of that, see :class:`meadowlark_hdl.draft.choice_golden.Choice`; 0: each pass
    has drafts."""
    most: int = 0
    price: int = 0


#: No drafts.
OFF = Drafting()


class Target(ABC):
    """Something that runs one model.

    Attributes
    ----------
    name : str
        As ``--target`` takes it.
    messages : int
        Messages the host sent between the prompt and the last token of the latest run, credits
        apart.
    cached : int
        Tokens at the front of the latest prompt that the KV cache held already.
    board : Board
        What a model has to be compiled for.
    blocks : int, optional
        Of P tokens, of the passes of a prompt. None: as many as are quickest
        (:func:`meadowlark.compile.passes.pass_blocks`).
    """
    name: str
    cached: int = 0
    blocks: int | None = None

    def __init__(self) -> None:
        self._held: list[int] = []      # tokens whose keys and values the cache surely holds
        self._ends = False
        self._image: Image | None = None
        self._before: Counter[str] = Counter()      # of the runs of an image before the last one

    @property
    @abstractmethod
    def board(self) -> Board:
        """See :class:`Target`."""

    @property
    def messages(self) -> int:
        return 0

    def load(self, source: Source) -> None:
        """Make the target ready for :meth:`generate`."""
        self._held = []
        self._load(source)

    def generate(self, tokens: Sequence[int], sampling: Sampling, *, max_new: int,
                 stop_ids: Sequence[int], reuse: bool = False,
                 drafts: Drafting = OFF) -> Generator[Event, None, None]:
        """Run a prompt from position 0; tokens as they come.

        Ends after a stop id (which is given), ``max_new`` tokens, or the first token without a
        place in the context. Closing the iterator ends the run.

        reuse : bool
            Take only the tokens behind those that the KV cache holds from earlier runs, the last
            one at least. The run gives the same tokens.
        drafts : Drafting
            Of the passes; they change no token.
        """
        tokens = list(tokens)
        start = _alike(self._held, tokens[:-1]) if reuse else 0
        self.cached, self._held = start, tokens[:start]     # what follows may be overwritten
        ahead = tokens[start:]
        with closing(self.run(ahead, sampling, start_pos=start, max_new=max_new,
                              stop_ids=stop_ids, drafts=drafts)) as events:
            for event in events:
                # Drawn from the keys and values of all before it; its own are still to come.
                self._held += ahead
                ahead = [event.token]
                yield event

    def classify(self, codes: np.ndarray) -> Event:
        """The class of an image, as a token. codes: int16[tokens, width], see
        :meth:`meadowlark.models.pictures.Pictures.codes`; the model is an encoder. An image with
        more tokens than a pass takes is several runs."""
        assert self._image is not None, "load() comes first"
        self._held, self._before = [], Counter()
        self._show(codes)
        for run in self._image.runs:
            self._turn(run.model_regs)
            with closing(self.run(run.tokens, Sampling(), start_pos=run.start_pos,
                                  max_new=int(run.final), stop_ids=(), base=run.base)) as events:
                if run.final:
                    return next(events)
                assert not list(events)
            self._before.update(self.counters())
        raise AssertionError("an image without a final run")

    def image_counters(self) -> dict[str, int]:
        """Those of :meth:`counters` for all runs of the latest image. Runs before the last one are
        of the first token too."""
        found, before = self.counters(), self._before
        return {name: count + before["cycles" if name == "cycles_first_token" else name]
                for name, count in found.items()}

    @abstractmethod
    def _turn(self, model_regs: Mapping[str, int]) -> None:
        """Runs from here on have these."""

    @abstractmethod
    def _show(self, codes: np.ndarray) -> None:
        """Put an image where the next run reads it."""

    @abstractmethod
    def _load(self, source: Source) -> None:
        """See :meth:`load`."""

    @abstractmethod
    def run(self, tokens: Sequence[int], sampling: Sampling, *, start_pos: int, max_new: int,
            stop_ids: Sequence[int], drafts: Drafting = OFF, cache: int = 0, base: int = 0,
            before: Sequence[int] = ()) -> Generator[Event, None, None]:
        """As :meth:`generate`, from start_pos, in one of several caches, which below it is kept.

        base: chunks from the cache's beginning to what counts as that. before: all tokens below
        start_pos, if another sequence ran since, for drafts alone.
        """

    @abstractmethod
    def run_together(self, tokens: Sequence[int], places: Sequence[tuple[int, int]],
                     samplings: Sequence[Sampling], *, max_new: int,
                     stop_ids: Sequence[int]) -> Generator[Event, None, None]:
        """Passes that go on with several sequences each; of each pass an event for each sequence,
        in order.

        Ends after max_new passes, or fewer, with the pass that draws a stop id, or when
        :meth:`end` was called: there within a pass, perhaps.

        tokens, places: of each sequence its last token, whose keys are to come, and the number of
        its cache and the token's position. samplings: alike but for seeds, without top-k.
        """

    def end(self) -> None:
        """End the run under way; what it has drawn may still come."""
        self._ends = True

    def forget(self) -> None:
        """Caches may hold anything from now on."""
        self._held = []

    def fill(self, tokens: Sequence[int], caches: int = 1) -> None:
        """Put the keys and values of tokens, from position 0 on, into the first KV caches without a
        run; :meth:`generate` with ``reuse`` goes on behind them. Only a simulation can."""
        raise unfillable(self.name)

    def counters(self) -> dict[str, int]:
        """Counters of the core for the latest run; of the golden models those that they have."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""


def golden_core(image: Image, config: Config | None = None, seed: int = 0,
                caches: int = 1) -> GoldenCore:
    """The golden model of a core with an image loaded.

    config: of the core; by default that of the board it was compiled for. seed: of the noise in
    its memories. caches: of as many sequences.

    Raises
    ------
    ProgramError
        The image's registers are those of no model.
    """
    from meadowlark_hdl.config import Config
    from meadowlark_hdl.isa_golden import GoldenCore
    return GoldenCore(config or Config(**image.config), program=image.instructions,
                      model=image.model_regs, memory=image.memory,
                      memory_bytes=len(image.memory) + caches * image.cache_bytes, seed=seed)


class GoldenTarget(Target):
    """The specification as a target: bit-exact, without a clock.

    A model runs in integers (:class:`~meadowlark.quant.golden.GoldenModel`), an image as the
    program that it is (:class:`~meadowlark_hdl.isa_golden.GoldenCore`): no checkpoint is needed.

    Parameters
    ----------
    board : Board, optional
        Whose limits hold; the default one.
    progress : callable, optional
        Told while the weights of an image are decoded.
    """

    name = "golden"

    def __init__(self, board: Board | None = None, *, progress: Progress | None = None) -> None:
        super().__init__()
        self._board, self._progress = board or _default(), progress
        self._golden: GoldenModel | None = None         # of a model
        self._core: GoldenCore | None = None            # of an image

    @property
    def board(self) -> Board:
        return self._board

    def _load(self, source: Source) -> None:
        self._core = self._golden = None
        self._image = image = source.image
        if source.is_image:
            with self._sound():
                core = golden_core(image, self._board.config, caches=image.most_together(
                    self._board.config.turns))
                for visit in image.visits or [None]:
                    if visit is not None:
                        core.model = visit.regs(image.model_regs)
                    core.read_stream(self._tell)
            self._core = core
        else:
            from ..quant.golden import GoldenModel
            self._golden = GoldenModel(source.quantised, context=image.context)

    def _show(self, codes: np.ndarray) -> None:
        assert self._image is not None, "load() comes first"
        if self._core is not None:
            at, tiles = _tiles(self._image, codes)
            self._core.memory[at:at + len(tiles)] = np.frombuffer(tiles, np.uint8)

    def _turn(self, model_regs: Mapping[str, int]) -> None:
        assert self._core is not None
        self._core.model = model_regs

    def classify(self, codes: np.ndarray) -> Event:
        if self._golden is None:
            return super().classify(codes)
        logits = self._golden.classify(codes)
        return Event(token=int(logits.argmax()), crc=logits_crc(logits), logits=logits)

    def _tell(self, done: int, total: int) -> None:
        if self._progress:
            self._progress("decoding the image's weights", done, total)

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """A program that cannot run is the image's fault."""
        from meadowlark_hdl.control.fetch_golden import ProgramError
        try:
            yield
        except ProgramError as error:
            image = self._image
            assert image is not None
            where = "" if error.pc is None else f" ({image.place(error.pc)})"
            raise UserError(f"the image of {image.name} is damaged: {error}{where}; compile the "
                            "model again") from error

    def run(self, tokens: Sequence[int], sampling: Sampling, *, start_pos: int, max_new: int,
            stop_ids: Sequence[int], drafts: Drafting = OFF, cache: int = 0, base: int = 0,
            before: Sequence[int] = ()) -> Generator[Event, None, None]:
        runs = self._core or self._golden
        assert runs is not None and self._image is not None, "load() comes first"
        self._ends = False
        room = self._image.context - start_pos - len(tokens) + 1
        ways: dict = dict(max_new=min(max_new, room), stop_ids=tuple(stop_ids),
                          start_pos=start_pos, draft_most=drafts.most, draft_price=drafts.price)
        if self._golden is not None:
            self._golden.saturations.clear()
            self._golden.turn_to(cache)
            ways["drafter"] = partial(draft, table=self._image.draft_entries,
                                      least=self._image.draft_least)
        else:
            if not self._image.visits:
                self._turn(prompt_regs(self._image, self._board, len(tokens), start_pos,
                                       self.blocks))
            ways["base"] = self._image.base(cache) + base
        with self._sound():
            for token, logits in runs.generate(tokens, sampling, **ways):
                yield Event(token=token, crc=logits_crc(logits), logits=logits)
                if self._ends:
                    return

    def run_together(self, tokens: Sequence[int], places: Sequence[tuple[int, int]],
                     samplings: Sequence[Sampling], *, max_new: int,
                     stop_ids: Sequence[int]) -> Generator[Event, None, None]:
        self._ends = False
        with self._sound():
            for drawn in self._passes(tokens, places, samplings, max_new, stop_ids):
                for token, logits in drawn:
                    yield Event(token=token, crc=logits_crc(logits), logits=logits)
                    if self._ends:
                        return

    def _passes(self, tokens: Sequence[int], places: Sequence[tuple[int, int]],
                samplings: Sequence[Sampling], max_new: int, stop_ids: Sequence[int],
                ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Those of :meth:`run_together`."""
        from meadowlark_hdl.control.sequencer_golden import Place
        assert self._image is not None, "load() comes first"
        if self._core is not None:
            placed = [Place(self._image.base(cache), position) for cache, position in places]
            yield from self._core.batches(tokens, placed, samplings, max_new=max_new,
                                          stop_ids=stop_ids)
            return
        golden, drawn = self._golden, list[tuple[int, np.ndarray]]()
        assert golden is not None
        golden.saturations.clear()
        golden.turns = []
        for before in range(max_new):
            drawn.clear()
            for token, (cache, position), draw in zip(tokens, places, samplings, strict=True):
                golden.turn_to(cache)
                logits = golden.forward([token], position + before)
                drawn.append((sample(logits, draw, position + before + 1), logits))
            yield drawn
            tokens = [token for token, _ in drawn]
            if not set(tokens).isdisjoint(stop_ids):
                return

    def cache(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """Keys and values of tokens at positions 0.., as they lie at each of
        :attr:`.Image.caches`: uint8[len(tokens) * bytes of a position].

        Whole passes over those of them that earlier calls have not taken; no logits but the last.
        """
        runs, image, tokens = self._core or self._golden, self._image, list(tokens)
        assert runs is not None and image is not None, "load() comes first"
        n = len(tokens)
        for at in range(_alike(self._held, tokens), n, CACHED_AT_ONCE):
            if self._progress:
                self._progress("filling the cache by the golden model", at, n)
            self._held = tokens[:at]
            with self._sound():
                runs.forward(tokens[at:at + CACHED_AT_ONCE], at)
            self._held = tokens[:at + CACHED_AT_ONCE]
        if self._golden is not None:
            both = np.stack([self._golden.keys, self._golden.values], axis=1)[..., :n, :]
            # int8[positions, columns of all heads], in the order of the caches
            rows = both.reshape(-1, n, both.shape[-1]).swapaxes(0, 1).reshape(n, -1)
            ends = np.cumsum([width for _, width in image.caches])[:-1]
            return [part.ravel().view(np.uint8) for part in np.split(rows, ends, axis=1)]
        assert self._core is not None
        return [self._core.memory[at:at + n * width] for at, width in image.caches]

    def counters(self) -> dict[str, int]:
        """Of an image all that do not depend on time; of a model, its scores that saturated."""
        if self._core is not None:
            return dict(self._core.counters)
        if self._golden is None:
            return {}
        turns = self._golden.turns
        return {"score_saturations": self._golden.saturations.get("scores", 0),
                "drafted": sum(len(turn.drafts) for turn in turns),
                "accepted": sum(turn.accepted for turn in turns)}

    def close(self) -> None:
        self._golden = self._core = self._image = None


class BoardTarget(Target):
    """A board behind the host link.

    Parameters
    ----------
    name : str
    driver : Driver, optional
        Owned from here on. None: a subclass has one by the time it is used.
    progress : callable, optional
        Told while the image is being loaded.
    """

    def __init__(self, name: str, driver: Driver | None, *,
                 progress: Progress | None = None) -> None:
        super().__init__()
        self.name, self._driver, self._progress = name, driver, progress

    @property
    def driver(self) -> Driver:
        """The connection to the board."""
        assert self._driver is not None
        return self._driver

    @property
    def board(self) -> Board:
        return board_of(self.driver.info)

    @property
    def messages(self) -> int:
        return self.driver.host_messages

    def _load(self, source: Source) -> None:
        image, info = source.image, self.driver.info
        image.check_config(info.config, memory_bytes=info.memory_bytes or len(image.memory),
                           name=info.name, only=info.only)
        self._write(image)
        self._image, self.driver.places = image, image.place
        self._blocks, self._stated = image.model_regs["blocks"], self.board

    def _show(self, codes: np.ndarray) -> None:
        assert self._image is not None, "load() comes first"
        self.driver.write_memory(*_tiles(self._image, codes))

    def _turn(self, model_regs: Mapping[str, int]) -> None:
        assert self._image is not None
        if self._image.visits:
            self.driver.set_model(model_regs)

    def _write(self, image: Image) -> None:
        def advance(done: int, total: int) -> None:
            if self._progress:
                self._progress("loading the board's memory", done, total)
        self.driver.load([(0, image.memory)], program=image.program, model=image.model_regs,
                         progress=advance)

    def run(self, tokens: Sequence[int], sampling: Sampling, *, start_pos: int, max_new: int,
            stop_ids: Sequence[int], drafts: Drafting = OFF, cache: int = 0, base: int = 0,
            before: Sequence[int] = ()) -> Generator[Event, None, None]:
        assert self._image is not None, "load() comes first"
        if not self._image.visits:
            blocks = prompt_regs(self._image, self._stated, len(tokens), start_pos,
                                 self.blocks)["blocks"]
            if blocks != self._blocks:
                self.driver.write_registers({"blocks": blocks})
            self._blocks = blocks
        # The board knows the size of its own memories, not of this image's KV cache.
        room = self._image.context - start_pos - len(tokens) + 1
        with closing(self.driver.run(
                tokens, sampling, max_new=min(max_new, room), stop_ids=tuple(stop_ids),
                start_pos=start_pos, draft_most=drafts.most, draft_price=drafts.price,
                base=self._image.base(cache) + base, before=before)) as events:
            yield from self._events(events)

    def run_together(self, tokens: Sequence[int], places: Sequence[tuple[int, int]],
                     samplings: Sequence[Sampling], *, max_new: int,
                     stop_ids: Sequence[int]) -> Generator[Event, None, None]:
        from meadowlark_hdl.control.sequencer_golden import Place
        assert self._image is not None, "load() comes first"
        placed = [Place(self._image.base(cache), position) for cache, position in places]
        with closing(self.driver.run_batch(tokens, placed, samplings, max_new=max_new,
                                           stop_ids=tuple(stop_ids))) as events:
            yield from self._events(events)

    def end(self) -> None:
        self.driver.end()

    def _events(self, events: Iterator[TokenEvent]) -> Generator[Event, None, None]:
        """Of a run, with what else is known of it."""
        for event in events:
            yield Event(token=event.token, crc=event.crc)

    def counters(self) -> dict[str, int]:
        return self.driver.counters()

    def close(self) -> None:
        self.driver.close()


class SimTarget(BoardTarget):
    """The simulated board; built and started when it is first used.

    Parameters
    ----------
    board : Board
    progress : callable, optional
        Told while the simulation is being built.
    through_link : bool
        Load the image frame by frame, as a real board; by default it is put into the simulated
        memory directly.
    sleep : bool
        See :class:`~meadowlark.sim.SimBoard`.
    pins : bool
        Simulate the whole chip at its pins, see :class:`~meadowlark.sim.PinBoard`.
    trace : bool
        Not with pins: it can record what the units do, see
        :meth:`SimBoard.record <meadowlark.sim.SimBoard.record>`.
    waves : bool
        Likewise: it can write its signals, see
        :meth:`SimBoard.write_waves <meadowlark.sim.SimBoard.write_waves>`.

    Raises
    ------
    UserError
        What simulates is not installed, or the board has no such pins.
    """

    def __init__(self, board: Board, *, progress: Progress | None = None,
                 through_link: bool = False, sleep: bool = True, pins: bool = False,
                 trace: bool = False, waves: bool = False) -> None:
        super().__init__("pins" if pins else "sim", None, progress=progress)
        from ..sim import check_pins, check_simulation
        check_simulation()
        if pins:
            check_pins(board)
        self._board, self._pins = board, pins
        self._sleep, self._trace, self._waves = sleep, trace, waves
        self._through_link = through_link
        self._filler: GoldenTarget | None = None        # of the model that is loaded

    @property
    def board(self) -> Board:
        return self._board

    @cached_property
    def sim(self) -> SimBoard:
        """The simulation itself."""
        from ..sim import PinBoard, SimBoard
        return PinBoard(self._board, progress=self._progress) if self._pins else \
            SimBoard(self._board, sleep=self._sleep, trace=self._trace, waves=self._waves,
                     progress=self._progress)

    @property
    def driver(self) -> Driver:
        if self._driver is None:
            from ..link.driver import Driver
            from ..sim import SimTransport
            self._driver = Driver(SimTransport(self.sim))
        return self._driver

    def _load(self, source: Source) -> None:
        super()._load(source)
        self._source, self._filler = source, None

    def fill(self, tokens: Sequence[int], caches: int = 1) -> None:
        """See :meth:`Target.fill`; the golden model computes them."""
        assert self._image is not None, "load() comes first"
        if self._filler is None:
            self._filler = GoldenTarget(self._board, progress=self._progress)
            self._filler.load(self._source)
        for (at, _), values in zip(self._image.caches, self._filler.cache(tokens), strict=True):
            for base in range(at, at + caches * self._image.cache_bytes, self._image.cache_bytes):
                self.sim.memory[base:base + len(values)] = values
        self._held = list(tokens)

    def _show(self, codes: np.ndarray) -> None:
        if self._through_link:
            super()._show(codes)
            return
        assert self._image is not None, "load() comes first"
        at, tiles = _tiles(self._image, codes)
        self.sim.memory[at:at + len(tiles)] = np.frombuffer(tiles, np.uint8)

    def _write(self, image: Image) -> None:
        if self._through_link:
            super()._write(image)
            return
        self.driver.load([], program=image.program, model=image.model_regs)
        self.sim.memory[:len(image.memory)] = np.frombuffer(image.memory, np.uint8)

    def _events(self, events: Iterator[TokenEvent]) -> Generator[Event, None, None]:
        assert self._image is not None, "load() comes first"
        vocab = self._image.shape["vocab"]
        self.sim.drop_logits()
        passes: deque[np.ndarray] = deque()
        for event in events:
            passes += self.sim.take_logits(vocab)
            yield Event(token=event.token, crc=event.crc, logits=_logits_of(event.crc, passes))

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
        if "sim" in self.__dict__:
            self.sim.close()


def _tiles(image: Image, codes: np.ndarray) -> tuple[int, bytes]:
    """Where an image's patches go, and as what."""
    assert image.vision is not None, "the model reads no images"
    return image.vision.at, image.vision.tiles(codes, image.config["W"])


def unfillable(name: str) -> UserError:
    """Of a target whose memory can only be reached through the link."""
    return UserError("--position fills the cache of a simulated board, and the memory of "
                     f"{name} is out of its reach; use --target sim, or leave it out")


def _logits_of(crc: int, rows: deque[np.ndarray]) -> np.ndarray | None:
    """Those that a token was drawn from, taken out of what a simulation has seen; None: nothing.
    Rows before them are what followed a wrong draft. If none has the CRC, the first is the one to
    look at."""
    wrong = next((at for at, row in enumerate(rows) if logits_crc(row) == crc), 0)
    for _ in range(wrong):
        rows.popleft()
    return rows.popleft() if rows else None


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the front that are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def _default() -> Board:
    from meadowlark_boards import BOARDS
    return next(iter(BOARDS.values()))


def board_of(info: BoardInfo) -> Board:
    """A board from what it says about itself: its core, clock and memory, and all else from the
    board of its name, if there is one. Of others the memory's times are not known."""
    from meadowlark_boards import BOARDS, Board, LinkInfo, MemoryTiming
    known = BOARDS.get(info.name)
    if known is None:
        mhz = info.clock_hz / 1e6 or 1.0
        known = Board(name=info.name, title="a board that is not listed", config=info.config,
                      clock_mhz=mhz, link=LinkInfo(kind="queue"),
                      memory=MemoryTiming(size_bytes=1 << 40, latency_ns=1000 / mhz,
                                          bytes_per_s=info.config.bus_bytes * mhz * 1e6))
    known = known.at(info.clock_hz / 1e6 or known.clock_mhz)
    memory = replace(known.memory, size_bytes=info.memory_bytes or known.memory.size_bytes)
    return replace(known, config=info.config, memory=memory)


#: Targets that are no port, so that somebody has to say which board they are.
SIMULATED = ("golden", "sim", "pins")


def open_target(name: str, board: Board | None = None, *, trace: bool = False,
                waves: bool = False, progress: Progress | None = None) -> Target:
    """A target by name. Nothing is built or loaded, but what is at a port has answered.

    Parameters
    ----------
    name : str
        "golden", "sim", "pins", or a port: ``/dev/...[@baud]``, ``COMn[@baud]``, ``tcp:host:port``,
        on a Zynq itself ``uio:/dev/uioN@memory``, ``mem:window@memory`` or ``pynq:file.bit``.
    board : Board, optional
        Which board is simulated; the default one. A board at a port says itself what it is: one of
        another name is refused.
    trace, waves : bool
        What the units of "sim" do can be recorded, or its signals.
    progress : callable, optional

    Raises
    ------
    UserError
        No such target, nothing answers there, or another board than the one that is asked for.
    """
    if name == "golden":
        return GoldenTarget(board, progress=progress)
    if name in SIMULATED:
        return SimTarget(board or _default(), progress=progress, pins=name == "pins", trace=trace,
                         waves=waves)
    from ..link.driver import Driver
    from ..link.ports import open_transport
    from ..link.transport import TransportError
    try:
        transport = open_transport(name)
    except TransportError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"there is no target {name!r}; give golden, sim, pins, a serial port such "
                        "as /dev/ttyUSB0, tcp:host:port, or, on a Zynq itself, "
                        "uio:/dev/uio0@0x60000000, mem:0xa0000000@0x60000000 or pynq:kv260.bit"
                        ) from error
    try:
        target = BoardTarget(name, Driver(transport), progress=progress)
        if board is not None and board.name != target.board.name:
            raise UserError(f"the board at {name} says that it is {target.board.name}, and --board "
                            f"asks for {board.name}; leave --board out, or give another port")
        return target
    except BaseException:
        transport.close()
        raise


@dataclass(frozen=True, kw_only=True)
class Check:
    """Comparison of a run with the golden model.

    bit_exact: every token, and every logit (by CRC where the logits themselves were not seen).
    tokens: how many were compared. first_difference: a sentence, or "".
    """
    bit_exact: bool
    tokens: int
    first_difference: str = ""


def check(events: Sequence[Event], golden: Iterator[Event], *, whole: bool = True,
          counters: tuple[Mapping[str, int], Callable[[], Mapping[str, int]]] | None = None,
          progress: Progress | None = None) -> Check:
    """Compare a run with the golden model's, token by token.

    Parameters
    ----------
    events : sequence of Event
        Of a board.
    golden : iterator of Event
        The same run of a :class:`GoldenTarget`; taken as far as needed.
    whole : bool
        The board's run ended by itself, so the golden model's must end there as well.
    counters : (mapping, callable), optional
        The board's, and what gives the golden model's once its run has ended: if whole, both have
        as many drafts, and as many accepted.
    """
    for at, event in enumerate(events):
        if progress:
            progress("running the golden model beside it", at, len(events))
        want = next(golden, None)
        if want is None:
            return Check(bit_exact=False, tokens=at, first_difference=(
                f"the golden model ended after {at} tokens, the board went on"))
        if event.logits is not None and want.logits is not None:
            wrong = np.flatnonzero(event.logits != want.logits)
            if len(wrong):
                row = int(wrong[0])
                return Check(bit_exact=False, tokens=at, first_difference=(
                    f"token {at}: {len(wrong)} of {len(want.logits)} logits differ, the first in "
                    f"row {row} ({event.logits[row]}, golden {want.logits[row]})"))
        if event.crc != want.crc:
            return Check(bit_exact=False, tokens=at, first_difference=(
                f"token {at}: the CRC of the logits is {event.crc:#010x}, golden {want.crc:#010x}"))
        if event.token != want.token:
            return Check(bit_exact=False, tokens=at, first_difference=(
                f"token {at} is {event.token}, golden {want.token}, from the same logits"))
    if whole and next(golden, None) is not None:
        return Check(bit_exact=False, tokens=len(events), first_difference=(
            f"the board ended after {len(events)} tokens, the golden model goes on"))
    if whole and counters is not None:
        found, golden_found = counters[0], counters[1]()
        for name in ("drafted", "accepted"):
            if found.get(name) != golden_found.get(name):
                return Check(bit_exact=False, tokens=len(events), first_difference=(
                    f"the board counts {found.get(name)} drafts {name}, the golden model "
                    f"{golden_found.get(name)}"))
    return Check(bit_exact=True, tokens=len(events))
