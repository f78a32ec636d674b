"""A tokenizer that puts `<s>` before every text by itself, like the beginning of a corpus document.

A program that simply calls the tokenizer, such as the BabyLM pipeline of 2025 and 2026, then scores a text's first
token too, after the token with which texts began in training. Corpora are encoded without special tokens, so they do
not change.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, processors

from palenka.ground.errors import UserError
from palenka.ground.files import read_text, write_whole


def add_bos(directory: Path) -> None:
    """Make the tokenizer in a directory put its bos token before each text; no change if it does already.

    Raises:
        UserError: if it has no bos token.
    """
    file = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_str(read_text(file))
    named = json.loads(read_text(directory / "tokenizer_config.json")).get("bos_token")
    bos = named["content"] if isinstance(named, dict) else named
    number = None if bos is None else tokenizer.token_to_id(bos)
    if bos is None or number is None:
        raise UserError(f"the tokenizer in {directory} names no bos token; name one in tokenizer_config.json")
    if tokenizer.encode("a").ids[:1] == [number]:
        return
    before = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)])
    others = tokenizer.post_processor
    tokenizer.post_processor = before if others is None else processors.Sequence([others, before])
    write_whole(file, tokenizer.to_str(pretty=True))
