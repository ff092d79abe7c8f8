"""Options and fixtures of all tests: one seed, and the simulators that are there."""
import os
import random
import shutil
import signal
import warnings

import pytest
from amaranth.hdl import UnusedElaboratable
from meadowlark.errors import UserError
from meadowlark.threads import one_thread_for_all

one_thread_for_all()            # before NumPy is there

# For components that only die when the interpreter does, after pytest's own filters.
warnings.simplefilter("ignore", UnusedElaboratable)

# Ctrl-C is tested: what a shell in the background or nohup ignores must not be ignored by all that
# tests start.
for _number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT
                      else signal.SIG_DFL)

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
os.environ["SEED"] = str(SEED)          # the workers of pytest-xdist have it from here
ICARUS = bool(shutil.which("iverilog") and shutil.which("vvp"))
NO_ICARUS = "Icarus Verilog not found (Debian package iverilog)"
# SIM=verilator leaves Icarus out.
SIMULATORS = [name for name in ("verilator", *(["icarus"] if ICARUS else []))
              if name == os.environ.get("SIM", name)]


def pytest_report_header():
    yield f"seed: {SEED} (repeat with SEED={SEED})"
    if not ICARUS:
        yield f"{NO_ICARUS}: benches run on Verilator only"


def pytest_generate_tests(metafunc):
    """SEEDS=n: every test that takes the seed runs with n of them, SEED and those behind it."""
    if "seed" in metafunc.fixturenames and (count := int(os.environ.get("SEEDS", 1))) > 1:
        metafunc.parametrize("seed", [(SEED + k) % 2**32 for k in range(count)])


def pytest_collection_modifyitems(config, items):
    """SEEDS=n leaves out the tests that are the same for every seed."""
    if int(os.environ.get("SEEDS", 1)) > 1:
        same = [item for item in items if "seed" not in item.fixturenames]
        config.hook.pytest_deselected(items=same)
        items[:] = [item for item in items if "seed" in item.fixturenames]


@pytest.fixture
def seed():
    """The one seed of this run; ``SEED=`` sets it."""
    return SEED


@pytest.fixture
def run(capsys):
    """run(*args) -> (exit status, stdout, stderr), of a command."""
    from meadowlark.cli import main

    def command(*args: str) -> tuple[int, str, str]:
        status = main([str(a) for a in args])
        return (status, *capsys.readouterr())
    return command


@pytest.fixture(scope="session")
def smollm2():
    """The model SmolLM2. Its package is 98 MB, so no set-up installs it unasked."""
    from meadowlark.models.registry import find_model, load_model
    try:
        find_model("smollm2")
    except UserError as e:              # says how to install it
        pytest.skip(str(e))
    return load_model("smollm2")


@pytest.fixture(params=SIMULATORS)
def sim(request):
    """Each simulator that is installed, for ``simulate(..., sim=sim)``."""
    return request.param
