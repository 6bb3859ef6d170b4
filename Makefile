# One command to set up, one to check. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
# What pytest runs with; `make test ARGS="tests/config -x"` narrows it.
ARGS ?=
WORKERS ?= 2
N ?= 50
SEED ?=

# Set up once for these very files: the stamp's name carries their checksum.
STAMP := .venv/set-up-$(shell cat pyproject.toml constraints.txt Makefile tools/requirements.py | cksum | cut -d' ' -f1)

.PHONY: help setup serve test check bench demo chaos
help:
	@echo "make setup   create .venv with everything the tests need"
	@echo "make serve   serve on http://127.0.0.1:8000 (ARGS='--port 9000' ...)"
	@echo "make demo    start the service, make clips over HTTP, show them, stop"
	@echo "make test    run the tests (ARGS='tests/config -x', WORKERS=2)"
	@echo "make check   format, lint, types, layers, sizes, spelling, docs, hygiene"
	@echo "make bench   run every benchmark"
	@echo "make chaos   kill things while they work (N=50 SEED=1)"

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mediamill needs Python 3.11 or newer; $$($(PYTHON) --version) is too old (make PYTHON=python3.12 ...)"; exit 1; }
	@echo "==> setting up .venv (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "==> torch" && $(BIN)/python -m pip install --quiet -c constraints.txt torch
	@echo "==> tools" && $(BIN)/python tools/requirements.py build test check | xargs $(BIN)/python -m pip install --quiet -c constraints.txt
	@echo "==> mediamill" && $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[whisper,diffusers]'
	@rm -f .venv/set-up-* && touch $@
	@echo "==> ready: $(BIN)/mediamill"

serve: setup
	@exec $(BIN)/mediamill serve $(ARGS)

demo: setup
	@exec $(BIN)/python examples/demo.py $(ARGS)

test: setup
	@echo "==> tests"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -p no:cacheprovider --durations=25 $(ARGS) </dev/null

bench: setup
	@for file in benchmarks/[a-z]*.py; do echo "==> $$file"; $(BIN)/python "$$file" || exit 1; done

chaos: setup
	@echo "==> chaos: $(N) faults"
	@MEDIAMILL_CHAOS_FAULTS=$(N) MEDIAMILL_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -p no:cacheprovider -s -m chaos --timeout 7200 tests/chaos $(ARGS) </dev/null

# The gates; `make -k check` runs all of them even when one fails.
GATES := format lint types layers sizes spelling docs hygiene
.PHONY: $(GATES:%=check-%)
check: $(GATES:%=check-%)
	@echo "==> every gate passed"

check-format: setup
	@echo "==> format" && $(BIN)/ruff format --check --quiet . \
		|| { $(BIN)/ruff format --diff . 2>&1 | head -40; echo "mend with: $(BIN)/ruff format ."; exit 1; }
check-lint: setup
	@echo "==> lint" && $(BIN)/ruff check .
check-types: setup
	@echo "==> types" && $(BIN)/mypy
check-layers: setup
	@echo "==> layers" && $(BIN)/lint-imports --no-cache
check-sizes: setup
	@echo "==> sizes" && $(BIN)/python tools/sizes.py
check-spelling: setup
	@echo "==> spelling" && $(BIN)/codespell
check-docs: setup
	@echo "==> docs" && $(BIN)/python tools/docs.py && $(BIN)/python tools/reference.py --check
check-hygiene: setup
	@echo "==> hygiene" && $(BIN)/python tools/hygiene.py
