"""What converting a large TensorFlow model takes; slow: `make stress`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAKE = """
import sys
import numpy as np
from retarget.convert.tensorflow.framework import quiet
with quiet():
    import keras
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.random.uniform(0.5, 2, layer.moving_variance.shape))
    model.export(sys.argv[1], verbose=False)
"""

EXPORT = """
import json, resource, sys
from pathlib import Path
from retarget.convert.tensorflow import export
from retarget.source import Source
exported = export.export(Source(Path(sys.argv[1]), (), {}), None, Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak": peak, "inputs": [str(spec) for spec in exported.inputs]}))
"""

COMPARE = """
import sys
from pathlib import Path
import numpy as np
from retarget import graph
from retarget.compare import snr_db
from retarget.convert.tensorflow import export, load
from retarget.passes import presets
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import TensorSpec
source = Source(Path(sys.argv[1]), (), {})
exported = Exported("tf2onnx", (TensorSpec.parse(sys.argv[3]),), ("output_0",))
model = load.load(Path(sys.argv[2]), source, exported)
for _, run in presets.build("default", {}):
    model = run(model).model
name = exported.inputs[0].name
feeds = {name: np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype("f4")}
with export.reference(source, exported) as runner, Session(model) as session:
    expected = runner.run(feeds)["output_0"]
    assert expected.std() > 0
    transposes = sum(node.op_type == "Transpose" for node in graph.all_nodes(model))
    print(snr_db(expected, session.run(feeds)["output_0"]), transposes)
"""


def python(code: str, *arguments: str | Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.strip().rpartition("\n")[2]


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_resnet_50_takes_less_than_3_gb(tmp_path: Path) -> None:
    """tf2onnx's own entry point takes 7.6 GB for its 102 MB of weights."""
    python(MAKE, tmp_path / "m")
    (tmp_path / "out").mkdir()
    told = json.loads(python(EXPORT, tmp_path / "m", tmp_path / "out"))
    assert told["peak"] < 3e9
    assert [spec.partition("=")[2] for spec in told["inputs"]] == ["float32[N,224,224,3]"]
    decibels, transposes = python(COMPARE, tmp_path / "m", tmp_path / "out", told["inputs"][0]).split()
    assert float(decibels) >= 80
    assert int(transposes) <= 2
