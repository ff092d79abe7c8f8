"""Memories whose reads may return anything when the same word is written in the same cycle.

Amaranth promises the old value on such a collision. A block RAM does not: on an ECP5, synthesis
then adds a register for the written data, an address comparison and a multiplexer behind each read
port (172 LUTs, 281 FFs and a level of logic right behind the RAM for 512 words of 128 bits). A
block that never uses the result of a colliding read says so::

    Memory(shape=..., depth=..., init=[], attrs=NO_RW_CHECK)

and gets bare block RAMs. The promise is checked: with the attribute, benches on Verilator see noise
on a collision.
"""
import re
from typing import Any

#: ``attrs=`` of an ``amaranth.lib.memory.Memory`` without a promise for colliding reads. Only
#: synchronous read ports that are not transparent change their meaning.
NO_RW_CHECK: dict[str, Any] = {"no_rw_check": 1}
#: The same, and always in block RAM: for wide memories that are shallow enough for LUTs.
IN_BLOCKS: dict[str, Any] = NO_RW_CHECK | {"ram_style": "block"}

_TOKEN = re.compile(
    r"^  attribute \\no_rw_check .*$"
    r"|^  memory .* (?P<memory>\\\S+)$"
    r"|^module (?P<module>\S+)$"
    r"|^  cell \$memrd_v2 .*\n(?:    .*\n)*?  end$", re.MULTILINE)


def relax(rtlil: str) -> str:
    """RTLIL as Amaranth writes it, with colliding reads of marked memories undefined.

    Yosys itself heeds the attribute only for registers that it merges into a memory.
    """
    marked: set[str] = set()
    pending = False

    def visit(match: re.Match) -> str:
        nonlocal pending
        text = match[0]
        if match["module"]:
            marked.clear()
        elif match["memory"]:
            if pending:
                marked.add(match["memory"])
            pending = False
        elif text.startswith("  attribute"):
            pending = True
        else:
            memid = re.search(r'parameter \\MEMID "\\(\\\S+)"', text)
            synchronous = re.search(r"parameter \\CLK_ENABLE 1", text)
            if memid and synchronous and memid[1] in marked:
                transparent = re.search(r"parameter \\TRANSPARENCY_MASK \d+'([01]*)", text)
                assert transparent is not None
                undefined = transparent[1].translate(str.maketrans("01", "10"))
                text = re.sub(r"(parameter \\COLLISION_X_MASK \d+)'[01]*",
                              lambda found: f"{found[1]}'{undefined}", text)
        return text
    return _TOKEN.sub(visit, rtlil)
