"""Drafts change no text: the golden decoder with and without them, token by token and by the CRC of
each token's logits. ``TOKENS=`` says how many tokens a model writes in all."""
import os
from itertools import product

import numpy as np
import pytest
from meadowlark.files import DATA
from meadowlark.quant.sampling import sampling
from meadowlark.run.prepare import Source
from meadowlark.run.targets import Drafting, GoldenTarget
from meadowlark_boards import get_board

#: Tokens of all texts together, each written with drafts and without.
TOKENS = int(os.environ.get("TOKENS") or 240)
STORIES = [" ".join(line.split()[:6]) for line in
           (DATA / "validation.txt").read_text().splitlines() if line.strip()]
QUESTIONS = ["What is the capital of France?", "Write a poem about a river.",
             "List three colours.", "Rewrite this: the cat, the cat and the dog went home.",
             "How do I boil an egg?", "Why is the sky blue?", "Give me a short story about a fox.",
             "Explain what a prime number is.", "Write a Python function that adds two numbers.",
             "What is 12 times 12?"]


def same_text(name, board, prompts, tokens, seed):
    """Write texts with drafts and without; returns drafts and those that were accepted."""
    which = get_board(board)
    source, target = Source(name, which), GoldenTarget(which)
    target.load(source)
    most, drafted, accepted = which.config.turns - 1, 0, 0
    ways = [*product(prompts, (0.0, 0.8))]
    drafts = [Drafting(most=most), Drafting(most=most, price=60), Drafting(most=2, price=200)]
    for number, (prompt, temperature) in enumerate(ways):
        draw = sampling(temperature=temperature, seed=seed + number)

        def written(drafting, prompt=prompt, draw=draw):
            return [(e.token, e.crc) for e in target.generate(
                prompt, draw, max_new=-(-tokens // len(ways)), stop_ids=source.image.stop_ids,
                drafts=drafting)]
        want = written(Drafting())
        assert target.counters()["drafted"] == 0
        assert written(drafts[number % len(drafts)]) == want, (prompt, temperature, seed)
        counted = target.counters()
        drafted, accepted = drafted + counted["drafted"], accepted + counted["accepted"]
    return drafted, accepted


def test_stories(seed):
    prompts = [Source("stories", get_board("ulx3s_85f")).prompt(STORIES[i]) for i in
               np.random.default_rng(seed).permutation(len(STORIES))[:10]]
    drafted, accepted = same_text("stories", "ulx3s_85f", prompts, TOKENS, seed)
    print(f"{drafted} drafts, {accepted} accepted")
    assert drafted > accepted > TOKENS // 10


@pytest.mark.skipif("TOKENS" not in os.environ, reason="minutes; a part of `make long`")
def test_smollm2(seed, smollm2):
    source = Source("smollm2", get_board("ecpix5_85f"))
    prompts = [source.prompt(question, chat=True) for question in QUESTIONS]
    drafted, accepted = same_text("smollm2", "ecpix5_85f", prompts, TOKENS // 4, seed)
    print(f"{drafted} drafts, {accepted} accepted")
    assert drafted > accepted > TOKENS // 80
