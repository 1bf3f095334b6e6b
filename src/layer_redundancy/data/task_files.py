"""Tasks of the user's own: files as lm-eval's are, with all that they name looked for beside them.

A task's file may bring code along (a function, a class, a metric of the evaluate library). That is found without
running it, and run only with the same leave that a model's own code needs. Templates are rendered in Jinja's sandbox.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import yaml
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from layer_redundancy.config import own_files
from layer_redundancy.core import doors, flags
from layer_redundancy.core.errors import StudyError

ELSEWHERE = ("dataset_path", "dataset_name", "dataset_kwargs")  # keys that say where items are, not what they are


@dataclass(frozen=True)
class TaskFile:
    """The definition of a task as its file, and what that includes, have it.

    Attributes:
        path: the file.
        name: the task's own name.
        config: the definition; functions are not looked up.
        code: what of it runs code, in words.
        modules: the code's files.
        digest: sha256 (hex) of the definition and of the code's files, wherever they lie.
    """

    path: Path
    name: str
    config: dict[str, Any]
    code: tuple[str, ...]
    modules: tuple[Path, ...]
    digest: str


def task_name(name: str) -> str:
    """A task's name in tables and keys: its own, also where it is named by its file."""
    return read(name).name if own_files.is_own_task(name) else name


def read(name: str) -> TaskFile:
    """A task's file, none of whose code is run.

    Raises:
        StudyError: there is no such file, or it defines no single task.
    """
    path = Path(own_files.task(name))
    at = own_files.shown(path)
    try:
        functions = dict(_functions(path, set()))
        config = load_yaml(path, resolve_func=False)
        digest = _digest(path, config, functions)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{at} is no task that lm-eval reads: {' '.join(str(error).split())}") from error
    name = config.get("task")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise StudyError(f'{at} must define one task, with a name ("task: my_task")')
    metrics = [one for one in config.get("metric_list") or () if isinstance(one, dict)]
    foreign = [one["metric"] for one in metrics if one.get("hf_evaluate") or one.get("metric") not in metric_registry]
    code = [f"!function {function}" for function in functions]
    code += ["class"] if "class" in config else []
    # lm-eval looks for a metric that it does not know in the evaluate library, whose metrics are programs.
    code += [f"metric {metric}" for metric in foreign if metric not in {str(f) for f in functions.values()}]
    return TaskFile(path, name, config, tuple(code), tuple(functions.values()), digest)


def _functions(file: Path, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    """What a file and those that it includes name by !function, and the Python file that lm-eval would look for."""
    if file.resolve() in seen:
        return
    seen.add(file.resolve())
    _check_file(file)
    root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    for node in _nodes(root, set()):
        if node.tag == "!function":
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError(f"!function in line {node.start_mark.line + 1} names no function")
            module = file.parent / f"{node.value.rpartition('.')[0].replace('.', '/')}.py"
            _check_file(module)
            yield node.value, module
        elif not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
            raise ValueError(f"unknown tag {node.tag!r} in line {node.start_mark.line + 1}")
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "include":
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    yield from _functions(file.parent / one.value, seen)


def _check_file(file: Path) -> None:
    """Raises ValueError for what is there and no file: a pipe would be waited for, for ever."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no file")


def _nodes(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.Node]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.CollectionNode):
        for part in node.value:
            for one in part if isinstance(part, tuple) else (part,):
                yield from _nodes(one, seen)


def _digest(path: Path, config: dict[str, Any], functions: dict[str, Path]) -> str:
    content = {key: value for key, value in config.items() if key not in ELSEWHERE}
    text = json.dumps(content, sort_keys=True, default=str)
    for folder in sorted({file.parent for file in (path, *functions.values())}, key=lambda one: -len(str(one))):
        text = text.replace(f"{folder}/", "")  # functions that are not looked up have their folder before their name
    digest = hashlib.sha256(text.encode())
    for file in functions.values():
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


@flags.checked
def manager(task: TaskFile, trust_remote_code: bool) -> TaskManager:
    """lm-eval's manager that knows this task alone.

    Raises:
        StudyError: the task runs code without leave, or a file of its data is not there.
    """
    if task.code and not trust_remote_code:
        raise StudyError(
            f"{own_files.shown(task.path)} runs code that comes with it ({', '.join(task.code)}): read that, then "
            f"give {doors.setting('trust_remote_code', True)} if you trust it"
        )
    _render_in_sandbox()
    _forget(task.modules)
    try:
        config = load_yaml(task.path, resolve_func=True)
    except (Exception, SystemExit) as error:  # the task's own code may raise anything when it is imported
        raise StudyError(f"{own_files.shown(task.path)}: {' '.join(str(error).split())}") from error
    settings = dict(config.get("dataset_kwargs") or {})
    for key in ("data_files", "data_dir"):
        if key in settings:
            settings[key] = _beside(task.path, settings[key])
    if settings:
        if "://" not in str(settings):
            # What datasets keeps of a file goes by its time alone, and of a function by its name.
            settings.setdefault("download_mode", "force_redownload")
        config["dataset_kwargs"] = settings
    found = TaskManager(include_defaults=False)
    found.task_index[task.name] = TaskIndex.entry_from_config(config)
    return found


def _forget(modules: Iterable[Path]) -> None:
    """Has Python read the code's files again, which it knows by their time, to a second where it has compiled them."""
    for module in modules:
        sys.modules.pop(str(module.resolve().with_suffix("")), None)  # as lm-eval calls it
        with suppress(OSError):
            Path(cache_from_source(str(module))).unlink(missing_ok=True)


def _beside(task: Path, files: Any) -> Any:
    """Paths of data files, each relative one from the folder of the task's file on."""
    if isinstance(files, dict):
        return {split: _beside(task, of_split) for split, of_split in files.items()}
    if isinstance(files, list):
        return [_beside(task, file) for file in files]
    if "://" in str(files):
        return files
    path = task.parent / Path(files).expanduser()
    if not any(sign in str(files) for sign in "*?[") and not path.exists():
        raise StudyError(f"{own_files.shown(task)}: its data file {files} is not there")
    return str(path)


def _render_in_sandbox() -> None:
    """Has lm-eval render templates where they reach nothing but what they are given; the text is the same."""
    if not isinstance(utils.env, SandboxedEnvironment):
        sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        sandbox.filters |= utils.env.filters
        utils.env = sandbox
