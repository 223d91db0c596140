# `make picture PROMPT="…"` and `make test` do all their set-up; nothing is installed outside of
# .venv and .venv-test. `make` alone says what there is.

PYTHON ?= python3
VENV := .venv
TEST_VENV := .venv-test
APT := sudo apt-get install make python3 python3-venv

# The prompt as it was typed: make does not read its dollars, and the shell gets it as a variable,
# so that it reads no quotes, backticks or dollars in it either.
ifeq ($(origin PROMPT),undefined)
PROMPT := a large red circle on a white background
else
override PROMPT := $(value PROMPT)
endif
export PROMPT

# A folder named `kernels` must not shadow the package of that name that diffusers looks for.
export PYTHONSAFEPATH := 1

.PHONY: help picture test format clean

help:
	@echo 'make picture PROMPT="a large red circle on a white background"'
	@echo '              draw with the model that ships; the PNG goes to pictures/'
	@echo 'make test     all checks: ruff, mypy, import-linter, pytest'
	@echo 'make format   let ruff format the code and mend what it can'
	@echo 'make clean    remove both environments and all caches'

picture: $(VENV)/complete
	@mkdir -p pictures
	@$(VENV)/bin/diffusion-rt generate --output pictures/ --prompt="$$PROMPT"

test: $(TEST_VENV)/complete
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/mypy
	$(TEST_VENV)/bin/lint-imports
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

format: $(TEST_VENV)/complete
	$(TEST_VENV)/bin/ruff format .
	$(TEST_VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) $(TEST_VENV) build dist .coverage .hypothesis .*_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment counts as made when all of it is: `complete` is written last. A change of the
# versions asked for makes it anew from nothing.
$(VENV)/complete: EXTRA := cpu
$(TEST_VENV)/complete: EXTRA := dev
$(VENV)/complete $(TEST_VENV)/complete: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed; $(PYTHON) is none. On Debian: $(APT)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo '$(PYTHON) cannot make environments. On Debian: $(APT)' >&2; exit 1; }
	@echo 'Making $(@D), once; this takes a minute or two.'
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt setuptools
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRA)]'
	@touch $@
