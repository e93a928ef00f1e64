"""What a Caffe net computes, for there is no Caffe to ask: its layers in numpy, written from Caffe's published sources.

The layers stand in modules by family, each a plain function of a layer and its inputs; none shares code with the
lowering to ONNX. OpenCV's Caffe reader is a second opinion where it can be had and its layers are Caffe's (``opencv``):
it never replaces the reference, for what it has otherwise would then go unseen.
"""

from retarget.convert.caffe.reference.runner import Reference, open, second_opinion  # noqa: A004 - the protocol's name

__all__ = ["Reference", "open", "second_opinion"]
