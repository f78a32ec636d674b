"""Any causal language model that transformers builds from a configuration: ``model: {model_type: qwen3, ...}``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, model_validator

from palenka.ground.errors import UserError
from palenka.ground.plain_yaml import load_yaml
from palenka.train_student.model.student import STUDENT_MODELS, SpecialTokens, StudentModel, building

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OF_THE_CORPUS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@STUDENT_MODELS.register("model_type")
class ConfiguredModel(StudentModel):
    """Any causal language model of transformers, by its model type; all fields of its configuration are options."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    model_type: str
    """Such as qwen3, gemma2 or mamba; other fields have the configuration's defaults."""

    @model_validator(mode="before")
    @classmethod
    def _words_as_in_yaml(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        # The types of fields are unknown here, so values on the command line are parsed as in a file.
        if not isinstance(given, Mapping):
            return given
        return {key: load_yaml(value) if isinstance(value, str) else value for key, value in given.items()}

    @property
    def fields(self) -> dict[str, Any]:
        """The given fields of the configuration."""
        return dict(self.model_extra or {})

    def configuration(self, vocabulary_size: int, special_tokens: SpecialTokens) -> PretrainedConfig:
        """See `StudentModel`."""
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        from palenka.data.model_files import require_bounds

        types = [name for name, kind in CONFIG_MAPPING.items() if kind in MODEL_FOR_CAUSAL_LM_MAPPING]
        if self.model_type not in types:
            raise UserError(
                f"model.model_type is {self.model_type!r}, but transformers builds no causal language model of that "
                f"type; {_nearest(self.model_type, types) or 'choose one such as llama, qwen3 or gemma2'}"
            )
        kind: Any = CONFIG_MAPPING[self.model_type]
        with building(self.summary()):
            known = {*kind().to_dict(), *kind.attribute_map}
        for name in self.fields:
            if name in _OF_THE_CORPUS:
                raise UserError(f"model.{name} follows from the corpus's tokenizer; leave it out")
            if name not in known:
                hint = _nearest(name, known)
                raise UserError(
                    f"model.{name} is no field of {self.model_type}'s configuration" + (f"; {hint}" if hint else "")
                )
        with building(self.summary()):
            config: PretrainedConfig = kind(**self.fields, vocab_size=vocabulary_size, **special_tokens)
        require_bounds(f"model: {self.summary()}", config)
        return config

    def summary(self) -> str:
        """See `StudentModel`."""
        return self.model_type


def _nearest(name: str, names: list[str] | set[str]) -> str:
    """A hint at the name that was probably meant, if any."""
    alike = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {alike[0]!r}?" if alike else ""
