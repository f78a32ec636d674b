"""What tests of the report share."""

import pytest
from markupsafe import Markup


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are not drawn, which takes most of a report's time: for tests that read what a page says."""
    monkeypatch.setattr("palenka.report.canvas.to_svg", lambda *_: Markup())
