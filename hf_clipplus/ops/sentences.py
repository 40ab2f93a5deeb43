"""DreamLIP's rule (2403.17007) that cuts a long caption into sentences."""

import re

ENDS = re.compile(r"\n|</s>|\.")
ENDS_BUT_DECIMALS = re.compile(r"\n|</s>|(?<!\d)\.|\.(?!\d)")


def split_sentences(text: str, *, min_chars: int = 0, keep_decimals: bool = False) -> list[str]:
    """The parts of a caption between line breaks, the literal `</s>` and full stops; stripped, blank ones dropped.

    As published: no other punctuation ends a sentence, the stop itself is lost, and "1.5 kg" becomes "1" and "5 kg".

    Args:
        text: a caption, or several lines of it.
        min_chars: shorter parts are dropped.
        keep_decimals: a stop between two digits ends nothing.
    """
    parts = (part.strip() for part in (ENDS_BUT_DECIMALS if keep_decimals else ENDS).split(text))
    return [part for part in parts if part and len(part) >= min_chars]
