"""A tokenizer with neither bos nor eos, from text to a student and its samples."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.eval.measure import Measurement, measure
from palenka.eval.suite import Conditions
from palenka.generate import GenerateSettings, draw_samples
from palenka.ground.errors import UserError
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


def test_text_teacher_cache_student_figures_and_samples(tmp_path: Path) -> None:
    draw = random.Random(0)
    documents = [" ".join(draw.choices(["stone", "river", "keeps", "the"], k=30)) for _ in range(60)]
    (tmp_path / "text").mkdir()
    for number, document in enumerate(documents):
        (tmp_path / "text" / f"{number}.txt").write_text(document)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "tokenizer")
    corpus = tmp_path / "corpus"
    sources = (tmp_path / "text",)
    prepare(CorpusSettings(sources=sources, tokenizer=tmp_path / "tokenizer", dev_fraction=0.3, output=corpus))
    stored = Corpus.open(corpus, "train")
    starts = stored.document_starts.tolist()
    assert stored.tokens[: starts[1]].tolist() in [tokenizer.encode(document).ids for document in documents]

    shape = {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    common = {"corpus": corpus, "model": shape, "windows": {"length": 8}, "global_batch": 8, "micro_batch": 8}
    common |= {"validation": {"windows": 4}}
    train(TrainSettings.model_validate(common | {"output": tmp_path / "teacher"}))
    cache = {"teacher": tmp_path / "teacher", "corpus": corpus, "output": tmp_path / "cache", "windows": {"length": 8}}
    capture(CaptureSettings.model_validate(cache | {"logits": {"kind": "low_rank", "k": 4, "rank": 4}}))
    student = {"output": tmp_path / "student", "teachers": {"t": {"cache": tmp_path / "cache"}}}
    train(TrainSettings.model_validate(common | student | {"objective": {"hard": 0.5, "logit": 0.5}}))
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "student").config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)

    asked = Measurement(tmp_path / "student", {"held_out": corpus}, Conditions(length=8))
    assert measure(asked, tmp_path / "student.json").by_suite["held_out"].figures["per_byte"].value > 0
    drawn = GenerateSettings(model=tmp_path / "student", prompt=("the river",), tokens=5, temperature=0)
    (sample,) = draw_samples(drawn).samples
    assert sample.text.startswith("the river")
    with pytest.raises(UserError, match="has no token to begin with; give a --prompt"):
        draw_samples(GenerateSettings(model=tmp_path / "student"))
