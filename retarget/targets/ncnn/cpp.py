"""``model.ncnn.cpp``: a small program that loads the files, feeds them and shows what comes out, to begin from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from retarget.targets.ncnn import sidecar

FILE = "model.ncnn.cpp"

_HEAD = """\
// Loads {param} and {bin}, feeds inputs and prints the outputs' shapes and first elements.
//
//     find_package(ncnn REQUIRED)
//     add_executable(model {file})
//     target_link_libraries(model ncnn)
//
// Written for {checked_with}: earlier releases have no rows (ncnn::Mat::n).

#include <stddef.h>
#include <stdio.h>

#include <algorithm>
#include <string>
#include <vector>

#include "net.h"

// A Mat holds its elements in the model's order: rows (n) first, then c, d, h and w. Behind each channel there may be a
// gap, so elements are copied channel by channel. `T` is float, or int where the blob is int32.
template<typename T>
static void fill(ncnn::Mat& mat, const std::vector<T>& elements)
{{
    const size_t size = (size_t)mat.w * mat.h * mat.d;
    typename std::vector<T>::const_iterator next = elements.begin();
    for (int row = 0; row < mat.n; row++)
    {{
        ncnn::Mat one = mat.batch(row);
        for (int q = 0; q < one.c; q++, next += size)
            std::copy(next, next + size, (T*)one.channel(q).data);
    }}
}}

static std::vector<float> elements_of(const ncnn::Mat& mat)
{{
    const size_t size = (size_t)mat.w * mat.h * mat.d;
    std::vector<float> elements;
    for (int row = 0; row < mat.n; row++)
    {{
        const ncnn::Mat one = mat.batch(row);
        for (int q = 0; q < one.c; q++)
        {{
            const float* channel = one.channel(q);
            elements.insert(elements.end(), channel, channel + size);
        }}
    }}
    return elements;
}}

static void print(const char* name, const ncnn::Mat& mat)
{{
    const std::vector<float> elements = elements_of(mat);
    printf("%s: n=%d c=%d d=%d h=%d w=%d:", name, mat.n, mat.c, mat.d, mat.h, mat.w);
    for (size_t i = 0; i < elements.size() && i < 8; i++)
        printf(" %.6g", elements[i]);
    printf("\\n");
}}

int main(int argc, char** argv)
{{
    const std::string folder = argc > 1 ? std::string(argv[1]) + "/" : std::string();

    ncnn::Net net;
{options}
    if (net.load_param((folder + {param_text}).c_str()) != 0
        || net.load_model((folder + {bin_text}).c_str()) != 0)
    {{
        fprintf(stderr, "the files do not load\\n");
        return 1;
    }}

    ncnn::Extractor extractor = net.create_extractor();
"""

_OPTIONS = """\
    // With these off, all is computed in float32, as parity is held. Left out, ncnn computes in 16 bits where the
    // machine is faster with that. They hold from before the files are loaded.
"""

_TAIL = """
    return 0;
}
"""


def source(says: sidecar.Sidecar, sizes: Mapping[str, int]) -> str:
    """The program, C++11. ``sizes``: of each symbolic dimension one that may be fed."""
    head = _HEAD.format(
        file=FILE,
        param=says.param,
        bin=says.bin,
        checked_with=says.checked_with,
        param_text=_text(says.param),
        bin_text=_text(says.bin),
        options=_OPTIONS
        + "".join(f"    net.opt.{name} = {str(on).lower()};\n" for name, on in says.parity_options.items()),
    )
    named = _identifiers(says, sizes)
    steps = {name: f", a multiple of {step}" for name, step in says.multiples.items()}
    constants = "".join(
        f"    const int {named[name]} = {sizes[name]}; // {says.ranges[name][0]} to {says.ranges[name][1]}"
        f"{steps.get(name, '')}\n"
        for name in named
    )
    body = [
        *([f"\n{constants}"] if constants else []),
        *(_input(place, number, value, held, named) for place, number, value, held in _blobs(says)),
        *(_output(place, value) for place, value in enumerate(says.outputs)),
    ]
    return head + "".join(body) + _TAIL


def _blobs(says: sidecar.Sidecar) -> Iterator[tuple[int, int, sidecar.Value, sidecar.Held]]:
    for place, value in enumerate(says.inputs):
        for number, held in enumerate(value.blobs):
            yield place, number, value, held


def _identifiers(says: sidecar.Sidecar, sizes: Mapping[str, int]) -> dict[str, str]:
    """What the open symbols of the inputs are called."""
    found: dict[str, str] = {}
    for value in says.inputs:
        for dim in value.shape:
            if isinstance(dim, str) and dim not in says.sizes and dim not in found and dim in sizes:
                plain = "size_" + re.sub(r"[^A-Za-z0-9]", "_", dim)
                found[dim] = plain if plain not in found.values() else f"{plain}_{len(found)}"
    return found


def _input(place: int, number: int, value: sidecar.Value, held: sidecar.Held, named: Mapping[str, str]) -> str:
    name = f"input{place}" + (f"_{number}" if number else "")
    kind = "int" if held.dtype == "int32" else "float"

    def size(dim: sidecar.Dim) -> str:
        axes = [value.shape[axis] for axis in dim.axes]
        if isinstance(dim.size, int):
            return str(dim.size)
        return " * ".join(named[each] if each in named else str(each) for each in map(str, axes) if each != "1")

    sizes = [size(dim) for dim in reversed(held.dims) if dim.dim != "n"]
    rows = [size(held.dims[0])] if held.rows is not None else []
    # Four bytes an element and not packed: what stands in front of the rows.
    made = [*sizes, "(size_t)4u", "1", *rows] if rows else sizes
    count = " * ".join(f"(size_t)({each})" if " " in each else f"(size_t){each}" for each in [*sizes, *rows])
    is_whole = kind == "int" or not value.dtype.startswith(("float", "bfloat"))
    fed = f"({kind})(i % 2)" if is_whole else "0.1f * (float)(i % 10)"
    return f"""
    // {_text(value.name)}, {value.dtype}{_shape(value)}: {_comment(held.layout)}
    ncnn::Mat {name}({", ".join(made)});
    {{
        std::vector<{kind}> elements({count});
        for (size_t i = 0; i < elements.size(); i++)
            elements[i] = {fed};
        fill({name}, elements);
    }}
    extractor.input({_text(held.name)}, {name});
"""


def _output(place: int, value: sidecar.Value) -> str:
    (held,) = value.blobs
    return f"""
    // {_text(value.name)}, {value.dtype}{_shape(value)}: {_comment(held.layout)}
    ncnn::Mat output{place};
    if (extractor.extract({_text(held.name)}, output{place}) != 0)
    {{
        fprintf(stderr, "a layer fails on the way to %s\\n", {_text(held.name)});
        return 1;
    }}
    print({_text(held.name)}, output{place});
"""


def _comment(text: str) -> str:
    return _text(text)[1:-1]


def _shape(value: sidecar.Value) -> str:
    return f"[{','.join(_comment(dim) if isinstance(dim, str) else str(dim) for dim in value.shape)}]"


def _text(text: str) -> str:
    """As a string of C++."""
    plain = (chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'
