"""Models of the Hugging Face Hub: ``hf:owner/name``, or ``hf:owner/name/file.gguf`` for one file.

``huggingface_hub`` fetches them into its own cache (``HF_HOME``), once; ``HF_ENDPOINT`` and
``HF_TOKEN`` are what it knows. Without network it takes what it has.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, brief

if TYPE_CHECKING:
    from ..progress import Progress

PREFIX = "hf:"
#: What a folder needs; a file of a repository is fetched alone.
FOLDER = ("*.json", "*.safetensors", "*.jinja")
#: Of a repository's other folders nothing is needed: ONNX, other frameworks.
NOT = ("*/*",)


def is_hub(name: str) -> bool:
    """The name is one of the Hub."""
    return name.startswith(PREFIX)


def parts(name: str) -> tuple[str, str]:
    """ "hf:owner/name/file.gguf" -> "owner/name", "file.gguf" ("" for the whole folder).

    Raises
    ------
    UserError
        Not a name of that form.
    """
    owner, _, rest = name.removeprefix(PREFIX).partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository or file and not file.endswith(".gguf"):
        raise UserError(f"{name!r} names no model of the Hugging Face Hub; give hf:owner/name, or "
                        "hf:owner/name/file.gguf")
    return f"{owner}/{repository}", file


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder, or the file, of a model of the Hub; fetched once in the life of the process.

    Raises
    ------
    UserError
        There is none, it is not for everybody, or neither the Hub nor a copy is in reach.
    """
    if name not in _fetched:
        _fetched[name] = _fetch(name, progress)
    return _fetched[name]


_fetched: dict[str, Path] = {}


def _fetch(name: str, progress: Progress | None) -> Path:
    repository, file = parts(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    ways: dict[str, Any] = dict(allow_patterns=[file]) if file else dict(
        allow_patterns=list(FOLDER), ignore_patterns=list(NOT))
    try:
        found = Path(snapshot_download(repository, tqdm_class=_bar(repository, progress), **ways))
    except GatedRepoError as error:
        raise UserError(f"the model {repository} is only for those who accepted its terms; do so "
                        "on its page, and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the Hugging Face Hub has no model {repository} for everybody; check the "
                        "name, or set HF_TOKEN if it is private") from error
    except HFValidationError as error:
        raise UserError(f"{repository!r} cannot be the name of a model: {brief(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch the model {repository} ({brief(error)}); check the network, "
                        "or fetch its folder yourself and give that") from error
    if not file:
        return found
    if not (found / file).is_file():
        raise UserError(f"the model {repository} has no file {file}; look at its page for their "
                        "names")
    return found / file


def _bar(repository: str, progress: Progress | None) -> type:
    """What huggingface_hub draws progress with: it draws nothing and tells ``progress``."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """Of bytes; of files it is silent."""

        def __init__(self, *args: Any, **kw: Any) -> None:
            self._bytes, self._done = kw.get("unit") == "B", kw.get("initial", 0) or 0
            super().__init__(*args, **(kw | {"disable": True}))
            self._all = kw.get("total")

        def update(self, n: float | None = 1) -> bool | None:
            self._done += n or 0
            if progress and self._bytes:
                total = self.total if getattr(self, "total", None) else self._all
                progress(f"fetching {repository}, bytes:", int(self._done), int(total or 0))
            return None
    return Bar
