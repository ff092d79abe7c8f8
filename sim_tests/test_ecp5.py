"""Between Yosys and nextpnr: a bit a state, the first state back, no folders in the netlist."""
import json

import pytest
from meadowlark.ecp5 import first_states, forget_where
from meadowlark.errors import UserError

LOG = r"""Recoding FSM `$fsm$\dut.link.fsm_state$7' from module `\top' using `auto' encoding:
  mapping auto encoding to `one-hot' for this FSM.
  {first} -> -----{last}
  100 -> ----1-
"""


def test_first_states():
    assert first_states("nothing") == ["setattr -set init 0 a:amaranth_state"]
    assert first_states(LOG.format(first="000", last="1")) == [
        "setattr -set init 0 a:amaranth_state", "setattr -set init 1 w:dut.link.fsm_state"]


@pytest.mark.parametrize("first, last", [("010", "1"), ("000", "-")])
def test_another_first_state(first, last):
    with pytest.raises(UserError, match="another first state of dut.link.fsm_state than 0"):
        first_states(LOG.format(first=first, last=last))


def test_a_log_that_tells_something_else():
    with pytest.raises(UserError, match="does not tell how"):
        first_states(LOG.replace("one-hot", "binary"))


def test_a_netlist_does_not_tell_where_it_was_made():
    def made_in(folder, names):
        return {"ports": {}, "cells": {name: {"type": "LUT4", "attributes": {
            "keep": "1", "src": f"{folder}/{name}.v:1"}} for name in names},
            "netnames": {name: {"bits": [1], "attributes": {"src": folder}} for name in names}}
    here, there = made_in("/a", ["b", "a"]), made_in("/b/c", ["a", "b"])
    forget_where(here)
    forget_where(there)
    assert json.dumps(here) == json.dumps(there)
    assert here["cells"]["a"] == {"type": "LUT4", "attributes": {"keep": "1"}}
