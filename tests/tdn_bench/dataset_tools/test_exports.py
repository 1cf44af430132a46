"""What `tdn_bench.dataset_tools` offers, and what importing it costs."""

import subprocess
import sys

from tdn_bench import dataset_tools


def test_every_public_name_is_there() -> None:
    for name in dataset_tools.__all__:
        assert getattr(dataset_tools, name).__module__.startswith("tdn_bench.dataset_tools.")


def test_to_audit_and_summarise_loads_neither_torch_nor_a_decoder() -> None:
    talk = "import sys; from tdn_bench.dataset_tools import examine, print_summary; "
    talk += "print(sorted({'torch', 'av', 'nvidia.dali', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", talk], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
