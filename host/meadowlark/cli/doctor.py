"""``meadowlark doctor``."""
from __future__ import annotations

from dataclasses import asdict

import click

from ..files import check_outputs
from .options import json_option
from .status import DIFFERENT
from .terminal import show, write_json


@click.command()
@json_option
def doctor(json_to: str | None) -> int:
    """Try what is installed, and say what to do about the rest.

    Each thing is used once, not only looked for. The exit status is 1 where not even the golden
    model runs, and 0 else: what is missing may not be wanted.
    """
    from ..api.doctor import examine
    check_outputs(json_to)
    found = []
    for one in examine():
        found.append(one)
        if json_to != "-":
            show(f"{'works' if one.works else 'no':<6} {one.what:<20} {one.facts or one.remedy}"
                 f"{'' if one.works else f' ({one.needed_for})'}")
    write_json({"checks": [asdict(one) for one in found]}, json_to)
    return 0 if all(one.works for one in found if one.vital) else DIFFERENT
