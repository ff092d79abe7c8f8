"""Products by a constant that need no multiplier."""
from amaranth import C


def times(value, factor: int):
    """``value * factor`` by shifts, which a synthesiser does not turn into a multiplier. No
    registers."""
    return sum((value << k for k in range(factor.bit_length()) if factor >> k & 1), C(0, 1))
