# Every target works on a fresh checkout with Python >= 3.11; the environment is .venv.
PY := .venv/bin/python
CPU_ONLY := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --constraint .ci/constraints-cpu.txt)

.venv/core: pyproject.toml
	python3 -m venv .venv && $(PY) -m pip install --quiet --editable . && touch $@
.venv/full: .venv/core
	$(PY) -m pip install --quiet $(CPU_ONLY) --editable '.[live,app,dev]' && touch $@

.PHONY: install run test check bench app
install: .venv/full
run: .venv/core
	$(PY) -m sim.run --policy confidence --load high
test: .venv/full
	$(PY) -m pytest -q
check: .venv/full
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
bench: .venv/full
	$(PY) -m tests.bench
app: .venv/full
	$(PY) -m streamlit run app/main.py
