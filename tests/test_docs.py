"""The commands of docs/ do what the page says."""

import pathlib
import re
import shlex
import subprocess
import sys

from made_up import shop

ROOT = pathlib.Path(__file__).parents[1]


def block(page: str, marker: str) -> str:
    """The fenced block under a marker of a page."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"{re.escape(marker)}\n```\w*\n(.*?)```", text, flags=re.S)
    assert found, f"{page} has no block under {marker}"
    return found[1]


def test_six_lines_lead_from_a_csv_to_two_compared_models(tmp_path):
    lines = block("data.md", "<!-- command: six lines -->")
    assert lines.count("\n") == 6
    shop.write(tmp_path / "shop.csv", num_rows=1_500)
    header = (tmp_path / "shop.csv").read_text().splitlines()[0]
    assert f"```csv\n{header}\n" in (ROOT / "docs/data.md").read_text()
    for name in ("rankax", "experiments", "data_pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in lines.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert re.search(r"^shop-din +1 +0\.\d+", done.stdout, flags=re.M)
    assert "device" in (tmp_path / "runs/shop/report.html").read_text()
