# Everything runs in .venv, made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
comma := ,
# Without a GPU: OpenVINO, the fastest CPU engine, and TensorRT-RTX, which builds engines without one.
EXTRAS ?= $(if $(shell command -v nvidia-smi 2>/dev/null),dev$(comma)trt,dev$(comma)openvino$(comma)trt-rtx)
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
RUN := $(VENV)/bin/python -m
DATA ?= data/something-something-v2
GPUS ?= 1
ARGS ?=
NAME ?= temporal_conv

.PHONY: help setup demo docs test test-all lint format train-sthv2 train-demo-fast throughput regress report doctor gpu-suite benchmark fuzz soak clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"error: Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; name another: make PYTHON=python3.12")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

setup: $(STAMP)  ## make .venv and install what is needed (once)

demo: $(STAMP)  ## synthetic videos -> train TDN and TSN -> measure every engine -> report (under 10 minutes on 2 cores)
	$(RUN) tdn_bench.demo $(ARGS)

docs: $(STAMP)  ## the documentation as a site: build/docs/index.html
	$(RUN) sphinx -b html -W -n --keep-going docs build/docs $(ARGS)

test: $(STAMP)  ## the tests, in five minutes on 2 cores: make test [ARGS=tests/engines/test_trt.py]
	$(RUN) pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-all: $(STAMP)  ## the tests, with the proofs that take long
	$(RUN) pytest -n auto --dist worksteal $(ARGS)

lint: $(STAMP)  ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(STAMP)  ## let ruff format the code
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

train-sthv2: $(STAMP)  ## train TDN-ResNet50 on Something-Something V2: make train-sthv2 DATA=/path [GPUS=8] [ARGS='--init resnet50.pth']
	$(if $(filter-out 1,$(GPUS)),$(VENV)/bin/torchrun --standalone --nproc-per-node $(GPUS) -m,$(RUN)) tdn_bench.train sthv2 --data $(DATA) $(ARGS)

train-demo-fast: $(STAMP)  ## time to 95 % on synthetic motion: recipe demo_fast against demo, five seeds, in turns
	$(VENV)/bin/python benchmarks/time_to_accuracy.py $(ARGS)

throughput: $(STAMP)  ## ms/video from file to label: make throughput ARGS='--engine trt --checkpoint FILE --data DIR'
	$(RUN) tdn_bench.throughput $(ARGS)

regress: $(STAMP)  ## slower or less accurate? make regress [ARGS='--against HEAD~1'] (exit status 1: yes, 3: inconclusive)
	$(RUN) tdn_bench.regress $(ARGS)

report: $(STAMP)  ## a page from a folder of records: make report ARGS=runs/demo/records
	$(RUN) tdn_bench.report $(ARGS)

doctor: $(STAMP)  ## which engines and loaders are ready here, and how to get the others
	$(RUN) tdn_bench.doctor $(ARGS)

gpu-suite: $(STAMP)  ## check and measure everything on a GPU (without one: the same steps at toy size)
	$(RUN) tdn_bench.gpu_suite $(ARGS)

benchmark: $(STAMP)  ## one of benchmarks/: make benchmark NAME=loader [ARGS=--help]
	$(VENV)/bin/python benchmarks/$(NAME).py $(ARGS)

fuzz: $(STAMP)  ## thousands of damaged videos, annotations, records and baselines (a slice of it is in make test)
	PYTHONPATH=. $(VENV)/bin/python tests/fuzz_annotations.py
	PYTHONPATH=. $(VENV)/bin/python tests/fuzz.py $(ARGS)
	PYTHONPATH=. $(VENV)/bin/python tests/fuzz_records.py

soak: $(STAMP)  ## kill trainings at random moments, on one process and on two, and compare: about 40 minutes
	PYTHONPATH=.:tests $(VENV)/bin/python tests/soak.py $(ARGS)

clean:  ## remove .venv and caches (runs/ and results/ stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
