from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from retarget import user_config
from retarget.errors import RetargetError
from retarget.user_config import UserConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / name)
    (tmp_path / "retarget").mkdir()
    return tmp_path / "retarget" / "config.toml"


def test_without_a_file_nothing_is_configured(config: Path) -> None:
    assert user_config.read() == UserConfig()
    config.write_text("")
    assert user_config.read() == UserConfig()


def test_paths_are_relative_to_the_file(config: Path) -> None:
    config.write_text('store = "/large/store"\n[toolchains.pytorch]\npython = "envs/bin/python"\n')
    read = user_config.read()
    assert read.store == Path("/large/store")
    assert read.toolchains == {"pytorch": config.parent / "envs/bin/python"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stor = 1", "unknown key 'stor'\n\nhint: did you mean 'store'"),
        ("store = 1", "store: 1 is not a path"),
        ("store = ", "config.toml: "),
        ("toolchains = 3", "toolchains: 3 is not a table"),
        ("[toolchains.pytorhc]", "unknown key 'toolchains.pytorhc'\n\nhint: did you mean 'pytorch'"),
        ("[toolchains]\npytorch = '/bin/python'", "toolchains.pytorch: '/bin/python' is not a table"),
        ("[toolchains.pytorch]\npyhton = '/x'", "unknown key 'toolchains.pytorch.pyhton'"),
        ("[toolchains.pytorch]\npython = ''", "toolchains.pytorch.python: '' is not a path"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(RetargetError) as caught:
        user_config.read()
    assert str(caught.value).startswith(str(config))
    assert message in str(caught.value)
