"""The frontend of Caffe: prototxt and caffemodel of V0, V1 and V2, read without Caffe and without a schema file."""
