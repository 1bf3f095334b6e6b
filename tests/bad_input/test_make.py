"""What users give make, as it asks of it: mistakes, odd values that are right, and what is run anew."""

import os
import shutil

import pytest

import one_line
from layer_redundancy.config import own_files, profiles, run_folder
from layer_redundancy.core import doors
from layer_redundancy.core.errors import StudyError


@pytest.fixture(autouse=True)
def by_make(tmp_path, monkeypatch):
    monkeypatch.setenv(doors.VARIABLE, doors.MAKE)
    monkeypatch.delenv("LAYER_REDUNDANCY_DEVICE", raising=False)
    monkeypatch.chdir(tmp_path)


def answer(**given: str) -> list[str]:
    return list(run_folder.answer({"PROFILE": "smoke", "NOTEBOOKS": "01 08"} | given))


MISTAKES = {
    "a profile that is none": ({"PROFILE": "huge"}, "unknown profile 'huge': choose one of smoke, embedded, paper"),
    "no profile": ({"PROFILE": ""}, "unknown profile ''"),
    "a profile in capitals": ({"PROFILE": "Smoke"}, "unknown profile 'Smoke': choose one of smoke"),
    "a profile with a space behind it": ({"PROFILE": "smoke "}, "unknown profile 'smoke '"),
    "two profiles": ({"PROFILE": "smoke paper"}, "unknown profile 'smoke paper'"),
    "a file that is not there": ({"PROFILE": "mine.toml"}, "profile 'mine.toml': no such file"),
    "a profile in nobody's home": ({"PROFILE": "~nobody-here/mine.toml"}, "there is no home folder of ~nobody-here"),
    "a profile's name that is too long": ({"PROFILE": "x" * 300 + ".toml"}, "no such file"),
    "a model that is not there": ({"MODEL": "./nowhere"}, "MODEL=./nowhere: no such folder or file"),
    "an absolute model that is not there": ({"MODEL": "/no/where"}, "MODEL=/no/where: no such folder"),
    "a path for a hub id": ({"MODEL": "models/org/name"}, "MODEL=models/org/name: no such folder"),
    "a model in nobody's home": ({"MODEL": "~nobody-here/x"}, "there is no home folder of ~nobody-here"),
    "a revision of no model": ({"REVISION": "main"}, "revision 'main' was given without a model: give MODEL= too"),
    "true for yes": (
        {"TRUST_REMOTE_CODE": "true"},
        "true is not understood: write yes, no or nothing",
    ),
    "one for yes": ({"TRUST_REMOTE_CODE": "1"}, "TRUST_REMOTE_CODE=1 is not understood"),
    "yes in capitals": ({"TRUST_REMOTE_CODE": "YES"}, "TRUST_REMOTE_CODE=YES is not understood"),
    "yes and no": ({"TRUST_REMOTE_CODE": "yes no"}, "TRUST_REMOTE_CODE=yes no is not understood"),
    "no number of workers": ({"WORKERS": "two"}, "WORKERS=two: give the number of processes, from 1 to 256"),
    "no workers at all": ({"WORKERS": "0"}, "WORKERS=0: give the number of processes"),
    "more workers than a machine has": ({"WORKERS": "1000"}, "WORKERS=1000: give the number of processes"),
    "workers here and a cluster": ({"WORKERS": "2", "SCHEDULER": "tcp://127.0.0.1:1"}, "SCHEDULER=: the workers are"),
    "a scheduler without a port": ({"SCHEDULER": "tcp://far.example"}, "SCHEDULER=tcp://far.example is no address"),
    "a scheduler without a protocol": ({"SCHEDULER": "far.example:8786"}, "is no address: write tcp://HOST:PORT"),
    "a scheduler's page": ({"SCHEDULER": "http://127.0.0.1:8787/status"}, "is no address: write tcp://HOST:PORT"),
    "a scheduler elsewhere in the clear": (
        {"SCHEDULER": "tcp://far.example:1"},
        "use tls:// (docs/clusters.md), or TRUST",
    ),
    "no trust in the network": ({"SCHEDULER": "tcp://far.example:1", "TRUST_NETWORK": "no"}, "is another machine"),
    "true for trust": ({"TRUST_NETWORK": "true"}, "TRUST_NETWORK=true is not understood: write yes, no or nothing"),
    "parameters for workers": ({"WORKERS": "2", "PARAMS": "limit=3"}, "PARAMS= is for notebooks that measure for"),
    "parameters for a cluster": ({"SCHEDULER": "tls://far.example:1", "PARAMS": "limit=3"}, "PARAMS= is for notebooks"),
    "gpu for cuda": ({"DEVICE": "gpu"}, "unknown device 'gpu': choose cpu, cuda or auto"),
    "a device in capitals": ({"DEVICE": "CPU"}, "unknown device 'CPU'"),
    "a notebook that is none": ({"NOTEBOOKS": "99"}, 'no notebook "99": choose from 01_layer_importance'),
    "one good notebook and a bad one": ({"NOTEBOOKS": "01 x"}, 'no notebook "x"'),
    "notebooks with a comma": ({"NOTEBOOKS": "01,02"}, 'no notebook "01,02"'),
    "a range of notebooks": ({"NOTEBOOKS": "01-03"}, 'no notebook "01-03"'),
    "a pattern of make": ({"NOTEBOOKS": "%"}, 'no notebook "%"'),
    "a pattern of the shell": ({"NOTEBOOKS": "0*"}, 'no notebook "0*"'),
    "a slash for a notebook": ({"NOTEBOOKS": "/"}, 'no notebook "/"'),
    "a parameter without a value": ({"PARAMS": "limit"}, "parameter 'limit' must be written name=value"),
    "a parameter without a name": ({"PARAMS": "=3"}, "parameter '3' must be written name=value"),
    "a quote that is not closed": ({"PARAMS": "export_to='x"}, "No closing quotation"),
    "a parameter of no notebook": (
        {"PARAMS": "limits=3"},
        "no parameter limits in the chosen notebooks, which know",
    ),
    "a parameter twice": ({"PARAMS": "limit=1 limit=2"}, "parameter limit is given twice"),
    "a parameter that is a variable": ({"PARAMS": "trust_remote_code=True"}, "is set by TRUST_REMOTE_CODE="),
    "a fraction for a number": ({"PARAMS": "limit=1.5"}, "parameter limit=1.5 must be of type int"),
    "True for a number": ({"PARAMS": "limit=True"}, "parameter limit=True must be of type int"),
    "a list for a number": ({"PARAMS": "limit=[3]"}, "parameter limit=[3] must be of type int"),
    "infinity for a share": ({"PARAMS": "ratio=1e999"}, "parameter ratio=1e999 must be a finite number"),
    "no number for a share": ({"PARAMS": "ratio=nan"}, "parameter ratio=nan must be of type float"),
    "a number too large for a share": ({"PARAMS": f"ratio={10**400}"}, "must be of type float"),
    "a program for a number": ({"PARAMS": "limit=print(3)"}, "parameter limit=print(3) must be of type int"),
    "brackets without end": ({"PARAMS": f"limit={'(' * 400}"}, "must be of type int"),
    "PROFILES for PROFILE": ({"PROFILES": "paper"}, "unknown variable PROFILES=: did you mean PROFILE=?"),
    "a variable in small letters": ({"profile": "paper"}, "unknown variable profile=: did you mean PROFILE=?"),
    "Model for MODEL": ({"Model": "org/name"}, "unknown variable Model=: did you mean MODEL=?"),
    "NOTEBOOK for NOTEBOOKS": ({"NOTEBOOK": "01"}, "did you mean NOTEBOOKS=?"),
    "PARAM for PARAMS": ({"PARAM": "limit=1"}, "did you mean PARAMS=?"),
    "PARAMETERS for PARAMS": ({"PARAMETERS": "limit=1"}, "did you mean PARAMS=?"),
    "REV for REVISION": ({"REV": "main"}, "did you mean REVISION=?"),
    "TRUST for all of it": ({"TRUST": "yes"}, "did you mean TRUST_REMOTE_CODE=?"),
    "MODEL_ID for MODEL": ({"MODEL_ID": "org/name"}, "did you mean MODEL=?"),
    "WORKER for WORKERS": ({"WORKER": "2"}, "did you mean WORKERS=?"),
    "SCHED for SCHEDULER": ({"SCHED": "tcp://127.0.0.1:1"}, "did you mean SCHEDULER=?"),
    "TRUST_NET for TRUST_NETWORK": ({"TRUST_NET": "yes"}, "did you mean TRUST_NETWORK=?"),
    "a parameter as a variable": ({"limit": "3"}, 'a notebook\'s parameter is given as PARAMS="limit=..."'),
    "a parameter in capitals": ({"RATIO": "0.3"}, 'a notebook\'s parameter is given as PARAMS="ratio=..."'),
    "a profile's key as a variable": ({"SEED": "3"}, "seed is set in a profile of your own"),
    "a name that nobody knows": ({"colour": "red"}, "unknown variable colour=: choose from PROFILE, DEVICE, MODEL"),
}


@pytest.mark.parametrize(("given", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(given, words):
    assert words in one_line.refusal(lambda: answer(**given))


def test_make_gets_the_line_and_no_word_that_it_takes_for_an_answer(capsys):
    run_folder.main("PROFILE=ok", "MODEL=folder=x run=y:z")
    line = capsys.readouterr().out
    assert line.startswith("unknown profile 'ok'") and line.count("\n") == 1


RIGHT = {
    "no to code": {"TRUST_REMOTE_CODE": "no"},
    "a processor": {"DEVICE": "cpu"},
    "workers": {"WORKERS": "2"},
    "a cluster of this machine": {"SCHEDULER": "tcp://127.0.0.1:8786"},
    "a cluster with certificates": {"SCHEDULER": "tls://far.example:8786"},
    "a cluster on a network of one's own": {"SCHEDULER": "tcp://far.example:8786", "TRUST_NETWORK": "yes"},
    "a hub id": {"MODEL": "org/name.v1-7b", "REVISION": "12e5678"},
    "a parameter with a quote and spaces": {"PARAMS": "limit=3 ratio='.5'"},
    "variables of the environment": {"HF_HOME": "x", "CUDA_VISIBLE_DEVICES": "0", "http_proxy": "x"},
    "variables of Python": {"PYTHONPATH": "x", "PYTHONHASHSEED": "0"},
    "a variable of the Makefile": {"NO_FAIL": ""},
}  # fmt: skip


@pytest.mark.parametrize("given", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_run(given):
    folder, *runs = answer(**given)
    model = given.get("MODEL", "").replace("/", "--")
    assert folder == f"folder={'-'.join(filter(None, ['smoke', model]))}"
    assert [run.split("/")[1].split(":")[0] for run in runs] == ["01_layer_importance", "08_benchmarks"]


@pytest.mark.parametrize("text", ["1 01", "01_layer_importance 1", "notebooks/01_layer_importance.ipynb", " 01 "])
def test_a_notebook_that_is_named_twice_is_run_once(text):
    assert len(answer(NOTEBOOKS=text)) == 2


def test_who_measures_decides_nothing():
    """Nothing is run anew because of it: results and figures are the same."""
    alone = answer()
    assert answer(WORKERS="4") == alone == answer(SCHEDULER="tls://far.example:8786")


# ------------------------------------------------------------------------------------------------ folders

# Names of folders that users have: none of them may change.
KEPT = {
    "HuggingFaceTB/SmolLM2-135M": "HuggingFaceTB--SmolLM2-135M",
    "gpt2": "gpt2",
    "org/name.v1-7b_x": "org--name.v1-7b_x",
    "/srv/me/models/mine": "srv--me--models--mine",
    "/srv/größe/a_b": "srv--größe--a_b",
}
# Each of these was given the name of another one above or here, before they had one each.
SAME_BEFORE = [
    ["/x/y/a_b", "/x/y/a b", "/x/y/a:b", "/x/y/a$b", "/x/y/a'b", '/x/y/a"b', "/x/y/a;b", "/x/y/a\nb", "/x/y/a\\b"],
    ["a--b/c", "a/b--c", "/a/b/c", "a--b--c", "a/b/c"],
    ["org/name", "/org/name", "org/name/", "org--name"],
    ["gpt2", "/gpt2", "gpt2/"],
    ["/x/" + "y" * 300, "/x/" + "y" * 301, "/x/" + "y" * 299 + "z"],
    [".", "..", "", "/"],
]  # fmt: skip


def test_names_of_folders_that_are_there_stay():
    assert {model: profiles.slug(model) for model in KEPT} == KEPT


@pytest.mark.parametrize("models", SAME_BEFORE, ids=lambda models: ascii(models[0][:20]))
def test_two_models_never_share_a_folder(models):
    names = [profiles.slug(model) for model in models]
    assert len(set(names)) == len(models)
    for name in names:
        assert all(c.isalnum() or c in "-._" for c in name) and len(name.encode()) <= 200 and name not in (".", "..")


def test_a_long_name_of_a_profile_and_a_model_is_one_folder(tmp_path):
    (tmp_path / f"{'p' * 190}.toml").write_text('extends = "smoke"')
    folders = [answer(PROFILE=f"{'p' * 190}.toml", MODEL=f"org/{'m' * 90}{n}")[0] for n in "ab"]
    assert folders[0] != folders[1] and all(len(folder.encode()) <= 200 + len("folder=") for folder in folders)


# ------------------------------------------------------------------------------------------------ run anew


@pytest.fixture
def written(tmp_path):
    """A model, a profile with a text and a task of the user's own, and what these name; the words that make gives."""
    files = {
        "model/config.json": "{}",
        "model/model.safetensors": "weights",
        "model/tokenizer.json": "{}",
        "texts/one.txt": "text",
        "tasks/mine.yaml": 'include: ../common/base.yaml\ndata_files: { test: "some data/x.jsonl" }',
        "tasks/some data/x.jsonl": "{}",
        "tasks/code.py": "",
        "common/base.yaml": "dataset_path: json\nprocess_docs: !function near.f",
        "common/near.py": "",
        "mine.toml": 'extends = "smoke"\ntasks = [{ name = "tasks/mine.yaml" }]\ntext.corpus = "texts"',
        "ready/config.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return {"PROFILE": "mine.toml", "MODEL": "model", "NOTEBOOKS": "07 11", "PARAMS": "ready=ready export_to=out"}


@pytest.mark.parametrize(
    "name",
    [
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/added.json",
        "texts/one.txt",
        "texts/more/two.txt",
        "tasks/mine.yaml",
        "tasks/some data/x.jsonl",
        "tasks/code.py",
        "common/base.yaml",
        "common/near.py",
        "mine.toml",
    ],
)
def test_what_a_run_reads_makes_it_run_anew(written, tmp_path, name):
    before = answer(**written)
    assert answer(**written) == before
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with (tmp_path / name).open("a") as file:
        file.write("\n# more")
    after = answer(**written)
    assert after[0] == before[0] and all(one != other for one, other in zip(after[1:], before[1:], strict=True))


def test_other_weights_of_the_same_size_and_time_make_it_run_anew(written, tmp_path):
    file, before = tmp_path / "model" / "model.safetensors", answer(**written)
    state = file.stat()
    shutil.copy(file, tmp_path / "copy")
    (tmp_path / "copy").write_text("sthgiew")
    os.utime(tmp_path / "copy", ns=(state.st_atime_ns, state.st_mtime_ns))
    (tmp_path / "copy").replace(file)
    assert answer(**written)[1:] != before[1:]


def test_a_further_model_that_changes_is_run_anew_and_no_other(tmp_path):
    (tmp_path / "further").mkdir()
    table = '{ model = "further", notebooks = ["01"] }'
    (tmp_path / "mine.toml").write_text(f'extends = "smoke"\nfurther = [{table}]')
    before = answer(PROFILE="mine.toml")
    (tmp_path / "further" / "model.safetensors").touch()
    changed = [one != other for one, other in zip(answer(PROFILE="mine.toml"), before, strict=True)]
    assert changed == [False, False, False, True, False]


def test_a_parameter_concerns_only_the_notebooks_that_have_it(written, tmp_path):
    before = answer(**written)
    (tmp_path / "ready" / "model.safetensors").write_text("weights")
    after = answer(**written)
    assert after[1] != before[1] and after[2] == before[2], "07 reads it"
    (tmp_path / "out").mkdir()
    assert answer(**written) == after, "what 11 has written is no reason to write it again"
    for more in ({"REVISION": "v1"}, {"TRUST_REMOTE_CODE": "yes"}):
        assert answer(**written | more)[1:] != after[1:]


@pytest.mark.parametrize("make", ["symlink_to", "mkdir"], ids=["a link to nothing", "an empty folder"])
def test_a_folder_in_disorder_is_no_trouble(written, tmp_path, make):
    path = tmp_path / "model" / "odd"
    path.symlink_to("nowhere") if make == "symlink_to" else path.mkdir()
    assert len(answer(**written)) == 3


# ------------------------------------------------------------------------------------------------ what is written

NOT_NEW = {
    "a folder that is there": ("there", "there exists: choose another folder or delete it"),
    "a file": ("file", "file exists"),
    "a link to nothing": ("link", "link exists"),
    "below a file": ("file/below", "cannot write file/below: it would lie in a file"),
    "a name that is too long": ("n" * 300, "File name too long"),
    "a new folder with a name that is too long": ("new/" + "n" * 300, "the name is too long"),
    "in the model's own folder": ("model/pruned", "it lies in the model's own folder"),
    "the home of nobody": ("~nobody-here/x", "Could not determine home directory"),
    "a null byte": ("a\0b", "null byte"),
    "a folder that is there, through another": ("model/../there", "exists"),
}


@pytest.mark.parametrize(("name", "words"), NOT_NEW.values(), ids=NOT_NEW)
def test_what_cannot_be_written_is_told_before_work_starts(tmp_path, name, words):
    for folder in ("there", "model"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert words in one_line.refusal(lambda: run_folder.placed({"export_to": name}, str(tmp_path / "model")))


def test_paths_start_where_the_user_is(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    given = {"export_to": "new/one", "ready": "checkpoint", "beside": "org/name", "limit": 3}
    found = {"export_to": str(tmp_path / "new" / "one"), "ready": str(tmp_path / "checkpoint")}
    assert run_folder.placed(given) == given | found
    assert run_folder.placed({"export_to": "", "ready": ""}) == {"export_to": "", "ready": ""}
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("door", "told"),
    [
        (doors.MAKE, ["MODEL=", "MODEL=x", "TRUST_REMOTE_CODE=yes"]),
        (doors.COMMAND, ["--model", "--model x", "--trust-remote-code"]),
        ("", ["model=", "model='x'", "trust_remote_code=True"]),
    ],
)
def test_a_message_names_a_setting_as_the_user_writes_it(monkeypatch, door, told):
    monkeypatch.setenv(doors.VARIABLE, door)
    found = [doors.setting("model"), doors.setting("model", "x"), doors.setting("trust_remote_code", True)]
    assert found == told
    with pytest.raises(StudyError, match=f"give {told[0]} too"):
        profiles.get("smoke", revision="v1")


def test_a_path_that_can_be_none_is_not_there():
    for name in ("x" * 5000, "a\0b", "/no/where"):
        assert not own_files.is_there(own_files.place(name)) and own_files.state(name) == []
        assert run_folder.absolute_model(name) == name
