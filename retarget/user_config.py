"""What holds for every build of this user: ``config.toml`` in the platform's folder for configuration.

store = "/data/retarget"

[toolchains.pytorch]
python = "/envs/train/bin/python"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retarget import catalog
from retarget.errors import RetargetError, did_you_mean


@dataclass(frozen=True)
class UserConfig:
    """Paths are absolute."""

    store: Path | None = None
    """Where artifacts are kept; None: the platform's cache folder."""
    toolchains: Mapping[str, Path] = field(default_factory=dict)
    """Frontend to the interpreter that runs it."""


def read() -> UserConfig:
    """The configuration of the user who runs this. Raises ``RetargetError`` naming the file and the key."""
    import platformdirs

    path = platformdirs.user_config_path("retarget") / "config.toml"
    if not path.is_file():
        return UserConfig()
    import tomllib

    try:
        settings = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RetargetError(f"{path}: {error}", 'it is TOML, as in store = "/large/store"') from error
    _known(path, "", settings, ("store", "toolchains"))
    toolchains = _table(path, "toolchains", settings.get("toolchains", {}))
    _known(path, "toolchains.", toolchains, catalog.FRONTENDS)
    interpreters = {}
    for name, value in toolchains.items():
        table = _table(path, f"toolchains.{name}", value)
        _known(path, f"toolchains.{name}.", table, ("python",))
        if "python" in table:
            interpreters[name] = _path(path, f"toolchains.{name}.python", table["python"])
    return UserConfig(_path(path, "store", settings["store"]) if "store" in settings else None, interpreters)


def _known(path: Path, place: str, table: Mapping[str, object], names: Mapping[str, object] | tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            raise RetargetError(f"{path}: unknown key '{place}{name}'", did_you_mean(name, names))


def _table(path: Path, name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RetargetError(f"{path}: {name}: {value!r} is not a table", f"write [{name}] and its keys below")
    return value


def _path(path: Path, name: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise RetargetError(f"{path}: {name}: {value!r} is not a path", f'write {name.rpartition(".")[2]} = "/path"')
    return path.parent / Path(value).expanduser()
