"""What a user types, right and wrong: one line that names the place, exit status 2, nothing written."""

import re

import gin
import pytest

import seqrec_jax.main
from seqrec_jax.errors import InputError
from seqrec_jax.launcher import _check_imports, available_gin_files, config_root
from seqrec_jax.launcher import configure as configure_with

DATASET, RUN_DIR = "DATASET='d'", "RUN_DIR='r'"


def configure(gin_files, gin_bindings):
    configure_with(gin_files, gin_bindings, seqrec_jax.main.MOVED)


WRONG = {
    "no --gin_file; one of: .*gin/quickstart.gin": ([], []),
    "Gin file not found: gin/quikstart.gin; did you mean 'gin/quickstart.gin'": (["gin/quikstart.gin"], []),
    r"missing value for DATASET: add --gin_bindings=\"DATASET='...'\"": (["gin/beauty.gin"], [RUN_DIR]),
    "unknown Gin binding 'DATASETS'; did you mean 'DATASET'": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "DATASETS='x'"],
    ),
    "unknown Gin binding 'TrainConfig.epocs'; did you mean 'TrainConfig.epochs'": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "TrainConfig.epocs = 3"],
    ),
    "unknown Gin binding 'pretrain.epocs'; did you mean 'TrainConfig.epochs'": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "pretrain.epocs = 3"],
    ),
    "unknown Gin name 'pretain'; did you mean 'pretrain'": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "pretain.run_dir = 3"],
    ),
    "unknown Gin name 'adamm'; did you mean 'adam": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "TrainConfig.optimizer = @adamm"],
    ),
    r"Gin binding RUN_DIR \(pretrain.run_dir\) = 7 is no str": (["gin/beauty.gin"], [DATASET, "RUN_DIR = 7"]),
    r"Gin binding EPOCHS \(TrainConfig.epochs\) = '5' is no int": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "EPOCHS = '5'"],
    ),
    r"Gin binding Ranking.ks = 10 is no tuple\[int, \.\.\.\]": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "Ranking.ks = 10"],
    ),
    r"Gin binding one_cycle.rise = True is no float": (["gin/beauty.gin"], [DATASET, RUN_DIR, "one_cycle.rise = True"]),
    r"Gin binding USERS \(recommend.users\) = 'u1' is no Sequence\[str\]": (
        ["gin/recommend.gin"],
        [DATASET, "CHECKPOINT='c'", "USERS = 'u1'"],
    ),
    r"Gin binding ITEMS \(ItemFiles.files\) = 'items.csv' is no Sequence\[str\]": (
        ["gin/etl_interactions.gin"],
        ["SOURCE='s'", "OUTPUT='o'", "ITEMS = 'items.csv'"],
    ),
    r"Gin binding SIZES \(Plan.sizes\) = 100000 is no Sequence\[int\]": (
        ["gin/etl_amazon.gin"],
        ["SOURCE='s'", "OUTPUT='o'", "SIZES = 100000"],
    ),
    "unknown Gin binding 'SIZE'; did you mean 'SIZES'": (
        ["gin/etl_amazon_2023.gin"],
        ["SOURCE='s'", "OUTPUT='o'", "SIZE = [100000]"],
    ),
    r"missing value for OUTPUT: add --gin_bindings=\"OUTPUT='...'\"": (["gin/etl_amazon.gin"], ["SOURCE='s'"]),
    "Gin binding 'TrainConfig.epochs = = 3': cannot be read; a value is one of Python's": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "TrainConfig.epochs = = 3"],
    ),
    r"Gin binding \"EPOCHS = float\('nan'\)\": cannot be read": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "EPOCHS = float('nan')"],
    ),
    r"Gin binding 'EPOCHS = 10\*\*30': cannot be read": (["gin/beauty.gin"], [DATASET, RUN_DIR, "EPOCHS = 10**30"]),
    r"Gin binding SEED \(.*seed\) = -1: must be a whole number, from 0 to 2\^32 - 1": (
        ["gin/beauty.gin"],
        [DATASET, RUN_DIR, "SEED = -1"],
    ),
    r"Gin binding SEED \(.*seed\) = 4294967296: must be a whole number": (
        ["gin/sweep.gin"],
        [DATASET, RUN_DIR, "SEED = 4294967296", "BASE = 'b'", "SPACE = {}"],
    ),
}


@pytest.fixture(autouse=True)
def registered():
    """The launchers' own entries are registered by the modules that users run."""
    import etl.main  # noqa: F401


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_configuration_is_one_clear_line(words):
    with pytest.raises(InputError, match=words) as caught:
        configure(*WRONG[words])
    assert "\n" not in str(caught.value)


def test_an_included_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "run.gin").write_text("include 'gin/bass.gin'\n")
    with pytest.raises(InputError, match=r"gin/bass.gin; did you mean 'gin/base.gin'"):
        configure([str(tmp_path / "run.gin")], [])


@pytest.mark.parametrize("name", ["Plan.user_core", "Workers.processes"])
def test_a_binding_of_the_etl_that_moved_is_refused_with_its_new_name(name):
    import etl.main

    old = f"build_datasets.{name.split('.')[1]}"
    with pytest.raises(InputError, match=rf"^{old} is now {name}$"):
        configure_with(["gin/etl_amazon.gin"], ["SOURCE='s'", "OUTPUT='o'", f"{old} = 3"], etl.main.MOVED)


VALUES = {name: f"{name}='x'" for name in ("DATASET", "RUN_DIR", "CHECKPOINT", "SOURCE", "OUTPUT", "RUNS")}
VALUES |= {"SPACE": "SPACE={'Architecture.n_layers': [1, 2]}", "SOURCES": "SOURCES=['x']"}
VALUES["DATASETS"] = "DATASETS=['x']"
VALUES["CHECKPOINTS"] = "CHECKPOINTS=['x', 'y']"
VALUES["PRETRAINING_DATASET"] = "PRETRAINING_DATASET='x'"


@pytest.mark.parametrize("name", available_gin_files())
def test_every_gin_file_parses_with_its_macros_and_names_them_at_the_top(name):
    import etl.main  # noqa: F401

    text = (config_root() / name).read_text()
    if name in ("gin/base.gin", "gin/etl_base.gin"):
        assert "SEED:" in text
        return
    everything = text + "".join((config_root() / base).read_text() for base in re.findall("include '(.*)'", text))
    bindings = [value for macro, value in VALUES.items() if re.search(rf"%{macro}\b", everything)]
    configure([name], bindings)
    for macro in VALUES:
        if re.search(rf"%{macro}\b", text):
            assert f"# {macro}:" in text
    assert gin.config_is_locked()


SCALING = {"n_layers": 16, "inner_size": 256, "embedding_size": 256, "n_negatives": 300, "stopping_step": 20}
LARGE = {"n_layers": 8, "inner_size": 1024, "embedding_size": 128, "n_negatives": 1000, "stopping_step": 10}


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("100K", SCALING | {"epochs": 2}),
        ("500K", SCALING | {"epochs": 50}),
        ("1M", LARGE | {"epochs": 50}),
        ("5M", SCALING | {"epochs": 50}),
        ("10M", LARGE | {"epochs": 10}),
    ],
)
def test_published_configurations(name, bound):
    configure([f"gin/pretrain_{name}.gin"], [DATASET, RUN_DIR])
    found = {
        key: gin.query_parameter(f"{where}.{key}")
        for where, keys in {
            "Architecture": ("n_layers", "inner_size", "embedding_size"),
            "sampled_softmax": ("n_negatives",),
            "TrainConfig": ("stopping_step",),
        }.items()
        for key in keys
    }
    assert found | {"epochs": gin.query_parameter("EPOCHS/gin.macro.value")} == bound


def assert_refused(process, words, folder):
    assert process.returncode == 2, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert list(folder.iterdir()) == []


IMPORTS = ["import strangers", "from strangers import x", "import strangers.module as m", "include 'inner.gin'"]


@pytest.mark.parametrize("line", IMPORTS)
@pytest.mark.parametrize("place", ["file", "included", "binding"])
def test_nothing_is_imported_unasked(tmp_path, monkeypatch, line, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strangers.py").write_text("from pathlib import Path\nPath('executed').touch()\nx = 1\n")
    (tmp_path / "inner.gin").write_text("# a comment\nimport strangers  # and more\n")
    (tmp_path / "outer.gin").write_text(f"EPOCHS = 3\n{line}\n")
    (tmp_path / "mine.gin").write_text("include 'outer.gin'\n" if place == "included" else f"{line}\nEPOCHS = 3\n")
    files = ["gin/beauty.gin"] + ["mine.gin"] * (place != "binding")
    bindings = [DATASET, RUN_DIR] + [line] * (place == "binding")
    with pytest.raises(InputError, match=r"imports strangers.*, which would run its code; take the line out, or"):
        configure(files, bindings)
    assert not (tmp_path / "executed").exists()


def test_an_import_is_taken_where_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_mine.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    configure_with(["gin/beauty.gin"], [DATASET, RUN_DIR, "import mine_of_mine"], allow_imports=True)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["TITLE = 'import this'", 'x = """\nimport that\n"""'])
def test_a_text_about_imports_is_no_import(text):
    _check_imports(text, "mine.gin", set())


def test_exit_status_2_and_one_line(run_module, tmp_path):
    assert_refused(run_module("seqrec_jax.main"), "no --gin_file", tmp_path)
    assert_refused(run_module("etl.main", "gin/etl_recbole.gin", SOURCE="'s'"), "missing value for OUTPUT", tmp_path)
    assert_refused(
        run_module("etl.main", "gin/etl_recbole.gin", SOURCE="'s'", OUTPUT="'o'"), "s: no such folder", tmp_path
    )
    assert_refused(
        run_module("seqrec_jax.main", "gin/beauty.gin", DATASET="'none'", RUN_DIR="'r'"),
        "none: no such dataset",
        tmp_path,
    )
