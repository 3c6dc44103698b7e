"""The data set and the undisturbed run that every fault is held against."""

import pathlib
import shutil

import pytest
import small_run

from rankax.train import train


@pytest.fixture(scope="module", autouse=True)
def on_one_device():
    """Runs cost a second, not ten."""
    with small_run.on_one_device():
        yield


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """The data set without a fault; not to be changed."""
    return small_run.write_dataset(tmp_path_factory.mktemp("clean") / "made")


@pytest.fixture(scope="session")
def whole(clean, tmp_path_factory):
    """Run folder and result of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with small_run.on_one_device():
        return folder, train(small_run.make_config(clean), str(folder))


@pytest.fixture
def data(clean, tmp_path):
    """A copy of the data set, to be damaged."""
    return pathlib.Path(shutil.copytree(clean, tmp_path / "made"))
