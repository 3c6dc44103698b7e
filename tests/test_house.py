"""The repository as a newcomer finds it: commands, floors, what the wheel holds."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _repository_files():
    """What git tracks, and what it would if all were added."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    assert paths, "git lists no file"
    return [path for path in paths if path.is_file()]


def _text(path):
    """Content of a text file, "" for a binary one."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode()


# ---------------------------------------------------------------- what people read


def _readme_commands():
    """Name -> fenced block under each `<!-- command: name -->`."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(
        r"^<!-- command: (\w+) -->\n```\w*\n(.*?)^```$", text, flags=re.M | re.S
    )
    assert len(found) == text.count("<!-- command:"), "a marker without its block"
    return dict(found)


def test_readme_has_two_commands_of_one_line_each():
    commands = _readme_commands()
    assert set(commands) == {"quickstart", "test"}
    for command in commands.values():
        assert command.count("\n") == 1, command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")


def test_readme_quickstart_needs_no_extra_and_runs_the_quickstart():
    command = _readme_commands()["quickstart"]
    assert ".[" not in command
    assert "-m rankax.main --config=experiments/quickstart.py" in command
    assert (ROOT / "experiments/quickstart.py").is_file()


def test_readme_test_command_runs_pytest_with_the_dev_extra():
    command = _readme_commands()["test"]
    assert '".[dev]"' in command
    assert "-m pytest" in command


def test_links_between_pages_lead_somewhere():
    for path in _repository_files():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target).exists(), f"{path.name} links {target}"


def test_changelog_opens_with_unreleased():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, flags=re.M)
    assert versions[0] == "Unreleased"


def test_licence_is_apache_2():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ten_lines_of_contributing_are_a_working_model(monkeypatch):
    from flax import nnx
    import jax.numpy as jnp

    from rankax.models import base

    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    # A copy, so that the tests of the registry do not meet this model.
    monkeypatch.setattr(base, "_BACKBONES", dict(base._BACKBONES))
    module = types.ModuleType("rankax.models.backbones.bi")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)

    config = base.named_config("bi", embedding_dim=2)
    (table,) = config.tables({"user": 7}, num_tasks=1)
    assert (table.num_rows, table.dim) == (7, 2)
    inputs = base.InputSpec(tokens=("a", "b", "c"), dims={"embedding": 2}, num_tasks=1)
    backbone = base.build_backbone(config, inputs, rngs=nnx.Rngs(0))
    e = jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    pairs = [1 * 3 + 1 * 5 + 3 * 5, 2 * 4 + 2 * 6 + 4 * 6]
    expected = nnx.LayerNorm(2, rngs=nnx.Rngs(0))(2 * jnp.array([pairs], jnp.float32))
    features = base.Features(embedded={"embedding": e}, numeric=jnp.zeros((1, 0)))
    assert backbone(features).tolist() == expected.tolist()


# ---------------------------------------------------------------- what git holds


def test_no_file_names_a_place_on_one_machine():
    # Not preceded by a word, a dot or a variable: paths below $HOME and URLs are fine.
    absolute = re.compile(
        r"(?<![\w.$}>~/-])/(?:work|farm|tmp|home|root|Users|mnt|opt|private)/[\w.]"
    )
    for path in _repository_files():
        for number, line in enumerate(_text(path).splitlines(), 1):
            assert not absolute.search(line), f"{path.relative_to(ROOT)}:{number}"


_DATA_SUFFIXES = {".parquet", ".npy", ".npz", ".csv"}


def test_no_data_and_no_large_file_is_tracked():
    figures = ROOT / "scaling/studies"  # whose numbers lie beside them
    for path in _repository_files():
        is_figure = path.suffix == ".csv" and path.is_relative_to(figures)
        assert is_figure or path.suffix not in _DATA_SUFFIXES, path
        assert path.stat().st_size <= 500_000, path


def test_nothing_in_rankax_is_named_for_what_it_is_not():
    for path in (ROOT / "rankax").rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, path


def test_package_files_are_empty_but_the_lists_of_models_and_what_servers_import():
    lists = {ROOT / "rankax/models" / kind / "__init__.py" for kind in _MODEL_KINDS}
    lists.add(ROOT / "rankax/serving/__init__.py")
    for path in (ROOT / "rankax").rglob("__init__.py"):
        assert path in lists or not path.read_text().strip(), path


_MODEL_KINDS = ("backbones", "sequences", "heads")


# ---------------------------------------------------------------- floors and tools


def test_floors_of_the_design_are_in_the_import_contract():
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (floors,) = [c for c in contracts if c["type"] == "layers"]
    assert floors["exhaustive"]  # a folder without a floor fails the linter
    from_top = [set(re.findall(r"\w+", layer)) for layer in floors["layers"]]
    height = {name: -i for i, layer in enumerate(from_top) for name in layer}
    order = "config parallel metrics embeddings data models observe training train main"
    heights = [height[name] for name in order.split()]
    assert heights == sorted(set(heights))
    assert height["layers"] == height["losses"] == height["optim"] == height["metrics"]


def test_core_dependencies_are_those_of_the_design():
    names = {
        re.split(r"[^\w-]", requirement)[0]
        for requirement in PROJECT["project"]["dependencies"]
    }
    assert names.isdisjoint({"torch", "tensorflow", "pandas", "scikit-learn"})
    extras = PROJECT["project"]["optional-dependencies"]
    assert any(r.startswith("torch") for r in extras["bench"])
    assert not any(r.startswith("torch") for r in extras["dev"])


def test_hooks_run_installed_tools_only():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    tools = set()
    for repo in config["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            assert hook["language"] == "system"
            tools.add(hook["entry"].split()[0])
    assert {"ruff", "pyright", "codespell", "lint-imports"} <= tools
    folder = pathlib.Path(sys.executable).parent
    for tool in tools:
        assert (folder / tool).exists(), f"{tool} does not come with the dev extra"


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Paths inside a wheel built from a copy of the tracked files."""
    scratch = tmp_path_factory.mktemp("wheel")
    for path in _repository_files():
        target = scratch / "source" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    build += [
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(scratch),
        "./source",
    ]
    done = subprocess.run(build, cwd=scratch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = scratch.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_rankax_alone(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"rankax", f"rankax-{PROJECT['project']['version']}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_wheel_holds_every_module_of_rankax(wheel_names):
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in _repository_files()
        if path.suffix == ".py" and path.is_relative_to(ROOT / "rankax")
    }
    assert modules <= set(wheel_names)
