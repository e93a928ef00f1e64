"""The small module, with statistics that are not those of a fresh one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_net import NET, Net


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        module.norm.running_mean.normal_()  # type: ignore[union-attr]
        module.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


@pytest.fixture
def factory(tmp_path: Path) -> tuple[Path, str]:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py", "build"
