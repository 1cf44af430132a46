"""`throughput --compare`: what its sides are, what they run, and the ratio of turns that are made up."""

from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
from support.flags import configure

import tdn_bench.regression.comparison as compare_module
from tdn_bench.cli import WorkloadFlags, as_flags, parse
from tdn_bench.errors import UserError
from tdn_bench.measurement.throughput import Throughput
from tdn_bench.regression.comparison import compare, parse_side, sides
from tdn_bench.regression.interleaving import Interleaved


def test_a_side_is_fields_and_a_commit():
    config = WorkloadFlags()
    assert parse_side("engine=onnx,precision=int8", config) == (["--engine", "onnx", "--precision", "int8"], None)
    assert parse_side("@HEAD~1,batch_size=4,rewrite=false", config) == (["--batch-size", "4", "--no-rewrite"], "HEAD~1")
    for wrong in ("engine", "speed=2", "compare=a"):
        with pytest.raises(UserError, match=wrong):
            parse_side(wrong, config)


def test_flags_give_their_values_back():
    config = configure(Throughput(), engine="onnx", batch_size=4, rewrite=False, seconds=3.0)
    config = configure(config, exclude_layers=("a", "b"), dynamic_batch=True)
    words = [word for flag in as_flags(config) for word in flag]
    assert {"--keep", "--ranged"} <= set(words)  # the names that earlier commits know, and this one still takes
    assert parse(Throughput, words, "throughput") == config


def test_a_sides_fields_take_the_place_of_the_commands(monkeypatch, tmp_path):
    monkeypatch.setattr(compare_module, "checked_out", lambda commit: nullcontext(tmp_path / commit))
    config = configure(WorkloadFlags(), engine="onnx", batch_size=4, rewrite=False)
    with ExitStack() as stack:
        a, b = sides(("engine=eager,rewrite=true", "@old"), config, stack)
    assert a.flags.count("--engine") == 1
    assert a.flags[a.flags.index("--engine") + 1] == "eager"
    assert "--rewrite" in a.flags
    assert "--no-rewrite" not in a.flags
    assert (b.tree, a.tree) == (tmp_path / "old", compare_module.HERE)
    assert {"--engine", "onnx", "--batch-size", "4", "--no-rewrite"} == set(b.flags)
    loaders = ("engine=none,backend=pyav", "engine=none,backend=dali")
    with ExitStack() as stack:
        assert [c.parts for c in sides(loaders, config, stack)] == [("loader",)] * 2


def test_the_ratio_of_turns_that_are_known(monkeypatch, motion_data):
    generator = np.random.default_rng(0)

    def made_up(both, **_):
        found = Interleaved()
        for _ in range(8):
            shared = generator.lognormal(0, 0.3, 12)
            for c, factor in zip(both, (1.0, 1.25), strict=True):
                values = 5 * factor * shared * generator.lognormal(0, 0.01, 12)
                times = found.times.setdefault(c.name, {})
                for figure in ("path_ms", "loader_ms", "idle_ms"):
                    times.setdefault(figure, []).append(values.tolist())
            found.status.append("stable")
            yield found

    monkeypatch.setattr(compare_module, "interleave", made_up)
    config = configure(Throughput(), data=motion_data, device="cpu", interval=0.02)
    comparison = compare(config, ("engine=eager", "engine=onnx"))
    record, f = comparison.record, comparison.record.figures
    assert f["path_ms_ratio"] == pytest.approx(1.25, rel=0.01)
    assert f["path_ms_ratio_low"] < 1.25 < f["path_ms_ratio_high"]
    assert "idle_ms_ratio" not in f
    assert record.kind == "compare"
    assert record.name == "engine-eager-vs-engine-onnx"
    assert len(record.samples["A_path_ms"]) == 12 * 6  # six rounds: narrow by then
    assert "slower" in "\n".join(comparison.lines)
