# Every target works on a fresh checkout; the environment is .venv.
PY := .venv/bin/python

.venv/core:
	python3 -m venv .venv && .venv/bin/pip install --quiet --editable . && touch $@
.venv/full: .venv/core
	sh docs/install_torch.sh && .venv/bin/pip install --quiet --editable '.[live,app,dev]' && touch $@

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
