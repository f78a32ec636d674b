"""Settings of the objective: terms as numbers and as groups, written and read again, mistakes named by their place."""

from typing import Any

import pytest
from pydantic import ValidationError

from palenka.train_student.objective.settings import HiddenTerm, ObjectiveSettings


def test_a_bare_number_is_a_weight_and_a_group_has_the_options_of_its_term() -> None:
    settings = ObjectiveSettings.model_validate({"logit": 0.5, "hidden": {"weight": 0.3, "distance": "cosine"}})
    assert {name: term.weight for name, term in settings.active.items()} == {"hard": 1.0, "logit": 0.5, "hidden": 0.3}
    hidden = settings.terms["hidden"]
    assert isinstance(hidden, HiddenTerm)
    assert (hidden.distance, hidden.projection) == ("cosine", "linear")
    assert settings.needing("states") == "hidden"
    assert settings.needing("distributions") == "logit"
    assert ObjectiveSettings().needing("distributions") is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"hard": 0},
        {"logit": 0.5, "hidden": {"weight": 0.3, "schedule": {"steps": 7}}, "divergence": "js", "temperature": 1.0},
        {"auxiliary": {"weight": 0.0, "width": 7}, "contrastive": {"schedule": {"start": 0.5}}},
    ],
)
def test_what_is_written_is_read_again(given: dict[str, Any]) -> None:
    settings = ObjectiveSettings.model_validate(given)
    written = settings.as_plain()
    assert written.keys() >= {"temperature", "divergence", *given, *settings.active}
    assert ObjectiveSettings.model_validate(written) == settings
    assert ObjectiveSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ({"logit": -1}, [("logit", "weight")]),
        ({"hidden": {"distance": "far"}, "hard": {"wait": 1}}, [("hard", "wait"), ("hidden", "distance")]),
        ({"loggit": 0.5}, [("loggit",)]),
        ({"entries": {}}, [("entries",)]),
    ],
)
def test_mistakes_are_named_by_their_place(given: dict[str, Any], places: list[tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError) as refusal:
        ObjectiveSettings.model_validate(given)
    assert [mistake["loc"] for mistake in refusal.value.errors()] == places
