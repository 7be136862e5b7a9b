"""The wheel: all that a user needs is inside, configs and pages included."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_runs_from_an_empty_directory(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {"llmkit/configs/pretrain.yaml", "llmkit/reporting/templates/report.html"}
    wanted |= {"llmkit/README.md", "llmkit/configs/README.md"}
    assert wanted <= set(names)
    assert not [name for name in names if name.startswith("tests/")]
    place = tmp_path / "installed"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", place, wheel], check=True)
    code = f"import sys; sys.path.insert(0, {str(place)!r}); import llmkit; print(llmkit.__file__);"
    code += "from llmkit.cli.app import run_command; sys.exit(run_command(['init', 'masked']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(place) in done.stdout
    assert "train:" in (tmp_path / "masked.yaml").read_text()
