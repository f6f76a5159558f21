# make demo | test | faults | lint | audit | bench | kernels: each sets up what it needs on a bare machine (python3 with venv, make).
#
# torch: an interpreter that already has it is used as it is. Otherwise .venv is made and TORCH is installed into it.
# All else comes from constraints.txt, which has the hash of every file (`make lock` writes it anew).
# On Linux, plain pip takes a CUDA build of several GB; for a laptop without a GPU say where the CPU build is:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# make demo DEVICE=cuda: 1024², more frames, networks of the published size.
DEVICE ?= cpu

ifeq ($(shell python3 -c "import torch" 2>/dev/null && echo yes),yes)
PYTHON := python3
else
PYTHON := .venv/bin/python
endif
# One mark per interpreter: setting up one says nothing about another.
READY := $(if $(filter python3,$(PYTHON)),.setup/ready-$(shell python3 -c "import sys, zlib; print(zlib.crc32(sys.prefix.encode()))"),.venv/ready)

# make demo PRESET=curly: another of the heads that preprocess.demo_subject knows (make demo with none is PRESET=demo).
PRESET ?= demo

ifeq ($(DEVICE),cuda)
NAME := $(PRESET)_cuda
SUBJECT_OPTIONS := --resolution 1024 --frames 160 --device cuda --workers $(shell nproc)
MESH_OPTIONS := --config config/demo_cuda/meshhead.yaml trainer.device=cuda
HEAD_OPTIONS := --config config/demo_cuda/gaussianhead.yaml trainer.device=cuda
DRIVE_OPTIONS := device=cuda dataset.original_resolution=1024 dataset.resolution=1024
else
NAME := $(PRESET)
endif
SUBJECT := demo_dataset/$(NAME)
RESULT := results/$(NAME)
RUN := recorder.name=$(NAME) recorder.logdir=log/$(NAME)
DATA := $(RUN) dataset.dataroot=$(SUBJECT)
MESH := load_meshhead_checkpoint=checkpoints/$(NAME)/meshhead_latest
DRIVE := $(RUN) dataset.dataroot=$(SUBJECT)/driver dataset.camera_path=$(SUBJECT)/cameras/0000/camera_222200042.npz \
	load_gaussianhead_checkpoint=checkpoints/$(NAME)/gaussianhead_latest

NEW_PYTHON := "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0])"
NEW_TORCH := "import sys, torch; v = torch.__version__; sys.exit(None if tuple(map(int, v.split('.')[:2])) >= (2, 8) else 'torch 2.8 or newer is needed, this is ' + v)"

.PHONY: setup lock demo test faults lint audit bench kernels clean
setup: $(READY)

$(READY): setup.py constraints.txt
	@[ "$(PYTHON)" = python3 ] || { .venv/bin/python -c $(NEW_PYTHON) && .venv/bin/python -m pip --version; } > /dev/null 2>&1 || python3 -m venv --clear .venv
	@$(PYTHON) -c $(NEW_PYTHON)
	@[ "$(PYTHON)" != python3 ] || $(PYTHON) -c $(NEW_TORCH)
	$(PYTHON) -m pip install -q --require-hashes --no-deps -r constraints.txt
	@[ "$(PYTHON)" = python3 ] || $(PYTHON) -m pip install -q "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PYTHON) -m pip install -q --no-index --no-build-isolation -e ".[dev,viewer]"
	@mkdir -p $(dir $@) && touch $@

# After a change of the packages in setup.py: pins stay where they can, new ones get the newest version. UPGRADE=-U makes all new.
# torch is left out, as its build is the user's choice; what it needs besides is named here.
UPGRADE ?=
RESOLVE := .setup/lock/bin/uv pip compile -q --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate --no-header $(UPGRADE)
lock:
	@[ -x .setup/lock/bin/uv ] || { python3 -m venv .setup/lock && .setup/lock/bin/python -m pip install -q uv; }
	@echo torch > .setup/torch.txt
	printf '%s\n' filelock fsspec jinja2 networkx sympy | $(RESOLVE) setup.py - --extra dev --extra viewer --excludes .setup/torch.txt -o constraints.txt
	sed -n "s/.*'\(triton.*\)'.*/\1/p" setup.py | $(RESOLVE) - --no-deps -o constraints_interpreter.txt
	@{ echo '# What CI runs, with the hashes of its files; written by `make lock`. torch is not here (README, "By hand").'; \
		cat constraints.txt; } > .setup/constraints.txt && mv .setup/constraints.txt constraints.txt

demo: $(READY)
	$(PYTHON) -m preprocess.demo_subject $(PRESET) --output $(SUBJECT) $(SUBJECT_OPTIONS)
	$(PYTHON) train_meshhead.py --config config/demo_meshhead.yaml $(DATA) $(MESH_OPTIONS)
	$(PYTHON) train_gaussianhead.py --config config/demo_gaussianhead.yaml $(DATA) $(MESH) $(HEAD_OPTIONS)
	$(PYTHON) reenactment.py --config config/demo_reenactment.yaml $(DRIVE) $(DRIVE_OPTIONS)
	$(PYTHON) evaluate.py --config config/demo_gaussianhead.yaml $(DATA) $(MESH) $(HEAD_OPTIONS)
	@echo; echo "Look at:"; ls $(RESULT)/reenactment.mp4 $(RESULT)/contact_sheet.png $(RESULT)/novel_view.png $(RESULT)/novel_sequence.png $(RESULT)/metrics.json

# A CPU build of torch brings no Triton: its interpreter runs the kernels in the tests, which are skipped where it cannot be had.
test: $(READY)
	@$(PYTHON) -c "import triton" 2>/dev/null || $(PYTHON) -m pip install -q --require-hashes --no-deps -r constraints_interpreter.txt \
		|| echo "no triton here: the tests of its kernels are skipped"
	$(PYTHON) -m pytest

# The whole fault battery: kills, full disks, damaged files. The tests run a small part of it.
faults: $(READY)
	$(PYTHON) -m pytest tests/faults --long

# Registers, spills and shared memory of the rasterizer's kernels, compiled for GPUs that are not here.
kernels: $(READY)
	@$(PYTHON) -c "import triton" 2>/dev/null || $(PYTHON) -m pip install -q --require-hashes --no-deps -r constraints_interpreter.txt
	$(PYTHON) -m tests.render.compiled 80 86 89 90 100 120

lint: $(READY)
	$(PYTHON) -m ruff check .

# Licences of all packages, and known advisories where PyPI can be asked for them.
audit: $(READY)
	@[ -x .setup/audit/bin/pip-audit ] || { python3 -m venv .setup/audit && .setup/audit/bin/python -m pip install -q pip-audit; } \
		|| echo "pip-audit cannot be installed: no advisories"
	$(PYTHON) -m tests.audit $$(ls .setup/audit/bin/pip-audit 2>/dev/null)

bench: $(READY)
	$(PYTHON) -m benchmarks.rasterizer

clean:
	rm -rf checkpoints log results demo_dataset
