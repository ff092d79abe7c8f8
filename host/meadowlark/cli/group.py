"""All commands as one, and what becomes of their errors."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

import click

from ..errors import UserError
from . import (ablate, bench, build, chat, classify, compile, doctor, draft, eval, explore,
               generate, info, predict, serve)
from .status import DIFFERENT, INTERRUPTED, WRONG_USE
from .terminal import Warnings, say


class _Interrupted(BaseException):
    """KeyboardInterrupt, past click, which would write an empty line."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> int:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meadowlark", prog_name="meadowlark")
def cli() -> None:
    """Small FPGAs run language models, with open tools."""


for _command in (generate.generate, chat.chat, classify.classify, compile.compile_, draft.draft,
                 eval.eval_, bench.bench, predict.predict, serve.serve, build.build, build.flash,
                 info.info, doctor.doctor, ablate.ablate,
                 explore.explore):
    cli.add_command(_command)


def run(args: Sequence[str], *, interrupted: Callable[[], int] | None = None) -> int:
    """Run a command; see :func:`..main`. interrupted: what is done when it was interrupted."""
    from ..sim import SimulationError
    logging.getLogger("meadowlark").handlers = [Warnings()]
    try:
        return cli.main(args=list(args), prog_name="meadowlark", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "meadowlark"
        message = error.format_message()
        return _fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{where} --help`")
    except (click.Abort, _Interrupted, KeyboardInterrupt):
        return interrupted() if interrupted else _fail("interrupted", INTERRUPTED)
    except SimulationError as error:
        return _fail(str(error), DIFFERENT)
    except BrokenPipeError:
        # Whoever reads our output has left; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_USE
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{name}")


def _fail(sentence: str, status: int = WRONG_USE) -> int:
    sys.stdout.flush()
    say("error: " + " ".join(sentence.split()))
    return status
