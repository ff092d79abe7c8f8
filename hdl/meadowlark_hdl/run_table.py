"""What the host asks of a run, as pure data: registers of the link, and a port in the core."""
from .config import Config
from .isa import Field

#: Most stop ids of a run.
STOP_IDS = 8
#: Registers of a run; the stop ids are the last ones.
RUN_REGS = (
    Field("start_pos", 13, "position of the first token of the prompt"),
    Field("prompt", 13, "tokens of the prompt, in token memory from start_pos"),
    Field("max_new", 13, "tokens to generate, in a batch of each sequence; 0 only fills the cache"),
    Field("inv_t_mant", 16, "log2(e) / temperature = mant * 2**-shift; 0: greedy"),
    Field("inv_t_shift", 5, "see inv_t_mant"),
    Field("top_k", 6, "largest logits to draw from; 0: all"),
    Field("top_p", 16, "nucleus in 1/65536; 0: off"),
    Field("seed", 32, "seed of the draws"),
    Field("batch", 1, "each token of the prompt belongs where its ``place`` says, and each pass "
                      "draws one for each of them; start_pos and draft_most are 0"),
    Field("draft_most", 5, "drafts of a pass of a generated token, at most: less than lanes; "
                           "0: none"),
    Field("draft_price", 10, "what such a pass and its drafting cost more than a pass without, in "
                             "1/256 of that: there are drafts as long as they pay; 0: always"),
    Field("stop_count", 4, "stop ids in use"),
    *(Field(f"stop_id_{i}", Config.TOKEN_BITS, "a token that ends the run") for i in
      range(STOP_IDS)),
)
