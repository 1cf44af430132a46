"""--config: what a file says, what is wrong with it, and that what a run writes gives the same flags again."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.commands import interfaces, main_of

from tdn_bench.cli import begin_run, parse, run_command
from tdn_bench.cli.config_file import ConfigFile, forget_run, keep_run, to_toml
from tdn_bench.cli.interface import MOST, Flag
from tdn_bench.errors import UserError

EVERY = interfaces()
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    batch_size: int = 16
    lr: float = 0.1
    seeds: tuple[int, ...] = (0,)
    deep: bool = False
    name: str | None = None
    data: Path | None = None


def read(tmp_path: Path, content: str, *words: str, command: str = "evaluate") -> Numbers:
    file = tmp_path / "flags.toml"
    file.write_text(content, encoding="utf-8")
    return parse(Numbers, [*words, "--config", str(file)], command)


def test_the_command_line_wins_over_the_table_and_the_table_over_what_is_above(tmp_path: Path) -> None:
    content = 'batch-size = 4\nlr = 1\nname = "all"\n[evaluate]\nlr = 0.5\nseeds = [1, 2]\n[train]\nepochs = 3\n'
    assert read(tmp_path, content) == Numbers(batch_size=4, lr=0.5, name="all", seeds=(1, 2))
    assert read(tmp_path, content, "--lr", "2", "--seeds", "7").lr == 2
    assert read(tmp_path, content, command="throughput").lr == 1
    assert read(tmp_path, "") == Numbers()
    assert read(tmp_path, "\ufefflr = 1\r\n[evaluate]\r\nlr = 2\r\n").lr == 2  # as Windows' editors write it


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[evaluate]\nbatchsize = 3", ", line 2: tdn-bench evaluate has no flag 'batchsize'; did you mean batch_size?"),
        ("\nepochs = 3", ", line 2: tdn-bench evaluate has no flag 'epochs'; a key of another command stands below"),
        ('batch_size = "3"', ", line 1: batch_size = '3': must be a whole number"),
        ("batch_size = 3.0", "must be a whole number"),
        ("batch_size = true", "batch_size = true: must be a whole number"),
        ("batch-size = 3\nbatch_size = 4", ", line 2: batch_size and batch-size are one flag; keep one"),
        ("batch_size = -1", "must not be negative"),
        ("lr = nan", "must be a finite number"),
        ("lr = [1]", "takes one value"),
        ("seeds = 1", "takes a list"),
        ("deep = 1", "must be true or false"),
        ("name = 1979-05-27", "must be text in quotes"),
        ("data = ''", "is empty"),
        ("[evalaute]\nlr = 1", ", line 1: [evalaute] is no command's table; did you mean evaluate?"),
        ("lr = ", "not a TOML file"),
        ("lr = 1\nlr = 2", "not a TOML file"),
        ("\udc80", "not a TOML file"),
        ("[evaluate.lr]\nx = 1", "lr"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "flags.toml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        parse(Numbers, ["--config", str(file)], "evaluate")
    assert said in str(caught.value)
    assert "flags.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=r"^--config "):
            parse(Numbers, ["--config", str(path)], "evaluate")


def values_of(f: Flag) -> st.SearchStrategy[Any]:
    """Whatever a flag can hold."""
    one: st.SearchStrategy[Any]
    if f.choices:
        one = st.sampled_from(f.choices).map(lambda word: f.take([word]) if f.count == 1 else f.take([word])[0])
    else:
        one = {
            bool: st.booleans(),
            int: st.integers(0, MOST),
            float: st.floats(0, 1e18),
            str: TEXT,
            Path: TEXT.map(Path),
        }[f.kind]
    if f.count != 1:
        one = st.lists(one, min_size=f.count or 0, max_size=f.count or 3).map(tuple)
    unset = f.optional and (f.default is None or f.kind is not str)
    return st.none() | one if unset else one


@pytest.mark.parametrize("name", EVERY)
@settings(
    max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_a_run_writes_gives_the_same_flags(name: str, tmp_path: Path, data: st.DataObject) -> None:
    interface = EVERY[name]
    values = {f.name: data.draw(values_of(f)) for f in interface.flags}
    if name == "transcode":  # whose class refuses values as it is made
        values |= {"short_side": None, "keyframe_spacing": 3, "crf": 20}
    config = interface.build(values)
    file = tmp_path / "flags.toml"
    file.write_text(to_toml(name, config, leave_out=()), encoding="utf-8")
    again = interface.build(ConfigFile(file).values(interface, [name.partition(" ")[2]]))
    assert repr(again) == repr(config)


def test_a_kind_is_taken_from_the_file(tmp_path: Path, capsys) -> None:
    file = tmp_path / "flags.toml"
    file.write_text("[train.demo]\nlr = -1\n")
    assert run_command(main_of("train"), ["--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {file}, line 2: lr = -1: must not be negative\n"
    file.write_text("[train.dmeo]\nlr = 1\n[train.demo]\nlr = 1\n")
    assert run_command(main_of("train"), ["demo", "--config", str(file)]) == 2
    assert "[train.dmeo]: no such kind; did you mean demo?" in capsys.readouterr().err


def test_a_path_that_is_no_utf8_is_told_in_a_comment(tmp_path: Path) -> None:
    text = to_toml("evaluate", Numbers(data=Path("a\udcff"), lr=math.pi))
    assert "# data: a\\xff is no UTF-8" in text
    assert read(tmp_path, text) == Numbers(lr=math.pi)


def test_a_run_that_is_refused_leaves_neither_file_nor_folder(tmp_path: Path) -> None:
    begin_run(tmp_path / "a" / "b", "evaluate", Numbers())
    begin_run(tmp_path / "a" / "b", "evaluate", Numbers())
    assert len(list((tmp_path / "a" / "b").glob("evaluate-*Z*.toml"))) == 2
    forget_run()
    assert list(tmp_path.iterdir()) == []
    begin_run(tmp_path / "a", "evaluate", Numbers(lr=2))
    keep_run()
    forget_run()
    (kept,) = (tmp_path / "a").iterdir()
    assert parse(Numbers, ["--config", str(kept)], "evaluate") == Numbers(lr=2)


def test_training_is_refused_without_a_trace_and_writes_its_flags_at_the_start(tmp_path, monkeypatch, capsys) -> None:
    import tdn_bench.training.loop as loop

    monkeypatch.chdir(tmp_path)
    assert run_command(main_of("train"), ["demo", "--data", "nowhere", "--output", "runs/a/b"]) == 2
    assert list(tmp_path.iterdir()) == []

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "set_up", die)
    assert run_command(main_of("train"), ["demo", "--data", "x", "--output", "runs/a/b", "--lr", "0.5"]) == 130
    written = tmp_path / "runs/a/b/config.toml"
    interface = EVERY["train demo"]
    recipe = interface.build(ConfigFile(written).values(interface, ["demo"]))
    assert (recipe.optimization.lr, recipe.data.data, recipe.resume) == (0.5, Path("x"), "no")
