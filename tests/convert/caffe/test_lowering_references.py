"""The single-layer cases of recurrent, detection, region and resampling layers against the reference in numpy."""

from __future__ import annotations

import caffe_lowered
import pytest
from caffe_cases import CASES, Case

from retarget.compare import snr_db
from retarget.convert.caffe.layers import detection, proposals, recurrent, regions, resampling
from retarget.convert.caffe.reference.evaluate import evaluate

OURS = {kind for family in (detection, proposals, recurrent, regions, resampling) for kind in family.LAYERS}
PARITY = 100
"""dB. Boxes of proposals are in pixels, of which float32 holds but so many places."""


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.type in OURS], ids=lambda case: case.name)
def test_is_the_reference(case: Case) -> None:
    net = caffe_lowered.read(case.prototxt, case.weights)
    feeds = case.feeds()
    expected = evaluate(net, feeds)
    found = caffe_lowered.execute(caffe_lowered.lowered(case.prototxt, case.weights), feeds)
    for name, array in zip(net.outputs, found, strict=True):
        assert array.shape == expected[name].shape
        assert snr_db(expected[name], array) >= PARITY
