"""What can go wrong in a run: codes of the error register, each with a sentence. Pure data."""
from enum import IntEnum


class Error(IntEnum):
    """Error register: why a run ended with event reason 4; holds until the next start.

    NONE together with reason 4: the run was aborted. Every other one is raised by the Sequencer or
    by what :data:`FAULTS` names; what the host checks before it loads a model (tiles, addresses
    within the core's memories) has no code.
    """
    NONE = 0
    BAD_RUN = 1             #: empty prompt, prompt beyond the context, or no batch
    BAD_INSTRUCTION = 2     #: an instruction that the core does not know
    PROGRAM_END = 3         #: a list ran past the end of the program memory
    BAD_TOKEN = 4           #: a token id outside the vocabulary
    WATCHDOG = 6            #: nothing moved for too long
    MEMORY = 7              #: the memory stopped being ready during a run
    NO_MODEL = 8            #: the model registers are empty
    BAD_MODEL = 9           #: heads smaller than a chunk or larger than 256, or none that attend
    BAD_SAMPLING = 10       #: top_k longer than the sampler's list or for several tokens at once,
                            #: or too many stop ids
    NOT_READY = 11          #: started before the memory was ready
    STUCK = 13              #: the core could not be emptied after an abort or error
    BAD_DATA = 14           #: a tile that does not decode


#: Meaning of the bits of the Sequencer's ``faults`` input, lowest first; the lowest one set counts.
FAULTS = (Error.BAD_INSTRUCTION, Error.PROGRAM_END, Error.BAD_TOKEN, Error.BAD_DATA)

#: What the host says for each error, and what to do about it.
SENTENCES = {
    Error.BAD_RUN: "the board refused the run because the prompt is empty or, from its start "
                   "position, longer than the context, or because a batch or a run with drafts "
                   "has more tokens than the board has lanes, or a batch more than a pass, or the "
                   "board knows neither; shorten the prompt or start a new conversation",
    Error.BAD_INSTRUCTION: "the board met an instruction it does not know; compile the model again "
                           "with the version of Meadowlark that the bitstream was built with",
    Error.PROGRAM_END: "the program ran past its end; load the image again",
    Error.BAD_TOKEN: "the prompt holds a token that is not in the model's vocabulary; use the "
                     "tokenizer of the loaded image",
    Error.WATCHDOG: "the board stopped moving and gave the run up; load the image again, and if it "
                    "happens again, lower the clock or report it with the counters",
    Error.MEMORY: "the board's memory dropped out during the run; check its supply, then reset the "
                  "board and load the image again",
    Error.NO_MODEL: "the board holds no model; load an image",
    Error.BAD_MODEL: "the loaded model has heads of a size that the board does not know; compile "
                     "the model for this board",
    Error.BAD_SAMPLING: "the board refused the run because top_k is longer than its sorted list, "
                        "or not 0 in a batch or with drafts, or because there are more than 8 stop "
                        "ids; choose fewer",
    Error.NOT_READY: "the board's memory is not ready; wait a moment, then try again",
    Error.STUCK: "the board could not empty its units after the run; reset the board and load the "
                 "image again",
    Error.BAD_DATA: "the image in the board's memory is damaged; load it again",
}


def sentence(code: int) -> str:
    """Error code, 1..255 -> what to tell the user; codes of a newer core are named as such."""
    if code not in SENTENCES:
        return f"the board reported error {code}, which this version of Meadowlark does not know"
    return SENTENCES[Error(code)]
