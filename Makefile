# Each target sets up what it needs: a virtual environment in the checkout, the constraints, us.
PYTHON ?= python3
VENV ?= .venv
AUDIT ?= .venv-audit
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run demo cluster cluster-stop test test-slow test-gpu check audit format clean

run: $(READY)  ## the main job on real images: sample photographs, joint loss, 5 to 8 minutes
	$(BIN)/python jobs/pretrain.py --config configs/quickstart.yaml

demo: $(READY)  ## a page with a brush, on the model that `make run` trained
	$(BIN)/python jobs/serve.py

cluster: $(READY)  ## Ray head and MLflow on this machine; ARGS="--store s3://..." for other settings
	@$(BIN)/python -m infra.local.cluster start $(ARGS)

cluster-stop: $(READY)  ## ends exactly what `make cluster` has started
	@$(BIN)/python -m infra.local.cluster stop $(ARGS)

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(READY)  ## the tests that take minutes: kills, restarts, long runs
	$(BIN)/python -m pytest -q -m slow

test-gpu: $(READY)  ## those that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

check: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(AUDIT)/.ready  ## bill of materials of constraints.txt, and what is known against it
	@PATH="$(abspath $(AUDIT))/bin:$$PATH" python -m infra.image.audit $(ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(AUDIT) *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12") if not (3, 11) <= sys.version_info < (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Apart from ours: an auditor that shared our packages would change what it audits.
$(AUDIT)/.ready: Makefile
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@
