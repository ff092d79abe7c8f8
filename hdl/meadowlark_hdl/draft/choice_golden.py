"""Golden model of the choice whether the next pass has drafts: an account of what they bring."""

#: A pass of one token, in the account.
PASS = 256
#: What it has at first and at most, and what each pass gives to it.
START, MOST, GIVEN = PASS, 2047, 6
#: Dearest pass with drafts: 5 passes.
MOST_PRICE = 1023


class Choice:
    """Drafts as long as they pay, and never so that a run gets slower than by 6 in 256.

    A pass with drafts costs ``price`` more than one without, and each token that it gives beyond
    its first saves one. What was saved and not yet spent is the account. The next pass has drafts
    if the account has their price. Each pass gives ``GIVEN`` to it. So drafts that bring nothing
    cost a run ``START`` and 6 in 256 of its passes, and no more; where they cost less than that,
    each pass has some. When the text becomes one that they suit, the account grows again.

    It is the budget of online algorithms that explore at a bounded loss, for instance Wu et al.,
    "Conservative bandits", arXiv:1602.04282, section 3.

    Parameters
    ----------
    price : int, 0..1023
        In 1/256 of a pass without drafts; 0: each pass has drafts.

    Attributes
    ----------
    account : int, 0..2047
    """

    def __init__(self, price: int) -> None:
        if not 0 <= price <= MOST_PRICE:
            raise ValueError(f"price must be in 0..{MOST_PRICE}, not {price!r}")
        self.price, self.account = price, START

    def drafts(self) -> bool:
        """Whether the next pass has drafts; asked once before each pass of a generated token."""
        pays = self.account >= self.price
        self.account = min(self.account + GIVEN - self.price * pays, MOST)
        return pays

    def accepted(self) -> None:
        """A draft was right, and the run goes on behind it in the same pass."""
        self.account = min(self.account + PASS, MOST)
