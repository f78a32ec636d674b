"""A suite in one file: how often a model's greedy choice is the last word of a text, token by token.

Data are JSON lines with a `text`. `palenka eval MODEL --plugins last_word --suite last_word --data DIR --out F.json`.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from palenka.eval.decisions import DecisionSuite
from palenka.eval.json_lines import read_lines
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES


class LastWord(DecisionSuite[list[tuple[str, str]]]):
    title = "last word"
    folders = ("last_word",)

    def read(self, folder: Path, conditions: Conditions) -> list[tuple[str, str]]:
        return [(file.stem, text) for file in self.files(folder) for _, (text,) in read_lines(file, ("text",))]

    def measure(self, data: list[tuple[str, str]], model: Any, conditions: Conditions) -> pa.Table:
        right = []
        for _, text in data:
            start = len(model.tokenizer.encode(text.rsplit(" ", 1)[0], add_special_tokens=False))
            tokens = torch.tensor(model.tokenizer.encode(text, add_special_tokens=False), device=model.load().device)
            with torch.inference_mode():
                greedy = model.load()(input_ids=tokens.unsqueeze(0)).logits[0].argmax(-1)
            right.append(bool((greedy[start - 1 : -1] == tokens[start:]).all()))
        return pa.table({"task": [task for task, _ in data], "index": range(len(data)), "right": right})


SUITES.register("last_word")(LastWord())
