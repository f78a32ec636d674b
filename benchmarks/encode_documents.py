"""Encoding 10 M tokens beside `tokenizers`' own `encode_batch`, on one core, and whether memory stays flat.

python benchmarks/encode_documents.py TOKENIZER_DIRECTORY --tokens 10000000

Both read the same documents (the BabyLM train text, its blocks between blank lines, over and over). The library is
given 1,000 documents at once and its ids are turned into arrays; ours goes on to write them as a corpus store does.
"""

import argparse
import os
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

REAL_TEXT = Path(__file__).parents[2] / "shared" / "data" / "babylm" / "train"


def main() -> None:
    """Measure and print."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    import numpy as np
    from tokenizers import Tokenizer

    from palenka.data.corpus_writer import CorpusWriter
    from palenka.data.text.encoder import DocumentEncoder
    from palenka.data.text.readers import Piece

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    backend = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    names = sorted(REAL_TEXT.glob("*.train"))
    documents = [text for name in names for text in re.split(r"\n\s*\n", name.read_text()) if text.strip()]

    def library(texts: list[str]) -> tuple[int, float]:
        """Tokens and processor seconds of the library's own encoding."""
        num_tokens, start = 0, time.process_time()
        for some in (texts[place : place + 1_000] for place in range(0, len(texts), 1_000)):
            for encoding in backend.encode_batch(some, add_special_tokens=False):
                num_tokens += len(np.array(encoding.ids, dtype=np.uint32))
        return num_tokens, time.process_time() - start

    def ours(texts: Iterator[str], at_most: int = 2**62) -> tuple[int, float]:
        """Tokens and processor seconds of our encoder over some texts, up to so many tokens, written to a store."""
        with tempfile.TemporaryDirectory() as folder:
            writer = CorpusWriter(Path(folder), "train", "", backend.get_vocab_size())
            start = time.process_time()
            with writer:
                pieces = (Piece(text, True) for text in texts)
                for ids, opens in DocumentEncoder(backend).encode(pieces):
                    if opens:
                        writer.start_document()
                    writer.append(ids)
                    if writer.num_tokens > at_most:
                        break
            return writer.num_tokens, time.process_time() - start

    sample = documents[:: max(1, len(documents) // 3_000)]
    for share in (0.1, 1.0, 2.0, 5.0):
        tokens, seconds = ours(chain.from_iterable(repeat(documents)), int(share * arguments.tokens))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"{tokens:,} tokens, {tokens / seconds:,.0f}/s, peak memory so far {peak:,.0f} MB")
    ratios = []
    for number in range(arguments.runs):
        tokens, seconds = ours(iter(sample))
        theirs, their_seconds = library(sample)
        assert tokens == theirs
        ratios.append((tokens / seconds) / (theirs / their_seconds))
        print(
            f"run {number}: {tokens:,} tokens, ours {tokens / seconds:,.0f}/s, library {theirs / their_seconds:,.0f}/s"
        )
    print(f"ratio {statistics.median(ratios):.2f} (median of {len(ratios)}: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
