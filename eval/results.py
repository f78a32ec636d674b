"""Evaluation results on disk: one JSON object for a suite, or several under `suites` beside what they share."""

from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.records import read_record


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file, one for each suite, each with what is said once of all.

    Raises:
        UserError: if the file holds no results.
    """
    record = read_record(path)
    suites = record.get("suites", [record])
    shared = {key: value for key, value in record.items() if key != "suites"}
    if not isinstance(suites, list) or not all(isinstance(suite, dict) and "suite" in suite for suite in suites):
        raise UserError(f"{path} holds no results of `palenka eval`; give a file that it wrote")
    return [shared | suite for suite in suites]
