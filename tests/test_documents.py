"""What the documents say: their code runs, their tables hold, their links lead on.

How blocks of code are marked is told in `tests/documents.py`. One for a single set-up
is run there alone, on a copy of the namespace. Of what is printed, words must be as
shown, and numbers within three units of the last digit.
"""

import contextlib
import inspect
import io
import re
import runpy
import warnings

import keras
import pytest

import keras_logits
from documents import (
    FENCE,
    PAGES,
    PAPERS,
    README,
    ROOT,
    WITH_CODE,
    Block,
    assert_shown,
    backend_of,
    blocks_of,
)
from keras_logits import (
    LogitsHead,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from keras_logits.kernels import plan
from keras_logits.maths.figures import FIGURES, OF_UNITS
from keras_logits.objects import fusing
from test_architecture import FLOORS

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()

OPTIONS = ROOT / "docs" / "reference" / "options.md"
LANGUAGE_MODELS = ROOT / "docs" / "guides" / "language-model.md"
LANGUAGES = {"python", "text", "bash"}
SET_UPS = runpy.run_path(str(ROOT / "tools" / "run_tests.py"))["SET_UPS"]

name_of = {path: str(path.relative_to(ROOT)) for path in PAPERS}.get
WITH_CODE_HERE = [p for p in WITH_CODE if backend_of(p) in (None, BACKEND)]
each_document = pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
each_paper = pytest.mark.parametrize("path", PAPERS, ids=name_of)
any_backend = pytest.mark.any_backend


def run(block, namespace, path):
    # On the lines of the document, so that a traceback points into it.
    code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def rows_under(heading, path):
    """The cells of all tables in a section, without the headings."""
    lines = [x for x in section_of(heading, path).splitlines() if x.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [i for i, row in enumerate(rows) if set(row[0]) <= set("- ")]
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]


def section_of(heading, path):
    start = rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)"
    return re.search(start, path.read_text(), re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("path", WITH_CODE_HERE, ids=name_of)
def test_the_code_of_a_document_runs_and_prints_what_is_shown(
    path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in blocks_of(path):
        if block.backend in (None, BACKEND):
            printed = run(block, dict(namespace) if block.backend else namespace, path)
            assert_shown(printed, block.output or "")


@any_backend
@each_paper
def test_no_code_escapes(path):
    text = path.read_text()
    ticks = [line for line in text.splitlines() if "```" in line or "~~~" in line]
    assert len(ticks) == 2 * len(FENCE.findall(text)), "a fence that is not understood"
    assert {language for language, _ in FENCE.findall(text)} <= LANGUAGES
    assert "<pre" not in text
    if path not in WITH_CODE:
        assert "```python" not in text


@any_backend
@each_document
def test_a_block_that_fits_one_set_up_says_so_and_that_set_up_is_run(path):
    run_by_make = {set_up.backend for set_up in SET_UPS}
    of_page = {backend_of(path)} - {None}
    assert of_page <= run_by_make
    for block in blocks_of(path):
        first = block.code.splitlines()[0]
        if re.match("#.*(backend|keras|torch|jax|tensorflow)", first.lower()):
            assert block.backend in run_by_make, first
        needed = set(re.findall(r"^(?:import|from) (\w+)", block.code, re.MULTILINE))
        needed &= {"jax", "tensorflow", "tf_keras", "torch"}
        assert needed <= {block.backend, "tf_keras"} | of_page, block.code
        assert "tf_keras" not in needed or first == "# tf-keras"


@any_backend
def test_the_set_ups_are_told():
    told = rows_under("Set up", ROOT / "CONTRIBUTING.md")
    rows = [row for row in told if not row[0].startswith("`make")]
    assert len(rows) == len(SET_UPS)
    of_keras_3 = [row[0] for row in rows[:3]]
    assert of_keras_3 == [f"`KERAS_BACKEND={s.backend}`" for s in SET_UPS[:3]]


@any_backend
@each_paper
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if ":" in file or file.rpartition("/")[0].endswith("plots"):
            continue  # plots are drawn by the build, which misses what is not there
        assert (path.parent / file).exists(), target
        assert file or anchor in anchors or path in PAGES, target  # so does it of these


@any_backend
@each_paper
def test_files_that_are_named_exist(path):
    text = FENCE.sub("", path.read_text())
    folders = [ROOT, ROOT / "keras_logits", path.parent]
    for name in re.findall(r"`([\w/.]+\.(?:py|md|toml|yml))`", text):
        if "/" in name:
            assert any((folder / name).exists() for folder in folders), name
        else:
            assert [*ROOT.glob(name), *ROOT.glob(f"[a-z]*/**/{name}")], name


@any_backend
def test_every_public_name_is_documented():
    text = "\n".join(path.read_text() for path in WITH_CODE)
    words = set(re.findall(r"\w+", text))
    assert set(keras_logits.__all__) - {"__version__"} <= words


@any_backend
def test_the_changelog_is_of_this_version():
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest in (keras_logits.__version__, "Unreleased")


@any_backend
def test_the_floors_are_told_as_they_are():
    told = [row[0] for row in rows_under("Floors", ROOT / "docs" / "design.md")]
    found = [re.findall(r"`(\w+)(?:\.py|/)`", cell) for cell in told]
    assert found == FLOORS[:-1]


@any_backend
def test_the_readme_is_short_and_its_table_is_that_of_the_home_page():
    assert len(README.read_text().split()) <= 900
    table = table_of_the_problem(README)
    assert len(table) == 4
    assert table == table_of_the_problem(ROOT / "docs" / "index.md")


def table_of_the_problem(path):
    """The rows of five cells."""
    return re.findall(r"^\|(?:[^|\n]*\|){5}$", path.read_text(), re.MULTILINE)


@any_backend
def test_every_option_is_listed_with_its_default():
    listed = {
        name.strip("`"): default.strip("`")
        for section in ("Options of the losses", "Options of the head")
        for name, default, _ in rows_under(section, OPTIONS)
    }
    accepted = {}
    for cls in (LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy):
        for option in inspect.signature(cls.__init__).parameters.values():
            if option.default is not option.empty:
                accepted[option.name] = str(option.default).replace("'", '"')
    of_dense = inspect.signature(keras.layers.Dense.__init__).parameters
    ours = set(accepted) - set(of_dense) | {"name"}
    assert set(listed) == ours
    for name in ours - {"name"}:
        assert listed[name].strip('"') == accepted[name], name


@any_backend
def test_every_report_is_listed_and_which_of_them_a_sigmoid_lacks():
    listed = {name.strip('`"'): told for name, told in rows_under("Reports", OPTIONS)}
    assert set(listed) == set(FIGURES)
    of_softmax = {name for name, told in listed.items() if "softmax only" in told}
    assert of_softmax == set(FIGURES) - set(OF_UNITS)


@any_backend
def test_the_numbers_of_the_fused_pass_are_told_as_they_are():
    told = " ".join(section_of("How much memory it may use", LANGUAGE_MODELS).split())
    cpu, accelerator = plan.DEVICES["cpu"], plan.DEVICES["accelerator"]
    budgets = f"{cpu.budget // 2**20} MiB", f"{accelerator.budget // 2**30} GiB"
    assert "{} on a CPU and {} on an accelerator".format(*budgets) in told
    assert f"On a CPU no chunk has more than {cpu.rows} tokens" in told
    assert f"on an accelerator none more than {accelerator.rows}" in told
    rows = rows_under("Options of the losses", OPTIONS)
    options = {name.strip("`"): does for name, _, does in rows}
    assert f"from {fusing.FUSED_FROM} classes" in options["fused"]
    for budget in budgets:
        assert budget in options["memory_budget"]
    assert f"with at least {fusing.FUSED_FROM} classes" in README.read_text()


def test_a_wrong_flag_trains_badly_and_in_silence():
    told = {row[0]: row[1] for row in rows_of_the_problem()}
    example = next(b.code for b in blocks_of(README) if "load_digits" in b.code)
    namespace = {}
    for ours, theirs in told.items():
        example = example.replace(ours, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        run(Block(example, None, 1, None), namespace, README)
    assert namespace["accuracy"] < 0.6


def rows_of_the_problem():
    """What the first table exchanges for what."""
    lines = re.findall(r"^\| `(.*)` \| `(.*)` \| 0", README.read_text(), re.MULTILINE)
    (dense, keras_loss), (head, our_loss) = lines
    return [(head, f"keras.layers.{dense}"), (our_loss, keras_loss)]
