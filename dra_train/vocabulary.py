"""CLIP's vocabulary: where training finds it (open_clip ships it), read by the runtime's tokenizer."""

from functools import cache
from pathlib import Path

import open_clip

from dra_runtime.tokenizer import Tokenizer

END_TOKEN = 49407  #: CLIP's end-of-text token, also its largest id


@cache
def clip_tokenizer(context_length: int = 77) -> Tokenizer:
    """Return the runtime's tokenizer with CLIP's vocabulary."""
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    return Tokenizer.load(path, context_length)
