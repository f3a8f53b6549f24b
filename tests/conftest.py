"""Fixtures: a tiny shop as atomic files and as a dataset, and four simulated devices."""

import os
import subprocess
import sys
from pathlib import Path

import gin
import jax
import pytest

from etl.recbole import convert
from etl.synthetic_shop import make_shop
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.data.store import Dataset, open_dataset
from seqrec_jax.items.item_id import ItemId
from seqrec_jax.items.lexical import Lexical
from seqrec_jax.items.text import TextTokens
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.spec import Architecture, Spec

SHARED = Path(__file__).resolve().parents[2] / "shared"

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # most of the suite's time is compilation
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """What one test has compiled, others need not compile again, in this process or in another."""
    base = tmp_path_factory.getbasetemp()
    folder = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(autouse=True)
def clear_gin():
    """Each test starts without bindings."""
    gin.clear_config()
    yield
    gin.clear_config()


def shared_file(name: str) -> Path:
    """A file of the reference's fixtures, which are kept outside of the repository."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def shop_files(tmp_path_factory) -> Path:
    """Atomic files of a shop of 300 users and 200 items."""
    folder = tmp_path_factory.mktemp("shop") / "raw"
    make_shop(folder, n_users=300, n_items=200, brands_per_activity=1)
    return folder


@pytest.fixture(scope="session")
def shop_folder(shop_files) -> Path:
    """The shop's dataset folder."""
    output = shop_files.parent / "dataset"
    convert(source=str(shop_files), output=str(output), vocab_size=500)
    return output


@pytest.fixture
def shop(shop_folder) -> Dataset:
    """The shop's dataset."""
    return open_dataset(shop_folder)


def trusted(data: Dataset) -> Dataset:
    """A dataset that no folder holds, as if it had been checked."""
    data.__dict__["checked"] = data
    return data


@pytest.fixture
def corpus(shop) -> Corpus:
    """The shop, leave one out."""
    return Corpus(shop)


def graph_of(architecture: Architecture, **table_rows: int) -> Graph:
    """A network of features that no dataset needs to hold: rows of each text's token table, and of `item_id`."""
    features = [TextTokens(name, rows, 5) for name, rows in table_rows.items() if name != "item_id"]
    if architecture.lexical_size:
        features.append(Lexical(architecture.lexical_size, features[0].rows, [of.name for of in features]))
    if "item_id" in table_rows:
        features.append(ItemId(table_rows["item_id"]))
    return Spec(architecture, tuple(features), "").graph()


@pytest.fixture
def run_module(tmp_path):
    """Runs `python -m MODULE --gin_file=... --gin_bindings=...` in an empty folder, on one device."""

    def run(module: str, gin_file: str | None = None, *flags: str, **macros: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *flags]
        command += [f"--gin_file={gin_file}"] if gin_file else []
        command += [f"--gin_bindings={name.replace('__', '.')}={value}" for name, value in macros.items()]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    return run
