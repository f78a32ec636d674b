"""InfoNCE against its definition in float64, its bounds, and what the trained maps learn."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.components import Components
from palenka.data.signals.stream import ReadingOrder, read_batch
from palenka.ground.errors import UserError
from palenka.train_student.objective.contrastive import info_nce
from palenka.train_student.objective.module import LayerPair, last_pairs
from palenka.train_student.objective.objective import Objective
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import open_teachers
from palenka.train_student.train import train

Normal = Callable[..., Tensor]
CPU = torch.device("cpu")


def by_definition(ours: Tensor, theirs: Tensor, temperature: float, pools: list[list[int]]) -> Tensor:
    """The formula position by position, in float64."""
    ours, theirs = (part.double() / part.double().norm(dim=-1, keepdim=True) for part in (ours, theirs))
    losses = []
    for pool in pools:
        for i in pool:
            every = sum((torch.exp(ours[i] @ theirs[j] / temperature) for j in pool), torch.zeros(()).double())
            losses.append(-torch.log(torch.exp(ours[i] @ theirs[i] / temperature) / every))
    return torch.stack(losses).mean()


@given(seed=st.integers(0, 1000), count=st.integers(2, 14), temperature=st.sampled_from([0.1, 2.0]), data=st.data())
def test_value_and_gradients_are_those_of_the_definition(
    normal: Normal, seed: int, count: int, temperature: float, data: st.DataObject
) -> None:
    negatives = data.draw(st.integers(1, count + 3))
    ours, theirs = (normal(seed + side, count, 5).requires_grad_() for side in (0, 1))
    value = info_nce(ours, theirs, temperature, negatives)
    value.backward()
    num_pools = math.ceil(count / (negatives + 1))
    pools = [list(range(pool, count, num_pools)) for pool in range(num_pools)]
    assert max(map(len, pools)) <= negatives + 1
    exact = [part.detach().double().requires_grad_() for part in (ours, theirs)]
    expected = by_definition(exact[0], exact[1], temperature, pools)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    for rough, fine in zip((ours, theirs), exact, strict=True):
        assert rough.grad is not None
        assert fine.grad is not None
        torch.testing.assert_close(rough.grad.double(), fine.grad, rtol=1e-3, atol=1e-5)


@given(seed=st.integers(0, 1000), count=st.integers(2, 40), scale=st.floats(0.01, 100))
def test_it_stays_within_two_over_temperature_of_the_logarithm_of_the_pool(
    normal: Normal, seed: int, count: int, scale: float
) -> None:
    ours, theirs = normal(seed, count, 5), normal(seed + 1, count, 5)
    value = info_nce(ours, theirs, 2.0, 1023).item()
    assert math.log(count) - 1 - 1e-5 <= value <= math.log(count) + 1 + 1e-5
    assert info_nce(scale * ours, theirs, 2.0, 1023).item() == pytest.approx(value, abs=1e-5)


def test_bf16_is_compared_in_float32(normal: Normal) -> None:
    ours, theirs = normal(0, 64, 256), normal(1, 64, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce(ours.bfloat16(), theirs.bfloat16(), 0.1, 1023)
    assert value.dtype == torch.float32
    exact = by_definition(ours.bfloat16(), theirs.bfloat16(), 0.1, [list(range(64))])
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_last_layer_of_each_model_is_compared() -> None:
    layer = Components("float32", torch.zeros(2), torch.ones(2), torch.ones(2))
    pairs = [LayerPair(key, ours, layer) for key, ours in (("a/9", 4), ("a/12", 3), ("b/2", 1))]
    assert [(pair.key, pair.student_layer) for pair in last_pairs(pairs)] == [("a/12", 3), ("b/2", 1)]


def test_the_term_is_its_definition_over_the_states_of_student_and_teachers(
    capture_settings: CaptureSettings,
    corpus: Corpus,
    make_teacher: Callable[..., Path],
    settings_of_run: Callable[..., TrainSettings],
    changed: Callable[..., CaptureSettings],
    tmp_path: Path,
) -> None:
    """Two teachers of different width, an ensemble among them; one student map."""
    models = {"wide": {"x": make_teacher("gpt2", 3, hidden_size=24), "y": make_teacher("llama", 4)}, "one": {}}
    single = make_teacher("llama", 5, hidden_size=32)
    hidden = {"positions": 3, "sample_windows": 40, "values": "float32", "components": None}
    sources = {}
    for name, ensemble in models.items():
        teacher = {"teacher": None, "ensemble": ensemble} if ensemble else {"teacher": single}
        more = {"hidden": hidden, "fraction": 0.1, "output": tmp_path / name}
        capture(changed(capture_settings, **teacher, **more))
        sources[name] = {"cache": tmp_path / name, "weight": {"wide": 0.5, "one": 2.0}[name]}
    contrastive = {"weight": 1.0, "width": 8, "negatives": 7}
    settings = settings_of_run(fraction=0.1, teachers=sources, objective={"hard": 0.0, "contrastive": contrastive})
    opened = open_teachers(settings, corpus, CPU)
    student: Any = settings.model.build(corpus, seed=4)
    objective = Objective(student, settings.objective, opened.pairs, seed=2)
    maps: Any = objective.terms["contrastive"]
    names = {name for name in objective.trained_beside() if name.endswith("weight")}
    assert names == {
        "contrastive.student_map.weight",
        *(
            f"contrastive.teacher_maps.{name}.linear.weight"
            for name in ("teacher_wide.0", "teacher_wide.1", "teacher_one.0")
        ),
    }
    order = ReadingOrder(capture_settings.windows, len(corpus.tokens), seed=3, epochs=1, fraction=0.1)
    batch = opened.complete(read_batch(corpus, order, opened.caches, 0, 10, opened.num_positions))
    loss, parts = objective(batch, settings.weights())
    assert loss.item() == pytest.approx(
        0.5 * parts["contrastive/wide"].item() + 2.0 * parts["contrastive/one"].item(), rel=1e-6
    )
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in objective.trained_beside().values())

    rows, pools = torch.arange(10)[:, None], [list(range(pool, 30, 4)) for pool in range(4)]
    with torch.no_grad():
        own = maps.student_map(student(batch.tokens, output_hidden_states=True).hidden_states[2][rows, batch.positions])
        for name, ensemble in models.items():
            losses = []
            for number, model in enumerate(ensemble.values() or [single]):
                speaker: Any = AutoModelForCausalLM.from_pretrained(model)
                states = speaker(batch.tokens, output_hidden_states=True).hidden_states[2][rows, batch.positions]
                assert opened.pairs[name][3 * number + 2].key.endswith("/2")
                layer = opened.pairs[name][3 * number + 2].layer
                unit = layer.statics()["variance"].double().mean().sqrt().float()
                theirs = maps.teacher_maps[f"teacher_{name}"][number].linear((states - layer.mean) / unit)
                losses.append(by_definition(own.flatten(0, 1), theirs.flatten(0, 1), 2.0, pools))
            assert parts[f"contrastive/{name}"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_what_cannot_be_compared_is_refused(
    capture_settings: CaptureSettings,
    cache_directory: Path,
    student_of_cache: Callable[..., TrainSettings],
    changed: Callable[..., CaptureSettings],
    tmp_path: Path,
) -> None:
    capture(changed(capture_settings, hidden={"positions": 1}, fraction=0.1, output=tmp_path / "one"))
    for cache, message in (
        (cache_directory, "teacher t holds no hidden states, but objective.contrastive is 0.1; capture it again"),
        (tmp_path / "one", r"a micro-batch of 1 window\(s\) has 1 position\(s\), and so no negatives; raise micro"),
    ):
        settings = student_of_cache(
            fraction=0.1, micro_batch=1, teachers={"t": {"cache": cache}}, objective={"contrastive": 0.1}
        )
        with pytest.raises(UserError, match=message):
            train(settings)
        assert not settings.output.exists()
