"""The commands as a user runs them: real processes, real files, real exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from retarget import cli, listing

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N,8] x) => (float[N,4] scores)
<float[8,4] w, float[4] b> {
  h = MatMul(x, w)
  z = Add(h, b)
  scores = Sigmoid(z)
}
"""

RECIPE = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: {min: 1, opt: 2, max: 4}}}
targets: [onnxruntime]
"""


def write_model(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(MODEL)
    for name, shape in (("w", (8, 4)), ("b", (4,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "net.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(folder: Path, store: Path) -> Run:
    def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        stored = ("--store", str(store)) if arguments[0] in ("convert", "build", "cache") else ()
        ended = subprocess.run(
            [sys.executable, "-m", "retarget.cli", *arguments, *stored],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert ended.returncode == expect, f"{ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        return ended

    return run


# ---- what works


def test_convert_leaves_verified_artifacts_and_the_recipe_that_it_stands_for(folder: Path, run: Run) -> None:
    command = ["convert", "net.onnx", "--shape", "N=1:2:4", "--precision", "fp32", "--precision", "fp16"]
    run(*command, "--to", "onnxruntime", "--to", "openvino", "-o", "out")

    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["schema"], report["verdict"]) == (1, "pass")
    assert {(row["target"], row["variant"], row["verified"]) for row in report["artifacts"]} == {
        (target, variant, "executed") for target in ("onnxruntime", "openvino") for variant in ("fp32", "fp16")
    }
    for file in (
        "report.html",
        "report.md",
        "junit.xml",
        "recipe.lock",
        "reference.npz",
        "onnxruntime/fp32/model.onnx",
        "openvino/fp16/model.xml",
        "openvino/fp16/model.bin",
        "openvino/fp16/manifest.json",
    ):
        assert (folder / "out" / file).is_file(), file

    again = run("build", "out/recipe.yaml", "-o", "again", "--dry-run", "--json")
    assert {row["status"] for row in json.loads(again.stdout)} == {"cached"}


def test_a_build_where_nothing_changed_runs_no_step(run: Run) -> None:
    run("build", "recipe.yaml", "-o", "out")
    again = json.loads(run("build", "recipe.yaml", "-o", "out", "--json").stdout)
    assert {step["status"] for step in again["steps"]} == {"cached"}


def test_data_goes_to_stdout_and_words_to_stderr(run: Run) -> None:
    ended = run("build", "recipe.yaml", "-o", "out", "--json")
    assert json.loads(ended.stdout)["name"] == "net"
    assert "report:" not in ended.stdout
    assert "\x1b[" not in ended.stdout + ended.stderr


def test_a_tilde_is_the_home_in_options_and_recipes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Options are given as ``--store=~/store`` too, where a shell expands nothing."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "net.onnx")
    np.savez(home / "data.npz", x=np.ones((3, 8), np.float32))
    (folder / "recipe.yaml").write_text(RECIPE.replace("net.onnx", "~/net.onnx") + "data: {samples: ~/data.npz}\n")
    environment = {**os.environ, "HOME": str(home)}
    last = ["-o", "~/out", "--store=~/store", "--no-bench"]
    for arguments in (
        ["build", "recipe.yaml", *last],
        ["convert", "~/net.onnx", "--data", "~/data.npz", "--to", "onnxruntime", "--shape", "N=1:2:4", *last],
    ):
        subprocess.run(command(*arguments), cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
        report = json.loads((home / "out" / "report.json").read_text())
        assert report["model"]["data"] == "samples"
        # The paths are not part of the keys: the second build finds all that the first one made.
        assert {step["status"] for step in report["steps"]} == ({"ran"} if arguments[0] == "build" else {"cached"})
    assert (home / "store" / "objects").is_dir()
    assert not (folder / "~").exists()


def test_without_bench_nothing_is_timed(folder: Path, run: Run) -> None:
    ended = run("build", "recipe.yaml", "-o", "out", "--no-bench")
    assert "latency: not measured (--no-bench)" in ended.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["verdict"], report["bench"], report["artifacts"][0]["latency"]) == ("pass", None, None)


def test_an_artifact_makes_itself_again_and_refuses_another_input(folder: Path, run: Run, store: Path) -> None:
    run("build", "recipe.yaml", "-o", "out")
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    script = [
        str(folder / "out" / "onnxruntime" / "fp32" / "REPRODUCE.sh"),
        "-o",
        str(folder / "again"),
        "--store",
        str(store),
    ]
    subprocess.run(script, check=True, capture_output=True, env=environment, timeout=120)
    artifacts = [folder / name / "onnxruntime" / "fp32" / "model.onnx" for name in ("out", "again")]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()

    write_model(folder / "net.onnx", seed=1)
    refused = subprocess.run(script, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert refused.returncode == 4
    assert "net.onnx" in refused.stderr


def test_the_report_is_written_again_beside_a_baseline(folder: Path, run: Run) -> None:
    run("build", "recipe.yaml", "-o", "out")
    (folder / "out" / "report.html").unlink()
    again = json.loads(run("report", "out", "--baseline", "out/report.json", "--json").stdout)
    assert (folder / "out" / "report.html").is_file()
    (change,) = again["baseline"]["changes"]
    assert (change["target"], change["status"], change["bytes_ratio"]) == ("onnxruntime", "same", 1.0)
    assert "no such" in run("report", "nowhere", expect=1).stderr.lower()


def test_only_builds_one_artifact(folder: Path, run: Run) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("[onnxruntime]", "[onnxruntime, openvino]"))
    run("build", "recipe.yaml", "-o", "out", "--only", "onnxruntime")
    assert not (folder / "out" / "openvino").exists()


def test_the_starter_recipe_can_be_built_as_it_is(folder: Path, run: Run) -> None:
    run("init", "net.onnx", "-o", "starter.yaml")
    assert "float32[N,8]" in (folder / "starter.yaml").read_text()
    run("build", "starter.yaml", "--dry-run")
    assert "is there already" in run("init", "net.onnx", "-o", "starter.yaml", expect=1).stderr


def test_inspect_says_what_is_really_in_a_model(run: Run) -> None:
    found = json.loads(run("inspect", "net.onnx", "--json").stdout)
    assert found["parameters"] == 36
    assert "MatMul" in run("inspect", "net.onnx").stdout


def test_lists_doctor_schema_and_cache_print_data(run: Run) -> None:
    run("build", "recipe.yaml", "-o", "out")
    for what in ("frontends", "passes", "targets"):
        assert {row["name"] for row in json.loads(run("list", what, "--json").stdout)} >= {"onnx"} & {what}
    assert "openvino" in {row["name"] for row in json.loads(run("list", "targets", "--json").stdout)}
    assert json.loads(run("schema").stdout)["$schema"]
    assert "openvino" in run("doctor").stdout
    assert json.loads(run("cache", "ls", "--json").stdout)
    assert "all artifacts are whole" in run("cache", "verify").stderr


# ---- what fails, and how


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["convert", "nett.onnx", "--to", "openvino"], "nett.onnx: no such file", "give a model: a file"),
        (["convert", "net.onnx", "--to", "openvin"], "unknown target 'openvin'", "did you mean 'openvino'?"),
        (["convert", "net.onnx", "--to", "openvino", "--precision", "fp61"], "'fp61' is unknown", "fp16"),
        (
            ["convert", "net.onnx", "--to", "openvino", "--input", "x=float31[N,8]"],
            "unknown dtype 'float31'",
            "float32",
        ),
        (["convert", "net.onnx", "--to", "openvino", "--input", "x=float32[N,8"], "not a tensor spec", "DTYPE[SHAPE]"),
        (["convert", "net.onnx", "--to", "openvino", "--shape", "N=4:2:1"], "not a dimension range", "MIN:OPT:MAX"),
        (["convert", "net.onnx", "--to", "openvino", "--optimize", "fast"], "unknown preset 'fast'", "default"),
        (["convert", "net.onnx", "--to", "openvino", "--data", "none.npz"], "none.npz: no such file", "relative"),
        (["convert", "net.onnx", "--to", "openvino", "--memory", "lots"], "'lots' is not a size", "4GB"),
        (["convert", "net.onnx", "--to", "openvino", "--calibration", "no.npz"], "no.npz: no such file", "current"),
        (["build", "nothing.yaml"], "nothing.yaml", ""),
        (["build", "recipe.yaml", "--locked"], "recipe.lock: no such file", "earlier build"),
        (["inspect", "nothing.onnx"], "nothing.onnx", ""),
        (["list", "target"], "no list of 'target'", "did you mean 'targets'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_line_and_a_hint(
    folder: Path, run: Run, arguments: list[str], words: str, hint: str
) -> None:
    ended = run(*arguments, expect=1)
    assert words in ended.stderr
    assert hint in ended.stderr
    assert ended.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == ["net.onnx", "recipe.yaml"]


def test_what_only_the_model_can_refute_fails_in_a_clear_line_too(run: Run) -> None:
    for given, words in (("x=float32[N,9]", "8"), ("y=float32[N,8]", "x"), ("x=int64[N,8]", "float32")):
        ended = run("convert", "net.onnx", "--to", "onnxruntime", "--input", given, "-o", "out", expect=1)
        assert "hint:" in ended.stderr
        assert words in ended.stderr


REFLECTED = """
<ir_version: 10, opset_import: ["" : 21]>
padded (float[N,T] x) => (float[N,U] y) <int64[4] pads = {0, 4, 0, 4}> {
  y = Pad <mode = "reflect"> (x, pads)
}
"""


def test_a_source_that_fails_at_assumed_sizes_says_so(folder: Path, run: Run) -> None:
    onnx.save(onnx.parser.parse_model(REFLECTED), folder / "padded.onnx")
    ended = run("convert", "padded.onnx", "--shape", "N=2", "--to", "onnxruntime", "-o", "out", expect=1)
    assert "the source fails at N=2, T=1: ONNX Runtime failed on" in ended.stderr
    assert "as in --shape T=1:8:32; none were given for T" in ended.stderr
    run("convert", "padded.onnx", "--shape", "N=2", "--shape", "T=5:8:9", "--to", "onnxruntime", "-o", "out")


def test_all_errors_of_a_recipe_are_reported(folder: Path, run: Run) -> None:
    text = RECIPE.replace("name: net", "nam: net").replace("[onnxruntime]", "[onnxruntim]") + "variants: [fp23]\n"
    (folder / "recipe.yaml").write_text(text)
    ended = run("build", "recipe.yaml", expect=1)
    for line, mistake in ((3, "nam"), (5, "onnxruntim"), (6, "fp23")):
        assert f"recipe.yaml:{line}:" in ended.stderr
        assert mistake in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["net.onnx", "recipe.yaml"]


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_model_is_named(folder: Path, run: Run, damage: str) -> None:
    whole = (folder / "net.onnx").read_bytes()
    middle = len(whole) // 2
    broken = whole[:middle] if damage == "cut" else whole[:8] + bytes([whole[8] ^ 0xFF]) + whole[9:]
    (folder / "net.onnx").write_bytes(broken)
    ended = run("convert", "net.onnx", "--to", "onnxruntime", "-o", "out", expect=1)
    assert "net.onnx" in ended.stderr
    assert not (folder / "out" / "onnxruntime").exists()


MIXING = """
<ir_version: 10, opset_import: ["" : 21]>
mixing (float[N,8] x) => (float[N,8] y) {
  total = ReduceSum <keepdims = 0> (x)
  y = Mul(x, total)
}
"""


def test_rows_that_depend_on_each_other_in_the_source_break_no_gate(folder: Path, run: Run) -> None:
    """Nobody can ask of an artifact what its source does not do; parity holds it to the source all the same."""
    onnx.save(onnx.parser.parse_model(MIXING), folder / "mixing.onnx")
    run("convert", "mixing.onnx", "--shape", "N=1:2:4", "--to", "onnxruntime", "-o", "out")
    (row,) = json.loads((folder / "out" / "report.json").read_text())["artifacts"]
    assert row["batch_passed"] is None
    assert row["batch"].startswith("skipped: rows of the source itself depend on each other (4 rows together and")
    assert row["parity"][0]["passed"]


def test_a_broken_gate_ends_with_4(folder: Path, run: Run) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "variants: [fp16]\ngates: {parity: {fp16: {snr_db: 200}}}\n")
    ended = run("build", "recipe.yaml", "-o", "out", expect=4)
    assert "fail" in ended.stderr
    assert json.loads((folder / "out" / "report.json").read_text())["verdict"] == "fail"


def test_a_folder_of_the_user_s_own_is_refused(folder: Path, run: Run) -> None:
    ended = run("build", "recipe.yaml", "-o", ".", expect=1)
    assert "did not make" in ended.stderr
    assert not (folder / "report.json").exists()


def test_a_store_that_cannot_be_one_is_refused(folder: Path) -> None:
    (folder / "file").write_text("")
    command = [sys.executable, "-m", "retarget.cli", "build", "recipe.yaml", "-o", "out", "--store", "file"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "hint:" in ended.stderr
    assert "Traceback" not in ended.stderr


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retarget", *arguments]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init", "net.onnx", "-o", "nowhere/recipe.yaml"], "nowhere/recipe.yaml: No such file or directory"),
        (["convert", "net.onnx", "--to", "onnxruntime", "-o", "x" * 300], "File name too long"),
        (["inspect", "n\udcffet.onnx"], "'n\\udcffet.onnx': is not text in the encoding"),
    ],
    ids=["folder", "length", "encoding"],
)
def test_names_that_cannot_be_are_the_users_mistake(folder: Path, run: Run, arguments: list[str], words: str) -> None:
    ended = run(*arguments, expect=1)
    assert words in ended.stderr
    assert "\n\nhint: " in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_below_stdout_is_no_bug(options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command("list", "passes", *options), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: No space left on device")


def test_standard_streams_may_be_closed(folder: Path, store: Path) -> None:
    arguments = ["convert", "net.onnx", "--to", "onnxruntime", "-o", "out", "--store", str(store)]
    line = f"exec {shlex.join(command(*arguments))} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=folder, timeout=120, check=False).returncode == 0
    assert json.loads((folder / "out" / "report.json").read_text())["verdict"] == "pass"


def test_a_current_folder_that_was_removed_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"rmdir ../gone && exec {shlex.join(command('list', 'targets'))}"
    ended = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path / "gone", capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "error: the current folder is not there any more" in ended.stderr


def test_a_missing_dependency_of_retarget_s_own_is_said(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["onnx_ir"] = None
sys.argv = ["retarget", "inspect", "net.onnx"]
from retarget.cli import main
main()
"""
    write_model(tmp_path / "net.onnx")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: onnx_ir is not installed\n\nhint: pip install retarget")


def test_an_output_in_a_folder_that_the_build_reads_is_refused(folder: Path, run: Run) -> None:
    (folder / "samples").mkdir()
    (folder / "samples" / "x").mkdir()
    np.save(folder / "samples" / "x" / "0.npy", np.ones((2, 8), np.float32))
    ended = run("convert", "net.onnx", "--to", "onnxruntime", "--data", "samples", "-o", "samples/out", expect=1)
    assert "samples/out: is in " in ended.stderr
    assert "hint: give a folder outside it" in ended.stderr
    assert not (folder / "samples" / "out").exists()


def test_a_build_that_fails_early_takes_away_what_the_one_before_left(folder: Path, run: Run) -> None:
    run("convert", "net.onnx", "--to", "onnxruntime", "-o", "out")
    run("convert", "net.onnx", "--to", "onnxruntime", "--input", "x=float32[N,9]", "-o", "out", expect=1)
    assert not (folder / "out" / "onnxruntime" / "fp32").exists()
    assert not (folder / "out" / "reference.npz").exists()
    assert json.loads((folder / "out" / "report.json").read_text())["verdict"] == "incomplete"


def test_a_dry_run_refuses_what_was_not_locked(folder: Path, run: Run) -> None:
    assert "recipe.lock: no such file" in run("build", "recipe.yaml", "--dry-run", "--locked", expect=1).stderr


def test_a_dimension_that_no_input_has_is_said(run: Run) -> None:
    ended = run("convert", "net.onnx", "--to", "onnxruntime", "--shape", "M=1:2:4", "-o", "out", expect=1)
    assert "M: no input has this dimension" in ended.stderr
    assert "hint: the inputs are x=float32[N,8]" in ended.stderr


def test_wrong_usage_ends_with_2(run: Run) -> None:
    assert "--to" in run("convert", "net.onnx", expect=2).stderr
    run("frobnicate", expect=2)


def test_a_bug_ends_with_3_and_leaves_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(what: str) -> None:
        raise KeyError(what)

    monkeypatch.setattr(listing, "rows", broken)
    monkeypatch.setattr(sys, "argv", ["retarget", "list", "targets"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    words = capsys.readouterr().err
    log = Path(words.split("with the log ")[1].strip())
    assert "Traceback" not in words
    assert "KeyError: 'targets'" in log.read_text()
    log.unlink()


def test_ctrl_c_while_the_command_line_is_loaded_ends_in_peace() -> None:
    code = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from retarget.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_build_and_its_workers(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (folder / "data.py").write_text(
        "import os, pathlib, time\n"
        "def samples():\n"
        "    pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "    yield {}\n"
    )
    command = [sys.executable, "-m", "retarget.cli", "convert", "net.onnx", "--to", "onnxruntime"]
    command += ["--data", "data.py:samples", "-o", "out", "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        for _ in range(600):
            if (folder / "pid").exists() and (folder / "pid").read_text():
                break
            time.sleep(0.1)
        worker = int((folder / "pid").read_text())
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
    assert process.returncode == code, words
    assert "Traceback" not in words
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert not (folder / "out" / "onnxruntime").exists()
