"""Bench for rigid pipelines: new inputs every cycle, outputs a fixed number of cycles later."""
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge


async def through(dut, latency: int, inputs: dict, outputs: dict) -> list[np.ndarray]:
    """Feed one set of inputs a cycle and collect what comes out ``latency`` cycles later.

    inputs: port -> values, all of the same length. outputs: port -> whether it is signed.
    Returns the values of each output port, as many as inputs, in order.
    """
    count = len(next(iter(inputs.values())))
    ports = [(getattr(dut, name), (1 << len(getattr(dut, name))) - 1, [int(v) for v in values])
             for name, values in inputs.items()]
    taps = [(getattr(dut, name), sign, []) for name, sign in outputs.items()]
    for n in range(count + latency):
        for port, mask, values in ports:
            # Something else after the last value: outputs must not depend on what follows.
            port.value = (values[n] if n < count else ~values[-1]) & mask
        await ReadOnly()
        if n >= latency:
            for port, sign, got in taps:
                got.append(port.value.to_signed() if sign else int(port.value))
        await RisingEdge(dut.clk)
    return [np.array(got) for _, _, got in taps]
