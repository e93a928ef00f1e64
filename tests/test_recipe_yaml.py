"""The nodes, the files and the walk, on Structs of the tests' own."""

import datetime
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import hypothesis.strategies as st
import msgspec
import pytest
import yaml
from hypothesis import given

from retarget.errors import RecipeError, RetargetError
from retarget.recipe_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    File,
    List,
    Map,
    Node,
    Scalar,
    compose,
    open_tree,
    parse_path,
    resolve,
    write_path,
)
from retarget.recipe_yaml import Reader, Settings, Written, render

HERE = File(Path("/recipes/r.yaml"), "r.yaml")


def values(node: Node) -> object:
    """A tree without places."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, List):
        return [values(item) for item in node.items]
    return {key: values(value) for key, (_, value) in node.entries.items()}


def composed(text: str) -> object:
    node, problems = compose(text, HERE)
    assert problems == []
    return values(node)


def refused(text: str) -> str:
    """The first problem of a text that is no tree, or of one with problems."""
    try:
        _, problems = compose(text, HERE)
    except RecipeError as error:
        return str(error.problems[0])
    return str(problems[0][1])


# ---- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("+12", 12),
        ("-3", -3),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:8:32", "1:8:32"),
        ("190:20:30", "190:20:30"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("", None),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("2027-01-31", "2027-01-31"),
        ("=", "="),
        ("1e", "1e"),
        (".", "."),
        ("8.9.1", "8.9.1"),
        ("-.inf", float("-inf")),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    got = resolve(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["'1'", '"true"', "'~'", "|\n  1", ">\n  null"])
def test_quoted_and_block_scalars_are_text(text: str) -> None:
    value = composed(f"a: {text}\n")
    assert isinstance(value, dict)
    assert isinstance(value["a"], str)


@given(st.text(alphabet="0123456789+-._eExXoabnfiINF:~ ", max_size=12))
def test_resolve_never_fails(text: str) -> None:
    assert isinstance(resolve(text), bool | int | float | str | None)


# ---- one file


def test_places_count_from_one() -> None:
    node, _ = compose("a:\n  - b\n  - {c: d}\n", HERE)
    assert isinstance(node, Map)
    place, items = node.entries["a"]
    assert isinstance(items, List)
    inner = items.items[1]
    assert isinstance(inner, Map)
    key, value = inner.entries["c"]
    assert [str(at) for at in (place, items.items[0].place, key, value.place)] == [
        "r.yaml:1:1",
        "r.yaml:2:5",
        "r.yaml:3:6",
        "r.yaml:3:9",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml:1:1: the file is empty\nhint: `retarget init MODEL` writes a recipe"),
        ("# only a comment\n", "r.yaml:1:1: the file is empty\nhint: `retarget init MODEL` writes a recipe"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: a second document starts here\nhint: one file holds one recipe"),
        ("a:\n\t- b\n", "indent with spaces"),
        ("a: [1, 2\n", "r.yaml:2:1: "),
        ("a: 1\n  b: 2\n", "r.yaml:2:4: mapping values are not allowed"),
        ("a: 1\na: 2\n", "r.yaml:2:1: duplicate key 'a'\nhint: it stands in line 1 already"),
        ("a: *b\n", "r.yaml:1:4: alias '*b' stands for nothing that ends before it"),
        ("a: &a [*a]\n", "r.yaml:1:8: alias '*a' stands for nothing"),
        ("a: {<<: {b: 1}}\n", "r.yaml:1:5: merge keys are not part of YAML 1.2"),
        ("a: !!str 1\n", "r.yaml:1:4: tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", "r.yaml:1:4: tag 'tag:yaml.org,2002:python/object"),
        ("? [a]\n: 1\n", "r.yaml:1:3: a key must be a name, not a list"),
        ("'': 1\n", "r.yaml:1:1: a key must be a name"),
        ("a: \x00b\n", "r.yaml:1:4: character U+0000 is not allowed"),
        ("b: 1\na: \x07b\n", "r.yaml:2:4: character U+0007 is not allowed"),
        ('a: "\\U7FFFFFFF"\n', "cannot be read as YAML"),
        ("%YAML 2.0\n---\na: 1\n", "incompatible YAML document"),
        ("a: " + "[" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "[" * 50_000, f"nested more than {MAX_DEPTH} levels deep"),
        ("a: [" + "1," * MAX_NODES + "]", f"more than {MAX_NODES:,} values"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused_with_its_place(text: str, problem: str) -> None:
    assert problem in refused(text)


def test_aliases_stand_for_their_anchors() -> None:
    assert composed("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n") == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}] * 2}


def test_a_billion_laughs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]" for i in range(1, 30)]
    assert "aliases counted each time" in refused("\n".join(lines))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(-1e300, 1e300) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_what_json_writes_is_read_as_it_is(value: object) -> None:
    text = msgspec.json.encode(value).decode()
    if not re.search("[\x7f-\x9f\u2028\u2029\ufffe\uffff]", text):  # text in JSON; breaks or nothing in PyYAML
        assert composed(text) == value


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#,?~<\n\t \\Ux019\0\x85é"), max_size=60))
def test_any_text_gives_a_tree_or_a_recipe_error(text: str) -> None:
    try:
        node, _ = compose(text, HERE)
    except RecipeError as error:
        assert all(problem.place.startswith("r.yaml:") for problem in error.problems)  # noqa: PT017 - both ends are fine
    else:
        assert isinstance(node, Scalar | List | Map)


# ---- files


def write(folder: Path, **files: str) -> Path:
    """Writes ``name.yaml`` for each text; returns the first file's path."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def tree(path: Path) -> object:
    root, problems = open_tree(path)
    assert problems == []
    return values(root)


def test_maps_merge_deeply_and_lists_replace(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child="extends: base.yaml\na: {x: {p: 1}, l: [9]}\nc: null\n",
        base="extends: root.yaml\na: {x: {q: 2}, l: [1, 2]}\nc: {z: 1}\n",
        root="a: {x: {p: 0, r: 3}, y: 4}\nd: 5\n",
    )
    assert tree(path) == {"a": {"x": {"p": 1, "q": 2, "r": 3}, "l": [9], "y": 4}, "c": None, "d": 5}


def test_places_stay_with_the_file_that_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sub", base="\nx: 1\n")
    write(tmp_path, child="extends: sub/base.yaml\ny: 2\n")
    monkeypatch.chdir(tmp_path)
    root, _ = open_tree(Path("child.yaml"))
    x, y = root.entries["x"][1].place, root.entries["y"][1].place
    assert str(x) == f"sub{os.sep}base.yaml:2:4"
    assert str(y) == "child.yaml:2:4"
    assert x.folder == tmp_path / "sub"


@pytest.mark.parametrize(
    ("child", "base", "problem"),
    [
        ("extends: nothing.yaml\n", "", "child.yaml:1:10: extends: there is no file"),
        ("extends: base.yaml\n", "extends: child.yaml\n", "base.yaml:1:10: extends: 'child.yaml' extends this file"),
        ("extends: child.yaml\n", "", "child.yaml:1:10: extends: 'child.yaml' extends this file in turn"),
        ("extends: [base.yaml]\n", "", "child.yaml:1:10: extends: expected the path of a recipe, got a list"),
        ("extends: 3\n", "", "child.yaml:1:10: extends: expected the path of a recipe, got the number 3"),
        ("extends: ~/base.yaml\n", "", "child.yaml:1:10: extends: there is no file '/nowhere/base.yaml'"),
        ("extends: .\n", "", "is a folder"),
        ("extends: base.yaml\n", "[1]\n", "base.yaml:1:1: expected a map of keys, got a list"),
        ("extends: base.yaml\n", "a: [\n", "base.yaml:2:1: "),
    ],
)
def test_a_bad_extends_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, base: str, problem: str
) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    _, problems = open_tree(write(tmp_path, child=child, base=base))
    assert len(problems) == 1
    assert problem in str(problems[0][1])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a: \xff\n", "is not UTF-8 text: byte 0xff in line 1"),
        ("a: 1\n".encode("utf-16"), "is not UTF-8 text: byte 0xff in line 1"),
        (b"a: 1\n" + b"#" * MAX_BYTES, f"is larger than {MAX_BYTES // 1024} KiB"),
        (b"just text\n", "expected a map of keys, got 'just text'"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_error(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        open_tree(path)
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


def test_a_byte_order_mark_is_not_a_character(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert tree(path) == {"a": 1}


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no file"):
        open_tree(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        open_tree(tmp_path)


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse_path("~/x/y.npz", tmp_path / "z") == tmp_path / "home" / "x" / "y.npz"
    assert parse_path("./~/x", tmp_path) == tmp_path / "~" / "x"
    assert parse_path("~no-such-user.npz", tmp_path) == tmp_path / "~no-such-user.npz"


def test_paths_are_relative_to_their_file_and_keep_links(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    (tmp_path / "model.onnx").symlink_to("blob")
    assert parse_path("model.onnx", tmp_path) == tmp_path / "model.onnx"
    assert parse_path("../x/./y", tmp_path / "z") == tmp_path / "x" / "y"
    assert parse_path("/a/b", tmp_path) == Path("/a/b")
    assert write_path(tmp_path / "x", tmp_path / "z") == "../x"
    assert write_path(tmp_path / "~x", tmp_path) == "./~x"
    assert write_path(tmp_path / "x", None) == str(tmp_path / "x")


# ---- the walk


class Text(Written, frozen=True):
    form: ClassVar[str] = "UPPER"
    pattern: ClassVar[str] = "^[A-Z]+$"
    text: str

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        if not text.isupper():
            raise RetargetError(f"'{text}' is not upper case", "shout")
        return cls(text)


class Inner(Settings, frozen=True, kw_only=True):
    bare: ClassVar[str | None] = "path"
    path: Path
    n: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1


class Low(Settings, frozen=True, kw_only=True):
    depth: int = 0


class Item(Settings, frozen=True, kw_only=True):
    keyed: ClassVar[bool] = True
    name: str
    optional: bool = False
    options: msgspec.Struct

    @classmethod
    def options_type(cls, name: str, values: dict[str, object]) -> type[msgspec.Struct] | None:
        if name not in {"one", "two"}:
            raise RetargetError(f"unknown item '{name}'", "known: one, two")
        return Low


class Outer(Settings, frozen=True, kw_only=True):
    text: str = ""
    number: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    flag: bool = False
    kind: Literal["red", "green"] = "red"
    day: datetime.date | None = None
    inner: Inner | None = None
    plain: Low = Low()
    items: Annotated[tuple[Item, ...], msgspec.Meta(min_length=1)] | None = None
    table: dict[str, int | Inner] = msgspec.field(default_factory=dict)
    anything: dict[str, object] = msgspec.field(default_factory=dict)
    shout: Literal["quiet"] | Text = "quiet"
    listing: list[str] = msgspec.field(default_factory=list)


def read(text: str) -> tuple[object, list[str]]:
    node, _ = compose(text, HERE)
    reader = Reader()
    value = reader.struct(node, Outer)
    return value, [str(problem) for _, problem in reader.problems]


def good(text: str) -> Outer:
    value, problems = read(text)
    assert problems == []
    assert isinstance(value, Outer)
    return value


def test_every_kind_of_value_is_read() -> None:
    value = good(
        """
text: on
number: 1e-4
flag: true
kind: green
day: 2027-01-31
inner: a.npz
plain:
items: [one, two: {optional: true, depth: 3}]
table: {a: 3, b: {path: c, n: 2}}
anything: {deep: [1, {x: no}], nothing: ~}
shout: LOUD
listing: [a, "1"]
"""
    )
    assert value == Outer(
        text="on",
        number=1e-4,
        flag=True,
        kind="green",
        day=datetime.date(2027, 1, 31),
        inner=Inner(path=Path("/recipes/a.npz")),
        plain=Low(),
        items=(Item(name="one", options=Low()), Item(name="two", optional=True, options=Low(depth=3))),
        table={"a": 3, "b": Inner(path=Path("/recipes/c"), n=2)},
        anything={"deep": [1, {"x": "no"}], "nothing": None},
        shout=Text("LOUD"),
        listing=["a", "1"],
    )


def test_nothing_reads_as_an_empty_map_and_null_as_none() -> None:
    assert good("plain: ~\n").plain == Low()
    assert good("items: [{one: }, {two: null}]\n").items == (
        Item(name="one", options=Low()),
        Item(name="two", options=Low()),
    )
    assert good("inner: null\n").inner is None
    assert read("inner:\n")[1] == ["r.yaml:1:7: inner.path: this key is missing"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("txet: a\n", "r.yaml:1:1: txet: unknown key\nhint: did you mean 'text'?"),
        ("text: 3\n", 'r.yaml:1:7: text: expected text, got the number 3\nhint: write "3" in quotes'),
        ("text: true\n", 'expected text, got the truth value true\nhint: write "true" in quotes'),
        ("text: [a]\n", "r.yaml:1:7: text: expected text, got a list"),
        ("text:\n", "text: expected text, got nothing"),
        ("number: a\n", "expected a number, got 'a'"),
        ("number: .nan\n", "expected a number, got the number .nan"),
        ("number: true\n", "expected a number, got the truth value true"),
        ("number: 1\n", "must be less than 1, got 1"),
        ("number: 0\n", "must be more than 0, got 0"),
        ("flag: yes\n", "expected true or false, got 'yes'\nhint: write true or false"),
        ("flag: 1\n", "expected true or false, got the number 1"),
        ("kind: gren\n", "expected one of green, red, got 'gren'\nhint: did you mean 'green'?"),
        ("day: 31.1.2027\n", "expected a date, got '31.1.2027'\nhint: write YEAR-MONTH-DAY"),
        ("inner: {path: a, n: 10}\n", "r.yaml:1:21: inner.n: must be at most 9, got 10"),
        ("inner: {path: a, n: 0}\n", "inner.n: must be at least 1, got 0"),
        ("inner: {path: a, n: 1.0}\n", "inner.n: expected a whole number, got the number 1.0"),
        ("inner: {path: ''}\n", "inner.path: a path is empty"),
        ("inner: [a]\n", "inner: expected a map, got a list"),
        ("table: {b: {n: 1}}\n", "r.yaml:1:12: table.b.path: this key is missing"),
        ("table: {b: [1]}\n", "table.b: expected a whole number or a map, got a list"),
        ("table: [1]\n", "table: expected a map, got a list"),
        ("anything: {a: [.inf]}\n", "anything.a[0]: expected a number, got the number .inf"),
        ("anything: {a: 99999999999999999999}\n", "anything.a: expected a whole number"),
        ("shout: soft\n", "shout: expected quiet or UPPER, got 'soft'"),
        ("listing: a\n", "listing: expected a list, got 'a'\nhint: write [..]"),
        ("listing: [a, 2]\n", "r.yaml:1:14: listing[1]: expected text, got the number 2"),
        ("items: []\n", "items: the list is empty"),
        ("items: [three]\n", "r.yaml:1:9: items[0]: unknown item 'three'\nhint: known: one, two"),
        ("items: [one, One]\n", "r.yaml:1:14: items[1]: duplicate 'One'\nhint: it stands in line 1 already"),
        ("items: [{one: {dept: 1}}]\n", "items[0].dept: unknown key\nhint: did you mean 'depth'?"),
        ("items: [{one: {optonal: true}}]\n", "items[0].optonal: unknown key\nhint: did you mean 'optional'?"),
        ("items: [{one: 3}]\n", "items[0]: expected a map, got the number 3"),
        ("items: [{}]\n", "items[0]: expected a name or exactly one `name: settings`, got 0 keys"),
        ("items:\n- one:\n  depth: 3\n", "r.yaml:2:3: items[0]: expected a name or exactly one"),
        ("items: [[one]]\n", "items[0]: expected a name or exactly one `name: settings`, got a list"),
        ("items: [null]\n", "items[0]: expected a name or exactly one `name: settings`, got nothing"),
    ],
)
def test_a_bad_value_is_one_problem_with_place_and_path(text: str, problem: str) -> None:
    _, problems = read(text)
    assert len(problems) == 1, problems
    assert problem in problems[0]


def test_all_problems_are_found_in_one_walk() -> None:
    _, problems = read("txt: a\nnumber: 7\nitems: [three, one: {x: 1, optional: 3}]\nday: x\n")
    assert [problem.partition("\n")[0] for problem in problems] == [
        "r.yaml:1:1: txt: unknown key",
        "r.yaml:2:9: number: must be less than 1, got 7",
        "r.yaml:3:9: items[0]: unknown item 'three'",
        "r.yaml:3:38: items[1].optional: expected true or false, got the number 3",
        "r.yaml:3:22: items[1].x: unknown key",
        "r.yaml:4:6: day: expected a date, got 'x'",
    ]


def test_long_and_unprintable_values_stay_one_short_line() -> None:
    _, problems = read('kind: "a\\n' + 500 * "b" + '"\n')
    first = problems[0].partition("\nhint")[0]
    assert "\n" not in first
    assert len(first) < 200


def test_paths_are_rendered_as_a_user_writes_them() -> None:
    assert render(("targets", 2, "variants", 0)) == "targets[2].variants[0]"
    assert render(()) == ""


def test_yaml_of_the_tests_is_what_pyyaml_reads_where_both_agree() -> None:
    text = "a: [1, x, {b: 'y'}]\nc: |\n  two\n  lines\nd: >-\n  folded\n  text\n"
    assert composed(text) == yaml.safe_load(text)
