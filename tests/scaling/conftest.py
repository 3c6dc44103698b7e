import made_up_study
import pytest

from scaling import fit, report


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory):
    """A folder with runs.jsonl and fits.json of the made-up study."""
    folder = tmp_path_factory.mktemp("studies") / "made-up"
    made_up_study.write(folder)
    fit.main([str(folder), "--replicates=100", "--metrics=logloss,1-auc"])
    return folder


@pytest.fixture(scope="session")
def fits(study_folder):
    return fit.read(study_folder)


@pytest.fixture(scope="session")
def written(study_folder):
    """The same folder with its report and figures."""
    report.main([str(study_folder)])
    return study_folder
