"""A graph: what it refuses, how it prints, how long edges live."""
from dataclasses import replace

import pytest
from test_vjp import every_operator

from meadowlark.models.graph import Add, Attend, Gate, Graph, GraphError, Kind, Norm

def test_a_graph_is_checked():
    graph = every_operator()
    ops = {op.out: op for op in graph.operators}

    def changed(edge=None, shapes=None, drop=None, **values):
        found = [replace(op, **values) if op.out == edge else op for op in graph.operators
                 if op.out != drop]
        return Graph(tuple(found), {**graph.shapes, **(shapes or {})}, graph.tables)
    assert changed() == graph and graph.edges["h"].kind is Kind.VALUES
    for make, message in (
            (lambda: changed("k", out="q"), "the edge q is made twice"),
            (lambda: changed(drop="norm1.x"), "q reads the edge norm1.x before it is made"),
            (lambda: changed("k_norm.x", head_dim=5), "cannot norm 12 values in heads of 5"),
            (lambda: changed("k_norm.x", head_dim=4), r"k_norm has shape \[6\], not \[4\]"),
            (lambda: changed("q", weight="x"), "q reads the weight x, which has no shape"),
            (lambda: changed(shapes={"norm1": (5,)}), r"norm1 has shape \[5\], not \[12\]"),
            (lambda: changed("q", x="residual"), "q reads 12 residual where it takes values"),
            (lambda: changed("q.rope", table="x"), "the RoPE table x, which is not there"),
            (lambda: changed("q.rope", head_dim=7), "24 values are no heads of 7"),
            (lambda: changed("attention", heads=3), "3 heads, 2 KV heads"),
            (lambda: changed("attention", window=0), "a window of 0"),
            (lambda: changed("attention", head_dim=5), "attention reads 24 values where it takes"),
            (lambda: changed("read.x", x="h"), "read.x reads 10 values where it takes residual"),
            (lambda: changed("latent", latent=8), "do not go together"),
            (lambda: changed("latent", latent=4), "latent reads 6 values where it takes 8 values"),
            (lambda: changed("h", up="o"), "h reads 12 values where it takes 10 values"),
            (lambda: changed("o.residual", y="h.x"), "reads the edge h.x before"),
            (lambda: changed(drop="logits"), "the last operator of a graph is a Head")):
        with pytest.raises(GraphError, match=message):
            make()
    for op in (ops["norm2.x"], ops["o.residual"], ops["attention"], ops["h"]):
        assert isinstance(op, (Norm, Add, Attend, Gate)) and f"{op.out} " in str(graph)
    # An edge is there as long as it is read.
    alive = set()
    for op in graph.operators:
        assert set(op.inputs) <= alive
        alive = (alive | {op.out}) - set(graph.spent[op.out])
    assert alive == {"logits"}
