"""Completion by the shells themselves, where they are here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tdn_bench.catalogue import commands
from tdn_bench.cli.completion import SHELLS, script


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    from support.commands import main_of

    return {shell: script(shell, {name: main_of(name) for name in commands()}) for shell in SHELLS}


def offered(folder: Path, completion: str, *words: str) -> set[str]:
    """What bash offers for the last word."""
    (folder / "completion").write_text(completion)
    line, each = " ".join(words), " ".join(f"'{word}'" for word in words)
    program = f"""
source {folder}/completion
COMP_WORDS=({each}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
$(complete -p tdn-bench | sed 's/.*-F \\([^ ]*\\).*/\\1/') tdn-bench '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_kinds_flags_and_values(scripts: dict[str, str], tmp_path: Path) -> None:
    def ask(*words: str) -> set[str]:
        return offered(tmp_path, scripts["bash"], "tdn-bench", *words)

    assert ask("") >= commands().keys()
    assert ask("eval") == {"evaluate"}
    assert ask("evaluate", "--batch") == {"--batch-size"}
    assert {"--quiet", "--log-file", "--config", "--help-all"} <= ask("evaluate", "--")
    assert ask("throughput", "--precision", "bf") == {"bf16"}
    assert "demo" in ask("train", "")
    assert ask("train", "demo", "--resu") == {"--resume", "--results"}
    assert "sthv2" in ask("prepare", "")


@pytest.mark.parametrize(("shell", "flags"), [("bash", ["-n"]), ("zsh", ["-n"]), ("tcsh", ["-n"])])
def test_scripts_are_what_the_shell_reads(
    shell: str, flags: list[str], scripts: dict[str, str], tmp_path: Path
) -> None:
    assert all(name in scripts[shell] for name in commands())
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "completion").write_text(scripts[shell])
    subprocess.run([shell, "-n", tmp_path / "completion"], check=True, timeout=30)
