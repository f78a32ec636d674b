"""A tokenizer that puts `<s>` before every text by itself, as documents of a corpus begin.

Whoever calls a tokenizer without more, as the BabyLM pipeline of 2025 and 2026 does, then scores a text's first token
too, and from where the model saw texts begin. Corpora are encoded without special tokens, so it does not change them.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, processors

from palenka.ground.errors import UserError
from palenka.ground.files import read_text, write_whole


def add_bos(directory: Path) -> None:
    """Make the tokenizer in a directory put its token of a text's beginning before each text; nothing if it does.

    Raises:
        UserError: if it names no such token.
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
