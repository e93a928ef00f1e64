from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retarget.errors import RetargetError
from retarget.user_code import blame, load_function


def test_a_function_and_its_neighbours_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_code.py").write_text("VALUE = 7\n")
    (tmp_path / "code.py").write_text("from neighbour_of_code import VALUE\ndef f():\n    return VALUE\n")
    before = list(sys.path)
    assert load_function(tmp_path / "code.py", "f")() == 7
    assert sys.path == before


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text(f"def f():\n    return {name!r}\n")
    assert [load_function(tmp_path / name / "code.py", "f")() for name in ("a", "b")] == ["a", "b"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="no such file"):
        load_function(tmp_path / "code.py", "f")
    (tmp_path / "code.py").write_text("def function(): ...\nvalue = 1\n")
    with pytest.raises(RetargetError, match="no function 'functoin'\n\nhint: did you mean 'function'"):
        load_function(tmp_path / "code.py", "functoin")
    with pytest.raises(RetargetError, match="no function 'value'"):
        load_function(tmp_path / "code.py", "value")


def test_a_file_that_failed_may_be_repaired(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1 / 0\n")
    with pytest.raises(RetargetError, match=r"code\.py:1: importing the file raised ZeroDivisionError"):
        load_function(tmp_path / "code.py", "f")
    (tmp_path / "code.py").write_text("def f():\n    return 'repaired'\n")
    assert load_function(tmp_path / "code.py", "f")() == "repaired"


def test_blame_names_the_last_line_of_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("import json\ndef f():\n    return json.loads('{')\n")
    function = load_function(tmp_path / "code.py", "f")
    with pytest.raises(ValueError, match="Expecting") as caught:
        function()
    assert blame(tmp_path / "code.py", "f()", caught.value).message.startswith(f"{tmp_path}/code.py:3: f() raised JSON")
