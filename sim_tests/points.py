"""What long checks have found, a point a name, beside what earlier runs have."""
import json
from pathlib import Path

from meadowlark.files import write_atomic

BUILD = Path(__file__).resolve().parents[1] / "build"


def kept(check: str, point: str, **found) -> dict[str, dict]:
    """Put a point into build/CHECK.json; all that are there."""
    file = BUILD / f"{check}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[point] = found
    BUILD.mkdir(exist_ok=True)
    write_atomic(file, (json.dumps(known, indent=1) + "\n").encode())
    return known
