import importlib.metadata
import subprocess
import sys

import pytest

import layer_redundancy
from layer_redundancy import study


def test_every_public_name_is_there():
    for name in layer_redundancy.__all__:
        assert getattr(layer_redundancy, name) is not None and name in dir(layer_redundancy)
    assert layer_redundancy.Study is study.Study
    assert layer_redundancy.variants.dense(2) == (0, 1)
    assert set(layer_redundancy._PLACES) | {"__version__"} == set(layer_redundancy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Studdy'"):
        _ = layer_redundancy.Studdy


def test_importing_the_package_or_its_profiles_takes_the_standard_library_alone():
    code = (
        "import sys; before = {*sys.modules}\n"
        "import layer_redundancy, layer_redundancy.config.run_folder\n"
        "layer_redundancy.Recipe, layer_redundancy.StudyError, dir(layer_redundancy)\n"
        "new = {name.partition('.')[0] for name in {*sys.modules} - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'layer_redundancy'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_versions_are_told_of_what_is_not_installed_too(monkeypatch):
    found = study.versions()
    assert found["layer-redundancy"] == layer_redundancy.__version__
    assert found["torch"] == importlib.metadata.version("torch") and "not installed" not in found.to_list()
    monkeypatch.setattr(sys, "path", [])  # where importlib.metadata looks for what is installed
    assert study.versions().drop("layer-redundancy").unique().tolist() == ["not installed"]
    assert study.versions()["layer-redundancy"] == layer_redundancy.__version__
