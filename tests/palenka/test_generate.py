"""Generating: the most probable tokens against a loop of argmax, draws by seed, and what cannot be gone on with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.__main__ import main
from palenka.data.model_files import identity_of
from palenka.eval.model import EvaluatedModel
from palenka.generate import GenerateSettings, draw_samples
from palenka.ground.errors import UserError
from palenka.samples import read_samples

PROMPT = "the cat"


def test_at_temperature_0_each_token_is_the_most_probable_one(teacher: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    tokens = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False).input_ids]
    for _ in range(6):
        logits = model(torch.tensor([tokens])).logits[0, -1, : len(tokenizer)]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    (sample,) = draw_samples(GenerateSettings(model=teacher, prompt=(PROMPT,), tokens=6, temperature=0)).samples
    assert sample.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_chats_beginning_of_a_turn_is_put_before_no_text(teacher: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(teacher, chat)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat), AutoTokenizer.from_pretrained(chat)
    for prompt, tokens in ((PROMPT, tokenizer(PROMPT).input_ids), ("", [tokenizer.eos_token_id])):
        expected = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
        (sample,) = draw_samples(GenerateSettings(model=chat, prompt=(prompt,), tokens=1, temperature=0)).samples
        assert sample.text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_model_whose_logits_are_not_finite_is_refused(
    temperature: float, broken: float, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "broken")
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"][0] = broken
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"broken gives logits that are not finite; it is broken"):
        draw_samples(GenerateSettings(model=tmp_path / "broken", prompt=(PROMPT,), tokens=2, temperature=temperature))


def test_draws_follow_from_the_seed_and_each_prompt_has_its_own(teacher: Path) -> None:
    def texts(seed: int) -> list[str]:
        drawn = GenerateSettings(model=teacher, prompt=(PROMPT, PROMPT), tokens=12, temperature=5.0, seed=seed)
        return [sample.text for sample in draw_samples(drawn).samples]

    state = torch.random.get_rng_state()
    first = texts(0)
    assert texts(0) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first[0] != first[1]
    assert texts(1)[0] == first[1]


def test_samples_are_printed_as_text_or_json(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(teacher), "--prompt", PROMPT, "", "--tokens", "3"]
    assert main(["generate", *options, "--json"]) == 0
    samples = json.loads(capsys.readouterr().out)
    assert [sample["prompt"] for sample in samples] == [PROMPT, ""]
    assert main(["generate", *options]) == 0
    assert capsys.readouterr().out == "\n\n".join(sample["text"].strip() for sample in samples) + "\n"


@dataclass(frozen=True)
class Kept:
    """A file of samples, the words of the command that wrote it, and what that printed."""

    file: Path
    words: list[str]
    printed: str


@pytest.fixture
def kept(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Kept:
    """A sample that is kept in a folder that was not there."""
    out = tmp_path / "deep" / "samples.json"
    words = ["generate", str(teacher), "--prompt", PROMPT, "--tokens", "3", "--out", str(out)]
    assert main(words) == 0
    return Kept(out, words, capsys.readouterr().out)


def test_samples_are_kept_as_they_are_printed_with_their_models_weights(kept: Kept, teacher: Path) -> None:
    found = read_samples(kept.file)
    assert [sample.text.strip() + "\n" for sample in found.samples] == [kept.printed]
    assert found.weights == identity_of(teacher, "float32").weights


def test_samples_are_drawn_once(
    kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluatedModel, "load", None)  # nothing is drawn again
    assert main(kept.words) == 0
    assert capsys.readouterr().out == kept.printed


def test_another_seed_draws_other_samples(kept: Kept) -> None:
    assert main([*kept.words, "--seed", "1"]) == 0
    assert read_samples(kept.file).drawing.seed == 1


def test_samples_that_were_changed_are_refused(kept: Kept) -> None:
    kept.file.write_text(kept.file.read_text().replace("the", "thy", 1))
    with pytest.raises(UserError, match="was changed since it was written"):
        read_samples(kept.file)


def test_only_samples_are_overwritten(kept: Kept, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    assert "notes.json exists and is no file of samples" in refused(*kept.words[:-1], tmp_path / "notes.json")


def test_a_prompt_that_fills_the_positions_is_refused(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(teacher), "--prompt", PROMPT * 200]) == 2
    assert "positions; shorten it" in capsys.readouterr().err
