"""What importing costs and starts."""

import json
import subprocess
import sys


def after(statement: str) -> dict:
    code = f"""
import json, sys, time
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
print(json.dumps({{"seconds": seconds, "modules": sorted(sys.modules)}}))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_importing_the_package_is_quick_and_starts_no_device():
    found = after("import seqrec_jax")
    assert found["seconds"] < 1
    assert "jax" not in found["modules"]


def test_etl_never_imports_jax():
    found = after("import etl.main, etl.synthetic_shop, etl.synthetic_amazon")
    assert not [name for name in found["modules"] if name.split(".")[0] in ("jax", "jaxlib", "flax", "mlflow")]


def test_importing_the_tasks_imports_no_mlflow_and_starts_no_device():
    found = after(
        "import seqrec_jax.main\nimport jax\nassert not jax._src.xla_bridge._backends, 'a device was started'"
    )
    assert "mlflow" not in found["modules"]
