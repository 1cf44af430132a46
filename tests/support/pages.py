"""What tests of reports share: records as they might be, and a page's tables read back."""

from dataclasses import replace
from html.parser import HTMLParser

import torch

from tdn_bench.records import make_record


class Reader(HTMLParser):
    """The tables of a page by caption: a list of rows, each a list of (text, data-value); and all links and tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self.tags, self.classes = {}, [], [], {}
        self._text = self._value = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "tr":
            self._rows.append([])
            self._classes.append(attributes.get("class", ""))
        if tag in ("caption", "th", "td"):
            self._text, self._value = "", attributes.get("data-value")

    def handle_endtag(self, tag):
        if tag not in ("caption", "th", "td"):
            return
        text, self._text = " ".join(self._text.split()), None
        if tag == "caption":
            text += f" #{len(self.tables)}" if text in self.tables else ""  # records of alike names
            self._rows, self._classes = self.tables.setdefault(text, []), self.classes.setdefault(text, [])
        else:
            self._rows[-1].append((text, self._value))

    def handle_data(self, data):
        if self._text is not None:
            self._text += data

    def table(self, start):
        """Rows of the one table whose caption holds this, each a dictionary by header."""
        (name,) = [name for name in self.tables if start in name]
        header, *rows = self.tables[name]
        return [dict(zip([text for text, _ in header], row, strict=True)) for row in rows]


def made(kind, name, figures, *, day=1, machine=None, samples=None, settings=None, details=None, **more):
    """A record that was made on a machine of its own."""
    record = make_record(
        kind,
        name,
        figures=figures,
        samples=samples or {},
        settings=settings or {},
        device=torch.device("cpu"),
        details=details or {},
    )
    described = {**record.machine, "name": "m", "cpu": "CPU 1", "cores": 2, "memory_bytes": 2**34, **(machine or {})}
    return replace(record, machine=described, created_utc=f"2026-01-{day:02d}T00:00:00Z", **more)


def throughput(name, ms, *, engine="eager", model="tdn_resnet50", status="stable", **more):
    """A run of `tdn-bench throughput`."""
    stages = {"ledger_decode_ms": 0.4 * ms, "ledger_infer_ms": 0.8 * ms}
    figures = {"ms_per_video": ms, "clips_per_s": 1000 / ms, "ms_per_video_half_width_percent": 10.0, **stages}
    settings = {"model": model, "num_segments": 8, "size": 224, "engine": engine, "precision": "fp32"}
    settings |= {"backend": "pyav", "batch_size": 4}
    samples = {"interval_s": [0.004 * ms, 0.005 * ms, 0.003 * ms], "videos": [4, 4, 4]}
    data = {"name": "clips", "digest": "d", "videos": 8}
    return made("throughput", name, figures, samples=samples, settings=settings, data=data, status=status, **more)


def training(name, confusion, classes, *, model="tdn_resnet50", **more):
    """A run of `tdn-bench train` with a confusion matrix."""
    right, videos = sum(confusion[i][i] for i in range(len(classes))), sum(map(sum, confusion))
    settings = {"model": model, "num_segments": 8, "size": 224, "epochs": 3, "dataset": "sthv1"}
    samples = {"loss": [3.0, 2.0, 1.0], "top1_percent": [10.0, 20.0], "top1_epoch": [1, 3]}
    details = {"confusion": confusion, "classes": classes}
    data = {"name": "clips", "digest": "d", "videos": 8}
    figures = {"top1_percent": 100 * right / videos, "train_s": 5.0}
    return made("train", name, figures, samples=samples, settings=settings, details=details, data=data, **more)
