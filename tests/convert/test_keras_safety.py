"""Keras files with code in them are refused before any of it runs: each test's file leaves a mark where it does."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_testing import converted, keras, keras_2, round_trip, save_as_it_is, source_of

from retarget.convert.tensorflow.framework import quiet
from retarget.errors import RetargetError

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def _marking(mark: Path) -> Callable[[Any], Any]:
    """A function that leaves the mark and gives back what it got; its code alone is stored in a file."""
    text = f"lambda x: (__import__('pathlib').Path({str(mark)!r}).touch(), x)[1]"
    made: Callable[[Any], Any] = eval(text)
    return made


def _saved(build: Callable[[Any, Any], Any], mark: Path, path: Path, k: Any = keras) -> Path:
    save_as_it_is(build(k, _marking(mark)), path)
    mark.unlink(missing_ok=True)
    return path


def _refused(path: Path, mark: Path, *words: str, options: dict[str, Any] | None = None) -> RetargetError:
    """The refusal of ``path``, which left no mark."""
    with pytest.raises(RetargetError) as caught:
        converted(source_of(path, options=options), path.parent / "out")
    assert not mark.exists()
    for word in words:
        assert word in caught.value.message
    return caught.value


def _alone(k: Any, f: Any) -> Any:
    return k.Sequential(
        [k.Input((4,), name="x"), k.layers.Lambda(f, output_shape=(4,), name="evil"), k.layers.Dense(2)]
    )


def _in_a_wrapper(k: Any, f: Any) -> Any:
    evil = k.layers.Lambda(f, output_shape=(4,), name="evil")
    return k.Sequential([k.Input((3, 4), name="x"), k.layers.TimeDistributed(evil, name="steps")])


def _in_a_model_within(k: Any, f: Any) -> Any:
    x = k.Input((4,))
    inner = k.Model(x, k.layers.Lambda(f, output_shape=(4,), name="evil")(x), name="inner")
    y = k.Input((4,), name="y")
    return k.Model(y, k.Sequential([k.Input((4,)), inner], name="middle")(y))


PLACES = {"alone": _alone, "in a wrapper": _in_a_wrapper, "in a model within": _in_a_model_within}


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("place", PLACES)
def test_lambdas_are_refused(place: str, suffix: str, mark: Path, tmp_path: Path) -> None:
    error = _refused(
        _saved(PLACES[place], mark, tmp_path / f"model.{suffix}"), mark, "layer 'evil' (Lambda) carries code"
    )
    assert error.hint is not None
    assert "--trust" in error.hint


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_lambdas_of_keras_2_are_refused(suffix: str, mark: Path, tmp_path: Path) -> None:
    path = _saved(_in_a_model_within, mark, tmp_path / f"model.{suffix}", keras_2())
    for implementation in ("keras", "tf_keras"):
        options = {"implementation": implementation}
        _refused(path, mark, "layer 'evil' (Lambda) carries code", options=options)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_lambdas_run_where_the_user_trusts_them(suffix: str, mark: Path, tmp_path: Path) -> None:
    path = _saved(_alone, mark, tmp_path / f"model.{suffix}")
    round_trip(source_of(path, trust=True), tmp_path / "out")
    assert mark.exists(), "the files of these tests do carry code"


def test_every_layer_that_carries_code_is_named(mark: Path, tmp_path: Path) -> None:
    def build(k: Any, f: Any) -> Any:
        layers = [k.layers.Lambda(f, output_shape=(4,), name=name) for name in ("first", "second")]
        return k.Sequential([k.Input((4,), name="x"), *layers])

    error = _refused(_saved(build, mark, tmp_path / "model.keras"), mark, "'first' (Lambda)", "'second' (Lambda)")
    assert len(error.message.splitlines()) == 3


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_as_an_activation_is_refused(suffix: str, mark: Path, tmp_path: Path) -> None:
    def build(k: Any, f: Any) -> Any:
        return k.Sequential([k.Input((4,), name="x"), k.layers.Dense(2, name="evil")])

    path = _saved(build, mark, tmp_path / f"model.{suffix}")
    code, defaults, closure = keras.src.utils.python_utils.func_dump(_marking(mark))
    carried = {"class_name": "__lambda__", "config": {"code": code, "defaults": defaults, "closure": closure}}
    _rewrite(path, lambda config: config["config"]["layers"][1]["config"].update(activation=carried))
    _refused(path, mark, "layer 'evil' (a lambda) carries code")


# ---- names of what is not a layer


def _rewrite(path: Path, change: Change) -> None:
    """Change the configuration in a file, as who means harm would."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _plain(k: Any, f: Any) -> Any:
    return k.Sequential([k.Input((4,), name="x"), k.layers.Dense(3, name="a"), k.layers.Dense(2, name="b")])


def _object(module: str | None, name: str, config: object) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": name}


OBJECTS = {
    "a class of another module": (_object("subprocess", "Popen", {"args": ["true"]}), "'subprocess.Popen'"),
    "a function of another module": (_object("os", "function", "system"), "'os.system'"),
    "safe mode off": (
        _object("keras.config", "function", "enable_unsafe_deserialization"),
        "'keras.config.enable_unsafe_deserialization'",
    ),
    "a download": (_object("keras.utils", "function", "get_file"), "'keras.utils.get_file'"),
    "another model": (_object("keras.models", "function", "load_model"), "'keras.models.load_model'"),
    "a class of Keras that is no layer": (
        _object("keras.saving", "KerasFileEditor", {"filepath": "/etc/passwd"}),
        "'keras.saving.KerasFileEditor'",
    ),
    "a callback": (_object("keras.callbacks", "BackupAndRestore", {"backup_dir": "/tmp"}), "BackupAndRestore'"),
    "a SavedModel": (_object("keras.layers", "TFSMLayer", {"name": "z", "filepath": "/evil"}), "(TFSMLayer) loads"),
    "a pickle": (_object("keras.layers", "TorchModuleWrapper", {"name": "z", "module": "gASV"}), "pickled"),
    "functions of JAX": (_object("keras.layers", "JaxLayer", {"name": "z", "call_fn": None}), "(JaxLayer) carries"),
    "a vocabulary in a file": (
        _object("keras.layers", "IntegerLookup", {"name": "z", "vocabulary": "/etc/passwd"}),
        "reads the file '/etc/passwd'",
    ),
    "an operation that calls": (_object("keras.src.ops.core", "Map", {"name": "z"}), "(Map) calls a function"),
    "a type": ({"class_name": "__typespec__", "spec_name": "X", "module": "os", "config": []}, "'os.__typespec__'"),
    "a function of TensorFlow": (
        _object(None, "TFOpLambda", {"name": "z", "function": "io.write_file"}),
        "calls tf.io.write_file, which is none of the known functions",
    ),
    "a raw node of TensorFlow": (_object(None, "TensorFlowOpLayer", {"name": "z", "node_def": ""}), "raw node"),
    "a hidden Lambda": (_object("evil.layers", "Lambda", {"name": "z", "function": ["code"]}), "'Lambda'"),
}
"""What → how it stands in a configuration, and what its refusal says. Most were ways around Keras's safe mode."""


@pytest.mark.parametrize("what", OBJECTS)
def test_what_is_not_of_a_model_is_refused(what: str, mark: Path, tmp_path: Path) -> None:
    carried, words = OBJECTS[what]
    for suffix in ("keras", "h5"):
        path = _saved(_plain, mark, tmp_path / f"model.{suffix}")
        for change in (
            lambda config: config["config"]["layers"].append(carried),
            lambda config: config["config"]["layers"][1]["config"].update(activation=carried),
            lambda config: config["config"]["layers"][1]["config"].update(kernel_initializer={"any": [carried]}),
        ):
            _rewrite(path, change)
            error = _refused(path, mark)
            assert words.strip("'") in error.message


@pytest.mark.parametrize("implementation", ["keras", "tf_keras"])
def test_no_module_is_imported(
    implementation: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras 2 imports whatever module a file names, with its safe mode or without."""
    (tmp_path / "evil_module.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    k = keras_2()
    path = _saved(_plain, mark, tmp_path / "model.keras", k)
    _rewrite(path, lambda config: config.update(_object("evil_module", "Evil", {})))
    _refused(path, mark, "needs 'evil_module.Evil'", options={"implementation": implementation})
    with quiet(), pytest.raises(TypeError, match="Evil"):
        k.models.load_model(str(path), compile=False)
    assert mark.exists(), "Keras 2 itself does import it"
    sys.modules.pop("evil_module", None)


def test_compiled_models_need_nothing_of_how_they_were_trained(tmp_path: Path) -> None:
    def ours(expected: Any, actual: Any) -> Any:
        return keras.ops.mean(keras.ops.square(expected - actual))

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="inner")
    inner.compile("sgd", loss=ours)
    model = keras.Sequential([keras.Input((4,), name="x"), inner])
    model.compile("sgd", loss=ours, metrics=[ours])
    with quiet():
        model.fit(np.ones((8, 4), "f4"), np.ones((8, 3), "f4"), verbose=0)
    for suffix in ("keras", "h5"):
        round_trip(source_of(save_as_it_is(model, tmp_path / f"model.{suffix}")), tmp_path / suffix)


def test_a_lambda_that_names_a_function_of_keras_is_as_good_as_that(tmp_path: Path) -> None:
    layer = keras.layers.Lambda(keras.ops.tanh, output_shape=(4,))
    model = keras.Sequential([keras.Input((4,), name="x"), layer, keras.layers.Dense(2)])
    round_trip(source_of(save_as_it_is(model, tmp_path / "model.keras")), tmp_path / "out")
