"""The floors of the package: who may import whom, and what the two doors share."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_logits
from keras_logits import objects

PACKAGE = Path(keras_logits.__file__).parent
FLOORS = [
    ["_typing", "_keras_private", "_version"],
    ["symbolic"],
    ["maths"],
    ["kernels"],
    ["provenance"],
    ["options"],
    ["tasks"],
    ["functions"],
    ["objects"],
    ["keras3", "tf_keras"],
    [""],  # keras_logits itself
]
FRAMEWORKS = {"tensorflow", "jax", "torch", "tf_keras"}


def part_of(module):
    """The file or folder of the package that a module belongs to; "" for the root."""
    return module.partition(".")[2].partition(".")[0]


def floor_of(module):
    part = part_of(module)
    return next(i for i, floor in enumerate(FLOORS) if part in floor)


def module_of(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path):
    """The names that a file imports, each in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=map(module_of, FILES))
any_backend = pytest.mark.any_backend


@any_backend
@each_file
def test_imports_only_go_down(path):
    here = floor_of(module_of(path))
    for name in imports_of(path):
        if name.startswith("keras_logits."):
            there = floor_of(name)
            same_part = part_of(name) == part_of(module_of(path))
            assert there < here or same_part, name


@any_backend
@each_file
def test_only_the_doors_know_the_classes_of_keras(path):
    base_classes = {"losses", "layers", "metrics", "models"}
    if module_of(path).split(".")[-1] in ("keras3", "tf_keras"):
        return
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in base_classes:
            assert ast.unparse(node.value) != "keras", ast.unparse(node)
    for name in imports_of(path):
        assert name.split(".")[:2] not in [["keras", part] for part in base_classes]


@any_backend
@each_file
def test_only_a_frameworks_own_file_imports_it(path):
    found = {name.split(".")[0] for name in imports_of(path)} & FRAMEWORKS
    assert found <= {name for name in FRAMEWORKS if path.stem.startswith(name)}


@any_backend
@each_file
def test_only_one_file_takes_what_is_private_to_keras(path):
    private = [name for name in imports_of(path) if name.startswith("keras.src")]
    assert not private or path.stem == "_keras_private"


def test_the_package_imports_no_framework_that_keras_did_not():
    code = """if True:
        import sys, json, keras
        before = set(sys.modules)
        import keras_logits
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    root = PACKAGE.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True)
    new = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert new & FRAMEWORKS <= {keras.config.backend()}


def text_of_door(name):
    text = (PACKAGE / f"{name}.py").read_text()
    return text[text.index("\nserializable = ") :]


@any_backend
def test_the_two_doors_are_one_text_after_their_imports():
    assert text_of_door("keras3") == text_of_door("tf_keras")


@any_backend
@pytest.mark.parametrize("door", ["keras3", "tf_keras"])
def test_a_door_makes_a_class_of_every_object(door):
    tree = ast.parse((PACKAGE / f"{door}.py").read_text())
    made = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sorted(made) == objects.__all__


@any_backend
def test_type_checkers_are_told_that_there_are_types():
    assert (PACKAGE / "py.typed").is_file()


@any_backend
@each_file
def test_a_file_is_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 400
