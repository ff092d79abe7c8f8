"""FFN Fusion (arXiv:2503.18908): FFNs side by side, as one."""
from __future__ import annotations

from collections.abc import Iterator

from meadowlark_boards import get_board

from ..models.fusion import layers_of, runs
from ..models.rewrite import fold_layer_norms
from ..run.evaluate import perplexity, validation_text
from .lab import DECODE, PREFILL, Lab
from .rows import Row, Value

_BOARDS = "virtual", "ulx3s_85f", "kv260"


def rows(lab: Lab) -> Iterator[Row]:
    # A model may have such layers, and was trained with them then.
    model = lab.source(get_board(_BOARDS[0])).model
    own = [int(ffn.name.split(".")[1]) for run in runs(fold_layer_norms(model).graph)
           for ffn in run[1:]]
    drop = "" if own else lab.drop_attention
    dropped = own or layers_of(drop)
    named = f"{min(dropped)}-{max(dropped)}"
    base = lab.name if own else f"{lab.name} without the attention of layers {drop}"
    options = f"-m {lab.model}" + (f" --drop-attention {drop}" if drop else "")
    pairs = ",".join(f"{i}-{i + 1}" for i in sorted(dropped)[:-1:2])
    ways = {f"pairs {pairs}": pairs,
            f"all of layers {named}": named,
            "pairs, the last FFN of the run left out": "2"}
    ways = {what: asked for k, (what, asked) in enumerate(ways.items())
            if asked not in [*ways.values()][:k]}
    plain = _perplexity(lab, drop, "none")
    for what, asked in ways.items():
        fused = _perplexity(lab, drop, asked)
        kinds = () if plain is None or fused is None else zip(
            ("float32", "integers"), plain, fused, strict=True)
        for kind, before, after in kinds:
            yield Row(
                paper="ffn-fusion", mechanism=f"fusion, {what}", unit=f"perplexity, {kind}",
                on=base, without=Value(measured=before), with_=Value(measured=after),
                command=f"meadowlark eval {options} --fuse-ffn {asked}",
                remark="untrained: the model was not taught to do with FFNs side by side"
                if own else "untrained: the model was not taught to do with it")
        for name in _BOARDS:
            board = get_board(name)
            for test, words in ((DECODE, "decode"), (PREFILL, f"prefill of {PREFILL[0]}")):
                found = [lab.cycles(lab.source(
                    board, packing="raw", fuse_ffn=how,
                    drop_attention=drop).image, board, test)
                    for how in ("none", asked)]
                yield Row(
                    paper="ffn-fusion", mechanism=f"fusion, {what}",
                    unit="cycles a token" if test is DECODE else "cycles",
                    on=f"{base}, {name}, {words}", without=found[0], with_=found[1],
                    command=f"meadowlark bench {options} --fuse-ffn {asked} --board {name} "
                            f"--packing raw -p {PREFILL[0]} -n {DECODE[1]}",
                    remark="a wider FFN takes more of the activation memory, so fewer blocks of "
                           "tokens are resident, and prefill may read the weights more often")


def _perplexity(lab: Lab, drop: str, asked: str) -> tuple[float, float] | None:
    """Of float32 and integers, on the lab's text; None where nothing is measured."""
    if not lab.measure:
        return None
    source = lab.source(get_board("virtual"), fuse_ffn=asked, drop_attention=drop)
    lines = validation_text() if lab.text is None else lab.text
    found = perplexity(source.model, source.quantised, lines, progress=lambda n: lab.progress(
        "predicting", n, 0) if lab.progress else None)
    return found.ppl_float, found.ppl_fixed
