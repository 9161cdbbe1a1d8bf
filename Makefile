# On a fresh machine `make run` and `make test` need Python 3.11 and make, nothing else.
#   make PYTHON=python3.12 run    another interpreter
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: run test check fix setup lmms-eval-test throughput kill-test

# Five methods on four benchmarks of the small model that ships with the package, and a report of it. Stopped and
# started again, it goes on where it was; finished, it shows its table again. `rm -r runs/readme` measures anew.
run: setup
	$(BIN)/sparsezip eval --config configs/testbed.yaml --out runs/readme
	$(BIN)/sparsezip report runs/readme --out runs/readme/report

test: check
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# lmms-eval runs our compressed models, in an environment of its own: it brings packages that this one does without.
lmms-eval-test:
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . 'lmms-eval==0.7.3'
	.venv-lmms/bin/python -m pip uninstall --quiet --yes torchvision  # there is none for every torch; images need none
	.venv-lmms/bin/python tests/lmms_eval_test.py

# Questions answered together, sharing their images, against one by one. Half an hour on a quiet machine;
# threads that wait asleep lose less where it is not quiet.
throughput: setup
	OMP_WAIT_POLICY=passive $(BIN)/python tests/throughput.py

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py

# Runs of the small model, killed at random moments and finished: 20 of each runner, half an hour.
kill-test: setup
	$(BIN)/python tests/kill_test.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed, for example: make PYTHON=python3.11')"
	@echo "Installing into .venv; the first time this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
